"""Posterior, strata and ceilings against exact sums, Monte Carlo and cases that are known by hand."""

from __future__ import annotations

import math
import warnings
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import IntegrationWarning, quad
from scipy.special import betainc, expit, log_expit

from moonshelf.creatives.labels import (
    JEFFREYS,
    MAX_WEIGHT,
    Prior,
    fit_prior,
    gap,
    p_greater,
    posterior,
    stratum,
)
from moonshelf.creatives.schema import Creative, Pair
from moonshelf.product import ImageRef

UNIFORM = Prior(1, 1)
COUNTS = [(0, 0), (0, 1000), (1, 10), (5, 1000), (30, 1000), (35, 1100), (3, 3), (400, 12_000)]


def creative(name: str, clicks: int | None, impressions: int | None) -> Creative:
    return Creative(id=name, image=ImageRef(path=f"/x/{name}.png"), clicks=clicks, impressions=impressions)


def pair_of(a: tuple[int, int], b: tuple[int, int], **more: object) -> Pair:
    return Pair(id="p", product_id="x", a=creative("a", *a), b=creative("b", *b), **more)  # type: ignore[arg-type]


def exact(a: tuple[int, int], b: tuple[int, int]) -> float:
    """P(A > B) under uniform priors, where all shapes are integers: a sum over the shapes of A."""

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    a1, b1, a2, b2 = a[0] + 1, a[1] - a[0] + 1, b[0] + 1, b[1] - b[0] + 1
    return math.fsum(
        math.exp(log_beta(a2 + i, b2 + b1) - math.log(b1 + i) - log_beta(1 + i, b1) - log_beta(a2, b2))
        for i in range(a1)
    )


@pytest.mark.parametrize(("a", "b"), list(combinations(COUNTS, 2)))
def test_the_integral_is_the_exact_sum(a: tuple[int, int], b: tuple[int, int]) -> None:
    assert p_greater(a, b, UNIFORM) == pytest.approx(exact(a, b), abs=1e-8)


EXTREME = [
    (0, 0), (1, 1), (0, 1000), (1, 10), (0, 10**6), (10**6, 10**6), (3, 3 * 10**6), (5_000_000, 10**7),
    (5_002_000, 10**7), (0, 10**7),
]  # fmt: skip


def quadrature(a: tuple[int, int], b: tuple[int, int], prior: Prior) -> float:
    """P(A > B) by adaptive quadrature over the log-odds of A, whose density is taken relative to its mode."""
    (p, q), of_b = ((prior.alpha + clicks, prior.beta + n - clicks) for clicks, n in (a, b))
    mode, wide = math.log(p / q), math.sqrt(1 / p + 1 / q)
    peak = p * log_expit(mode) + q * log_expit(-mode)

    def density(t: float) -> float:
        return math.exp(p * log_expit(t) + q * log_expit(-t) - peak)

    low, high = mode - 10 * wide - 45 / p, mode + 10 * wide + 45 / q
    ends = {
        math.log(x / y) + k * math.sqrt(1 / x + 1 / y) for x, y in ((p, q), of_b) for k in (-8, -3, 0, 3, 8)
    }
    how = {
        "epsabs": 0, "epsrel": 1e-13, "limit": 3000, "points": sorted(t for t in ends if low < t < high),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IntegrationWarning)  # 1e-13 is the last that float64 gives
        above = quad(lambda t: density(t) * betainc(*of_b, expit(t)), low, high, **how)[0]
        return above / quad(density, low, high, **how)[0]


@pytest.mark.parametrize(
    ("prior", "most"),
    [(JEFFREYS, 1e-10), (Prior(3, 97), 1e-10), (Prior(0.02, 1.98), 1e-9), (Prior(0.01, 10), 1e-7)],
)
def test_extreme_counts_agree_with_adaptive_quadrature(prior: Prior, most: float) -> None:
    for a, b in combinations(EXTREME, 2):
        assert p_greater(a, b, prior) == pytest.approx(quadrature(a, b, prior), abs=most), (a, b)


@pytest.mark.parametrize("prior", [JEFFREYS, Prior(3, 97), Prior(0.2, 0.2)])
def test_the_integral_agrees_with_drawing(prior: Prior) -> None:
    rng = np.random.default_rng(7)
    for a, b in (((0, 50), (0, 4000)), ((5, 300), (9, 310)), ((300_000, 10**7), (300_300, 10**7))):
        draws = [
            rng.beta(prior.alpha + clicks, prior.beta + shown - clicks, 2_000_000) for clicks, shown in (a, b)
        ]
        assert p_greater(a, b, prior) == pytest.approx((draws[0] > draws[1]).mean(), abs=1e-3)


def test_many_impressions_agree_with_the_normal_limit() -> None:
    a, b, n = 300_000, 300_700, 10**7
    z = (a - b) / n / math.sqrt(a / n * (1 - a / n) / n + b / n * (1 - b / n) / n)
    assert p_greater((a, n), (b, n)) == pytest.approx(0.5 * math.erfc(-z / math.sqrt(2)), abs=2e-4)
    assert p_greater((0, 10**7), (10**7, 10**7)) == 0.0
    assert 0.5 < p_greater((0, 10**3), (0, 10**7)) < 1  # no click in few says less against a rate


count = st.integers(0, 10**7).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@settings(max_examples=60, deadline=None)
@given(count, count)
def test_both_directions_add_up_to_one(a: tuple[int, int], b: tuple[int, int]) -> None:
    p = p_greater(a, b)
    assert 0 <= p <= 1
    assert p + p_greater(b, a) == 1


@settings(max_examples=40, deadline=None)
@given(count, st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))))
def test_a_further_click_never_makes_less_sure(a: tuple[int, int], b: tuple[int, int]) -> None:
    assert p_greater((b[0] + 1, b[1]), a) >= p_greater(b, a) - 1e-9


def test_a_mirror_of_clicks_and_no_clicks_is_the_other_order() -> None:
    """P(A > B) of clicks is P(B > A) of the views without one, under a symmetric prior."""
    for a, b in combinations(COUNTS, 2):
        other = p_greater((b[1] - b[0], b[1]), (a[1] - a[0], a[1]))
        assert p_greater(a, b) == pytest.approx(other, abs=1e-8)


def test_impossible_counts_are_refused() -> None:
    for counts in ((5, 3), (-1, 3)):
        with pytest.raises(ValueError, match="impossible"):
            p_greater(counts, (1, 3))
    for bad in ((0, 1), (1, math.inf), (math.nan, 1)):
        with pytest.raises(ValueError, match="positive"):
            Prior(*bad)


@pytest.mark.parametrize(
    ("p", "name"), [(0.95, "decisive"), (0.04, "decisive"), (0.94, "weak"), (0.25, "weak"), (0.5, "toss-up")]
)
def test_strata(p: float, name: str) -> None:
    assert stratum(p) == name


def test_gap_of_rates() -> None:
    assert gap(creative("a", 16, 1000), creative("b", 10, 1000)) == pytest.approx(0.6)
    assert gap(creative("a", 10, 1000), creative("b", 16, 1000)) == pytest.approx(0.6)
    assert gap(creative("a", 0, 10), creative("b", 1, 10)) == math.inf
    assert gap(creative("a", 0, 10), creative("b", 0, 20)) == 0
    assert gap(creative("a", None, None), creative("b", 1, 10)) is None
    bare = Pair(id="p", product_id="x", a=creative("a", None, None), b=creative("b", None, None), label="A")
    assert posterior(bare) is None


def test_a_fitted_prior_finds_the_one_that_drew_the_rates() -> None:
    rng = np.random.default_rng(3)
    shown = rng.integers(500, 20_000, 400)
    clicks = rng.binomial(shown, rng.beta(6, 194, 400))
    found = fit_prior(
        creative(str(i), int(c), int(n)) for i, (c, n) in enumerate(zip(clicks, shown, strict=True))
    )
    assert found.alpha / (found.alpha + found.beta) == pytest.approx(0.03, rel=0.1)
    assert found.alpha + found.beta == pytest.approx(200, rel=0.25)


def test_a_prior_of_too_little_is_a_weak_one() -> None:
    assert fit_prior([]) == JEFFREYS
    assert fit_prior([creative("a", 0, 100), creative("b", 0, 100), creative("c", 0, 100)]) == JEFFREYS
    same = fit_prior(creative(str(i), 10, 1000) for i in range(9))  # less spread than chance
    assert same.alpha + same.beta == pytest.approx(MAX_WEIGHT)
    counts = [(0, 10**5)] * 5 + [(250, 500)]  # rates that differ as no prior can say
    rare = fit_prior(creative(str(i), *one) for i, one in enumerate(counts))
    assert rare.alpha == 0.01 and rare.beta < 3


def test_the_ceiling_is_what_the_true_order_reaches() -> None:
    """Counts drawn from known rates: whoever knows the rates is right as often as the posterior says."""
    rng = np.random.default_rng(11)
    prior = Prior(6, 194)
    rows: dict[str, list[tuple[float, bool]]] = {}
    for _ in range(1500):
        rates = rng.beta(prior.alpha, prior.beta, 2)
        clicks = rng.binomial(2000, rates)
        p = posterior(pair_of((int(clicks[0]), 2000), (int(clicks[1]), 2000)), prior)
        assert p is not None
        rows.setdefault(stratum(p), []).append((max(p, 1 - p), (rates[0] > rates[1]) == (p > 0.5)))
    assert set(rows) == {"decisive", "weak", "toss-up"}
    for some in rows.values():
        ceiling, reached = np.mean(some, axis=0)
        assert ceiling == pytest.approx(reached, abs=3 * math.sqrt(0.25 / len(some)))

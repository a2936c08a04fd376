"""What impressions and clicks say of two creatives: the posterior probability that one rate is higher.

Each rate has a Beta prior, which its counts turn into a Beta posterior; P(rate A > rate B) is one integral
over the two, taken by quadrature, stable from no click at all to 10⁷ impressions and beyond. The prior is
fitted by moments on a campaign or a data set, and is Jeffreys' where there is nothing to fit on. The bounds
of the strata are ours: a pair is decisive from 0.95 in either direction, weak from 0.75, else a toss-up.
The label ceiling says how often a selector that knew the true rates would agree with the observed winner,
so that no score is read as if the labels were certain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np

from moonshelf.creatives.pair import Creative, Pair, Stratum
from moonshelf.creatives.protocol import Side

STRATA: tuple[Stratum, ...] = ("decisive", "weak", "toss-up")
DECISIVE, WEAK = 0.95, 0.75
_PANELS, _NODES = 96, 12  # of each posterior's support; 1e-9 at worst on the tests' grid
_TAIL = 42.0  # the support ends where the density has fallen by e^42
MIN_WEIGHT, MAX_WEIGHT = 2.0, 10_000.0  # impressions that a fitted prior may be worth (ours)


@dataclass(frozen=True)
class Prior:
    """Beta(alpha, beta) of a click-through rate; worth alpha + beta impressions."""

    alpha: float = 0.5
    beta: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.alpha < math.inf and 0 < self.beta < math.inf):
            raise ValueError("a Beta prior needs two positive numbers")


JEFFREYS = Prior()


def fit_prior(creatives: Iterable[Creative]) -> Prior:
    """Beta prior of the rates of a campaign or a data set, by moments; Jeffreys' below three creatives.

    The mean is the pooled rate. The weight follows from how much more the observed rates differ than
    clicks drawn from one rate would (the ANOVA estimate of a beta-binomial's intra-class correlation,
    which allows for unequal impressions); it is kept between `MIN_WEIGHT` and `MAX_WEIGHT`, because few
    creatives would give anything.
    """
    counts = [(c.clicks, c.impressions) for c in creatives if c.clicks is not None and c.impressions]
    if len(counts) < 3:
        return JEFFREYS
    clicks, shown = np.asarray(counts, dtype=np.float64).T
    total = shown.sum()
    mean = clicks.sum() / total
    if not 0 < mean < 1:
        return JEFFREYS
    spread = float((shown * (clicks / shown - mean) ** 2).sum()) / (mean * (1 - mean))
    within = len(counts) - 1
    correlation = (spread - within) / (total - float((shown**2).sum()) / total - within)
    weight = 1 / correlation - 1 if correlation > 0 else MAX_WEIGHT
    weight = min(max(weight, MIN_WEIGHT), MAX_WEIGHT)
    return Prior(float(mean * weight), float((1 - mean) * weight))


def p_greater(a: tuple[int, int], b: tuple[int, int], prior: Prior = JEFFREYS) -> float:
    """P(rate A > rate B) from (clicks, impressions) of each; exact to about 1e-9.

    `p_greater(a, b) + p_greater(b, a)` is exactly 1. Raises ValueError on impossible counts.
    """
    for clicks, impressions in (a, b):
        if not 0 <= clicks <= impressions:
            raise ValueError(f"{clicks} clicks of {impressions} impressions are impossible")
    if a == b:
        return 0.5
    if a > b:  # one order of the two, so that swapping them gives the complement to the last bit
        return 1.0 - _p_greater(b, a, prior)
    return _p_greater(a, b, prior)


def _p_greater(a: tuple[int, int], b: tuple[int, int], prior: Prior) -> float:
    """∫ f_A(t) F_B(t) dt over the log-odds t, in which both posteriors are smooth and log-concave.

    Panels of Gauss–Legendre nodes over the union of both supports; F_B is summed over whole panels, and
    within a panel it is the integral of the polynomial through the nodes.
    """
    shapes = [(prior.alpha + clicks, prior.beta + shown - clicks) for clicks, shown in (a, b)]
    edges = np.unique(np.concatenate([np.linspace(*_support(*shape), _PANELS + 1) for shape in shapes]))
    nodes, weights, running = _rule()
    half = np.diff(edges)[:, None] / 2  # (panels, 1)
    t = edges[:-1, None] + half * (1 + nodes)  # (panels, nodes)
    f_a, f_b = (np.exp(_log_density(t, *shape)) * half for shape in shapes)  # not normalised
    mass_a, mass_b = f_a @ weights, f_b @ weights  # (panels,)
    below = np.concatenate(([0.0], np.cumsum(mass_b)[:-1]))[:, None] + f_b @ running
    p = float(((f_a * below) @ weights).sum()) / float(mass_a.sum() * mass_b.sum())
    return min(max(p, 0.0), 1.0)


def _log_density(t: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """Log density of a Beta variable's log-odds, up to a constant: zero at its mode."""
    mode = math.log(alpha / beta)
    # log of x = 1 / (1 + e^-t) and of 1 − x, minus their values at the mode
    x = -np.logaddexp(0.0, -t) + math.log1p(beta / alpha)
    rest = -np.logaddexp(0.0, t) + math.log1p(math.exp(mode))
    return np.asarray(alpha * x + beta * rest)


def _support(alpha: float, beta: float) -> tuple[float, float]:
    """Where the density of the log-odds is above e^-`_TAIL` of its peak; it is log-concave."""
    mode = math.log(alpha / beta)
    ends = []
    for sign in (-1.0, 1.0):
        inside, outside = 0.0, math.sqrt(1 / alpha + 1 / beta)
        while float(_log_density(np.asarray(mode + sign * outside), alpha, beta)) > -_TAIL:
            inside, outside = outside, 2 * outside
        for _ in range(8):
            middle = (inside + outside) / 2
            if float(_log_density(np.asarray(mode + sign * middle), alpha, beta)) > -_TAIL:
                inside = middle
            else:
                outside = middle
        ends.append(mode + sign * outside)
    return ends[0], ends[1]


@lru_cache(maxsize=1)
def _rule() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gauss–Legendre nodes and weights on [-1, 1], and the (nodes, nodes) matrix that takes values at the
    nodes to the integrals from -1 to each node."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    basis = np.polynomial.legendre.legvander(nodes, _NODES - 1)  # value of polynomial j at node i
    integrals = np.stack(
        [
            np.polynomial.legendre.legval(nodes, np.polynomial.legendre.legint([0.0] * j + [1.0], lbnd=-1))
            for j in range(_NODES)
        ]
    )
    return nodes, weights, np.linalg.solve(basis.T, integrals)


def posterior(pair: Pair, prior: Prior = JEFFREYS) -> float | None:
    """P(rate of A > rate of B) of a pair, or None where one has no impressions."""
    a, b = pair.a, pair.b
    if not (a.impressions and b.impressions):
        return None
    return p_greater((a.clicks or 0, a.impressions), (b.clicks or 0, b.impressions), prior)


def stratum(p: float) -> Stratum:
    """How sure the counts are, in either direction."""
    sure = max(p, 1 - p)
    return "decisive" if sure >= DECISIVE else "weak" if sure >= WEAK else "toss-up"


def gap(a: Creative, b: Creative) -> float | None:
    """Relative difference of the observed rates: the higher over the lower, minus 1; infinite where the
    lower is zero and the higher is not, None where one has no impressions."""
    if a.rate is None or b.rate is None:
        return None
    low, high = sorted((a.rate, b.rate))
    return high / low - 1 if low else (math.inf if high else 0.0)


def observed_winner(pair: Pair) -> Side | None:
    """The side with the higher observed rate, or the annotator's where there are no counts; None if equal."""
    if pair.a.rate is None or pair.b.rate is None:
        return cast("Side | None", pair.label if pair.label in ("A", "B") else None)
    return None if pair.a.rate == pair.b.rate else "A" if pair.a.rate > pair.b.rate else "B"


@dataclass(frozen=True)
class Ceiling:
    """How far the labels of some pairs can be trusted.

    `expected` is the mean of max(p, 1 − p) over the posterior p. `true_order` is how often the order of the
    true rates is that of the observed ones, over the `known` pairs that have both and differ in both: only a
    simulation has it.
    """

    pairs: int
    expected: float | None
    known: int = 0
    true_order: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def label_ceiling(pairs: Sequence[Pair], prior: Prior = JEFFREYS) -> dict[str, Ceiling]:
    """Best accuracy that any selector can expect on the observed winner: of `all` pairs and by stratum.

    Pairs without counts are left out. A stratum without pairs is there, with None.
    """
    rows: dict[str, list[tuple[float, bool | None]]] = {"all": [], **{name: [] for name in STRATA}}
    for pair in pairs:
        p = posterior(pair, prior)
        if p is None:
            continue
        agrees = None
        winner = observed_winner(pair)
        if winner and pair.true_rates and pair.true_rates[0] != pair.true_rates[1]:
            agrees = (pair.true_rates[0] > pair.true_rates[1]) == (winner == "A")
        for name in ("all", stratum(p)):
            rows[name].append((max(p, 1 - p), agrees))
    return {name: _ceiling(found) for name, found in rows.items()}


def _ceiling(rows: Sequence[tuple[float, bool | None]]) -> Ceiling:
    known = [agrees for _, agrees in rows if agrees is not None]
    return Ceiling(
        pairs=len(rows),
        expected=sum(sure for sure, _ in rows) / len(rows) if rows else None,
        known=len(known),
        true_order=sum(known) / len(known) if known else None,
    )

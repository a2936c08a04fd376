"""What impressions and clicks say of creatives: the posterior of one rate being higher, and pairs to judge.

Each rate has a Beta prior, which its counts turn into a Beta posterior; P(rate A > rate B) is one integral
over the two, taken by quadrature, stable from no click at all to 10⁷ impressions and beyond. The prior is
fitted by moments on a campaign or a data set, and is Jeffreys' where there is nothing to fit on. The bounds
of the strata are ours: a pair is decisive from 0.95 in either direction, weak from 0.75, else a toss-up.

Every pair of creatives of a campaign either comes out or is counted under the first reason that held it
back, so that a data set's size explains itself. The defaults are Creative4U's filter: more than 1,000
impressions each and rates more than 60% apart. Which creative becomes A is drawn, from a hash of the ids:
a data set in which A always wins teaches the place.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from scipy.special import betainc, betaincc, betaincinv, ndtr

from moonshelf import images
from moonshelf.creatives.schema import Campaign, Creative, Pair, Stratum

STRATA: tuple[Stratum, ...] = ("decisive", "weak", "toss-up")
DECISIVE, WEAK = 0.95, 0.75
_NODES, _REACH = 80, 7.5  # of the integral over a normal variable, and how many deviations it spans
MIN_WEIGHT, MAX_WEIGHT = 2.0, 10_000.0  # impressions that a fitted prior may be worth (ours)
_LEAST = 0.01  # of a fitted prior's two numbers: with less, quantiles of the rate are below the least float


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
    return Prior(*(max(float(share * weight), _LEAST) for share in (mean, 1 - mean)))


def p_greater(a: tuple[int, int], b: tuple[int, int], prior: Prior = JEFFREYS) -> float:
    """P(rate A > rate B) from (clicks, impressions) of each.

    Measured against adaptive quadrature up to 10 million impressions: within 1e-10 for priors of 0.5 and
    more, 1e-7 from 0.01. `p_greater(a, b) + p_greater(b, a)` is exactly 1. Raises ValueError on impossible
    counts.
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
    """The mean of the wider posterior's distribution function over quantiles of the narrower one, which is
    smooth; the other way round it would be a step."""
    of_a, of_b = ((prior.alpha + clicks, prior.beta + shown - clicks) for clicks, shown in (a, b))
    levels, weights = _quantiles()
    if sum(1 / n for n in of_a) < sum(1 / n for n in of_b):  # variance of the log-odds, about
        below = betainc(*of_b, betaincinv(*of_a, levels))
    else:
        below = betaincc(*of_a, betaincinv(*of_b, levels))
    return min(max(float(below @ weights), 0.0), 1.0)


@lru_cache(maxsize=1)
def _quantiles() -> tuple[np.ndarray, np.ndarray]:
    """Levels in (0, 1) and weights that add up to 1: Gauss–Legendre nodes of a normal variable, whose tails
    reach as far as a posterior's; even nodes in the level itself leave 1e-6."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    normal = weights * np.exp(-((_REACH * nodes) ** 2) / 2)
    return ndtr(_REACH * nodes), normal / normal.sum()


def posterior(pair: Pair, prior: Prior = JEFFREYS) -> float | None:
    """P(rate of A > rate of B) of a pair, or None where one has no impressions."""
    a, b = pair.a, pair.b
    if not (a.impressions and b.impressions):
        return None
    return p_greater((a.clicks or 0, a.impressions), (b.clicks or 0, b.impressions), prior)


def truth_of(pair: Pair, prior: Prior = JEFFREYS, sure: float = 1.0) -> float | None:
    """The posterior of the counts; without counts an annotator's verdict, which is right with `sure`."""
    known = posterior(pair, prior)
    return {"A": sure, "B": 1 - sure, "tie": 0.5}[pair.label] if known is None and pair.label else known


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


# ---- pairs -------------------------------------------------------------------------------------------

# Keyword arguments of `build_pairs`. JD's CAIG keeps pairs that hardly differ, so that even the true order
# of the rates explains little of its labels.
PRESETS: dict[str, dict[str, Any]] = {
    "creative4u": {"min_impressions": 1000, "min_gap": 0.6},
    "caig": {"min_impressions": 1000, "min_gap": 0.05, "max_gap": 0.2},
    "all": {"min_impressions": 0, "min_gap": None},
}


def build_pairs(
    campaigns: Iterable[Campaign],
    *,
    min_impressions: int = 1000,
    min_gap: float | None = 0.6,
    max_gap: float | None = None,
    seed: int = 0,
) -> tuple[list[Pair], dict[str, int]]:
    """Pairs within campaigns, and how many were dropped for which reason.

    Kept are pairs with more than `min_impressions` on both sides, whose rates are more than `min_gap` and at
    most `max_gap` apart (the higher over the lower, minus 1; None is no bound). A pair with the same image
    twice is kept with the label "tie" whatever its counts. Pairs are in the order of the campaigns; kept and
    dropped together are all pairs that there were.
    """
    dropped: Counter[str] = Counter()
    kept: list[Pair] = []
    for campaign in campaigns:
        keys = {creative.id: content_key(creative) for creative in campaign.creatives}
        for i, j in combinations(range(len(campaign.creatives)), 2):
            names = (campaign.id, campaign.creatives[i].id, campaign.creatives[j].id)
            pair = campaign.pair(*((j, i) if _drawn(seed, *names) < 0.5 else (i, j)), pair_id(*names))
            if keys[pair.a.id] == keys[pair.b.id]:
                kept.append(pair.model_copy(update={"label": "tie"}))
            elif reason := _refused(pair, min_impressions, min_gap, max_gap):
                dropped[reason] += 1
            else:
                kept.append(pair)
    return kept, dict(dropped)


def _refused(pair: Pair, min_impressions: int, min_gap: float | None, max_gap: float | None) -> str:
    apart = gap(pair.a, pair.b)
    if apart is None:
        return "no impressions"
    if min(pair.a.impressions or 0, pair.b.impressions or 0) <= min_impressions:
        return f"at most {min_impressions:,} impressions"
    if min_gap is not None and apart <= min_gap:
        return f"rates at most {min_gap:.0%} apart"
    if max_gap is not None and apart > max_gap:
        return f"rates more than {max_gap:.0%} apart"
    return ""


def pair_id(campaign: str, a: str, b: str) -> str:
    """The three ids in one; a digest where they are too long to be read."""
    joined = f"{campaign}:{a}:{b}"
    return joined if len(joined) <= 120 else hashlib.sha256(joined.encode()).hexdigest()[:32]


def content_key(creative: Creative) -> str:
    """SHA-256 (hex) of the image bytes; of the reference, where they cannot be read without fetching."""
    if creative.sha256:
        return creative.sha256.lower()
    try:
        return hashlib.sha256(images.read_bytes(creative.image)).hexdigest()
    except images.ImageError:  # the selector abstains on it; here it only needs a name
        return hashlib.sha256(b"reference:" + creative.image.name.encode()).hexdigest()


def _drawn(seed: int, *names: str) -> float:
    """A number in [0, 1) that depends on nothing but the seed and the names."""
    digest = hashlib.sha256("\n".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64

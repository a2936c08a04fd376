"""How good a selector of creatives is: skill, bias by place, honesty of its probabilities, use of abstention.

Everything is measured against `truth`, the posterior probability that A has the higher click rate: a pair's
winner is the side above one half, so whoever knew the true rates would be right with probability
`max(truth, 1 - truth)`. The mean of that is the **ceiling** that stands beside every accuracy; log loss and
Brier score have their floors in the same place (the entropy of the posterior and its variance).

Choices. No figure depends on which creative is called A: calibration folds each pair to the side that the
selector holds for better. A probability of exactly one half is half right. Accuracy takes the swap-averaged
probability of every pair that has a winner; a selector may abstain, and the figures count it both ways
(left out, and as a miss). Confidence is `|p - 1/2|`; pairs of equal confidence count with their expectation
over a random order, as ties do in rankings. Bins of the calibration error have equal mass and never part
equal probabilities; the error of a perfect selector is above zero at any finite n, so `ece_floor` says how
far (ours: the mean over random signs of the residuals, one sign a product: a wild bootstrap after Liu, 1988).
Intervals draw whole products (`significance`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr

from moonshelf.creatives.schema import Judgement
from moonshelf.evaluation.statistics import significance
from moonshelf.evaluation.statistics.metrics import Floats
from moonshelf.evaluation.statistics.significance import Interval, bootstrap, members

Mask = NDArray[np.bool_]

BINS = 10
LEAST = 10  # pairs in a bin, where there are as many
COVERAGES = (0.5, 0.7, 0.9)
SUREST = ("AURC", *(f"accuracy@{c:.0%}" for c in COVERAGES))  # of the surest pairs
CLIP = 1e-6  # probabilities are kept this far from 0 and 1, or one sure mistake would cost infinity
SIGNS = 200  # random signs behind the floor of the calibration error


@dataclass(frozen=True)
class Cases:
    """Judged pairs, one row each: what is known of their clicks, and what the selector said."""

    ids: Any  # (n,) str, as `clusters`
    clusters: Any  # product of the pair: its rows vary together
    truth: Floats  # posterior probability that A is better, in [0, 1]
    p: Floats  # the selector's, averaged over the orders
    first: Floats  # the same with A shown first
    second: Floats  # with A shown second
    judged: Mask  # False where it abstained

    @classmethod
    def of(cls, judgements: Sequence[Judgement], truth: ArrayLike, clusters: Sequence[str]) -> Cases:
        """Rows in the order of `judgements`. Raises ValueError for unequal lengths or truth outside 0 … 1."""
        known = np.asarray(truth, np.float64)
        if known.shape != (len(judgements),) or len(clusters) != len(judgements):
            raise ValueError(f"{len(judgements)} judgements, {known.shape} truths, {len(clusters)} products")
        if not ((known >= 0) & (known <= 1)).all():  # also refuses NaN
            raise ValueError("a posterior probability is outside 0 … 1")
        said = np.array([(j.p, j.p_first, j.p_second) for j in judgements], np.float64).reshape(-1, 3).T
        judged = np.array([not j.abstained for j in judgements], bool)
        return cls([j.pair_id for j in judgements], clusters, known, said[0], said[1], said[2], judged)

    def __post_init__(self) -> None:
        # One rounding step off a half, p and 1 - p would fall on different sides of it.
        for name in ("truth", "p", "first", "second"):
            object.__setattr__(self, name, np.round(getattr(self, name), 12))
        for name in ("ids", "clusters"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), object))

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: ArrayLike) -> Cases:
        """Those of a mask or a list of row numbers."""
        chosen = np.arange(len(self))[np.asarray(rows)]
        return Cases(*(getattr(self, column.name)[chosen] for column in fields(self)))

    @property
    def settled(self) -> Mask:
        """Which pairs have a winner: the posterior is not one half."""
        return self.truth != 0.5

    @property
    def right(self) -> Floats:
        """1 where the swap-averaged probability is on the winner's side, 0 where not, ½ for one half."""
        return _right(self.p, self.truth)

    @property
    def knowable(self) -> Floats:
        """Probability that the winner is the truly better one: what a perfect selector is right with."""
        return np.maximum(self.truth, 1 - self.truth)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of one backend; `group` and `part` say of what: skill on decisive pairs, a question …"""

    group: str = ""  # skill, paired, interest, slices, explanations, questions, ranking
    part: str = ""
    backend: str = ""
    name: str
    value: float | None = None  # None where it is not defined for these rows
    low: float | None = None  # bootstrap interval over products, 95 %; None with one product
    high: float | None = None
    n: int = 0
    clusters: int = 0
    bound: float | None = None  # what nobody can beat on these rows: the label ceiling, or a floor of a loss
    chance: float | None = None  # of guessing, or of always giving the commonest answer
    note: str = ""


def figures(cases: Cases) -> list[Figure]:
    """Every figure of a selector, each with its interval; [] for no pair."""
    if not len(cases):
        return []
    settled, means = cases.settled, _means(cases)
    gap, bins = _gaps(cases)
    group, wrong = _equally_sure(cases.take(settled))
    # What the best selector reaches: it is surest where the posterior is.
    best = np.unique(-cases.knowable[settled], return_inverse=True)[1], 1 - cases.knowable[settled]
    reached = _surest(*best, np.ones(len(wrong))) if len(wrong) else [None] * len(SUREST)

    def statistic(weights: Floats | None) -> Floats:
        w = np.ones(len(cases)) if weights is None else weights
        found = [_ratio((w * values)[mask].sum(), w[mask].sum()) for values, mask, _ in means.values()]
        error = np.abs(np.bincount(bins, weights=w * gap)).sum()
        return np.array([*found, error / w.sum(), *_surest(group, wrong, w[settled])])

    counted = {name: (int(mask.sum()), bound) for name, (_, mask, bound) in means.items()}
    counted["ECE"] = len(cases), ece_floor(cases)
    counted |= {name: (len(wrong), bound) for name, bound in zip(SUREST, reached, strict=True)}
    drawn, _ = significance.resample(statistic, len(cases), cases.clusters)
    return [
        from_interval(name, replace(one, n=n), bound)
        if math.isfinite(one.value)
        else Figure(name=name, n=n, note="no pair of this kind")
        for one, (name, (n, bound)) in zip(drawn, counted.items(), strict=True)
    ]


def mean_figure(
    name: str,
    values: ArrayLike,
    clusters: Sequence[str],
    *,
    bound: float | None = None,
    note: str = "",
) -> Figure:
    """The mean of some rows' own values as a figure; without a value where there is no row."""
    value = np.asarray(values, np.float64)
    if not len(value):
        return Figure(name=name, note=note or "no pair of this kind")
    return from_interval(name, bootstrap(value, clusters), bound, note)


class Rows:
    """Rows' own values by the name of their figure, each with the product that it is of."""

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[float, str]]] = defaultdict(list)

    def add(self, name: str, value: float | None, product: str) -> None:
        """A row; None is none."""
        if value is not None:
            self.found[name].append((float(value), product))

    def figure(self, name: str, note: str = "") -> Figure:
        """The mean of the rows of that name."""
        values, products = [value for value, _ in self.found[name]], [one for _, one in self.found[name]]
        return mean_figure(name, values, products, note=note)


def from_interval(name: str, one: Interval, bound: float | None = None, note: str = "") -> Figure:
    """A figure from a bootstrap interval; ends that are not defined are None."""
    low, high = (end if math.isfinite(end) else None for end in (one.low, one.high))
    return Figure(
        name=name, value=one.value, low=low, high=high, n=one.n, clusters=one.clusters, bound=bound, note=note
    )


def _means(cases: Cases) -> dict[str, tuple[Floats, Mask, float | None]]:
    """The figures that are a mean: each row's value, which rows count, and what bounds the mean."""
    settled, everything, q, best = cases.settled, np.ones(len(cases), bool), cases.truth, cases.knowable
    right_first, right_second = _right(cases.first, q), _right(cases.second, q)
    winner_first = np.where(q > 0.5, right_first, right_second)
    winner_second = np.where(q > 0.5, right_second, right_first)
    p = np.clip(cases.p, CLIP, 1 - CLIP)
    losses = -(q * np.log(p) + (1 - q) * np.log1p(-p))
    entropy = entr(q) + entr(1 - q)
    spread = q * (1 - q)
    found: dict[str, tuple[Floats | Mask, Mask, Floats | None]] = {
        # swap-averaged; then with the winner in each place, and right in both orders
        "accuracy": (cases.right, settled, best),
        "winner first": (winner_first, settled, best),
        "winner second": (winner_second, settled, best),
        "position swap": ((winner_first == 1) & (winner_second == 1), settled, best),
        "flip rate": (np.abs(_share(cases.first) - _share(cases.second)) == 1, everything, None),
        "order gap": (np.abs(cases.first - cases.second), everything, None),
        # share of all verdicts for the place shown first; without a bias one half
        "position bias": ((_share(cases.first) + 1 - _share(cases.second)) / 2, everything, None),
        "coverage": (cases.judged, everything, None),
        "accuracy of verdicts": (cases.right, settled & cases.judged, best),
        "abstention as miss": (cases.right * cases.judged, settled, best),
        "log loss": (losses, everything, entropy),  # nats, against the posterior
        "Brier": ((cases.p - q) ** 2 + spread, everything, spread),  # expected under the posterior
    }
    return {
        name: (
            np.asarray(row, np.float64),
            mask,
            float(bound[mask].mean()) if bound is not None and mask.any() else None,
        )
        for name, (row, mask, bound) in found.items()
    }


# ---- calibration ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bin:
    """Pairs of like confidence: the mean probability of the side held for better, and how often it is."""

    said: float
    truth: float
    n: int
    low: float | None = None
    high: float | None = None


def ece_floor(cases: Cases) -> float:
    """The calibration error that remains at this n where none is: residuals get random signs by product."""
    gap, bins = _gaps(cases)
    size = np.bincount(bins)
    middle = np.bincount(bins, weights=gap) / np.maximum(size, 1)
    few = size[bins] == 1  # a bin of one pair has no mean to take out
    residual = np.where(few, gap, gap - middle[bins])
    residual *= np.where(few, 1.0, np.sqrt(size / np.maximum(size - 1, 1))[bins])
    member, m = members(len(cases), cases.clusters)
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(SIGNS, m))
    drawn = [np.abs(np.bincount(bins, weights=residual * s[member])).sum() for s in signs]
    return float(np.mean(drawn)) / len(cases)


def reliability(cases: Cases) -> list[Bin]:
    """The bins of the ECE, least sure first, each with a bootstrap interval over products."""
    said, true, bins = _folded(cases)
    found = []
    for b in np.unique(bins):
        rows = bins == b
        one = mean_figure("", true[rows], cases.clusters[rows])
        found.append(Bin(float(said[rows].mean()), float(true[rows].mean()), one.n, one.low, one.high))
    return found


def _folded(cases: Cases) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """(n,) probability of the favoured side, posterior of that side, and the bin; A or B makes no odds."""
    said = np.asarray(np.round(np.maximum(cases.p, 1 - cases.p), 12), np.float64)  # p, 1 - p: one confidence
    true = np.where(cases.p > 0.5, cases.truth, np.where(cases.p < 0.5, 1 - cases.truth, 0.5))
    n = len(cases)
    _, place, size = np.unique(said, return_inverse=True, return_counts=True)
    middle = np.cumsum(size) - (size + 1) / 2  # mean rank of equal probabilities: they share a bin
    bins = min(BINS, max(1, n // LEAST))
    return said, true, (middle[place] * bins // n).astype(np.intp)


def _gaps(cases: Cases) -> tuple[Floats, NDArray[np.intp]]:
    said, true, bins = _folded(cases)
    return true - said, bins


# ---- risk and coverage ----------------------------------------------------------------------------------


def risk_coverage(cases: Cases) -> list[tuple[float, float]]:
    """(coverage, share of mistakes) after each level of confidence, surest first, of pairs with a winner."""
    settled = cases.take(cases.settled)
    if not len(settled):
        return []
    kept, wrong = _curve(*_equally_sure(settled), np.ones(len(settled)))
    return list(zip((kept[1:] / kept[-1]).tolist(), (wrong[1:] / kept[1:]).tolist(), strict=True))


def _equally_sure(cases: Cases) -> tuple[NDArray[np.intp], Floats]:
    """(n,) group of equal confidence of each row, surest first, and how wrong the row is."""
    # rounded, so that p and 1 - p are equally sure whatever the last bit says
    return np.unique(-np.round(np.abs(cases.p - 0.5), 12), return_inverse=True)[1], 1 - cases.right


def _curve(group: NDArray[np.intp], wrong: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """(groups + 1,) kept rows and expected mistakes among them, from none to all."""
    kept, mistakes = (np.bincount(group, weights=row) for row in (weights, weights * wrong))
    return np.append(0.0, np.cumsum(kept)), np.append(0.0, np.cumsum(mistakes))


def _surest(group: NDArray[np.intp], wrong: Floats, weights: Floats) -> list[float]:
    """The figures of `SUREST`; NaN without rows. Weights are whole numbers."""
    kept, mistakes = _curve(group, wrong, weights)
    total = round(kept[-1])
    if not total:
        return [math.nan] * len(SUREST)
    risk = np.interp(np.arange(1, total + 1), kept, mistakes) / np.arange(1, total + 1)
    ends = [max(1, math.ceil(round(c * total, 9))) for c in COVERAGES]
    return [float(risk.mean()), *(1 - float(risk[end - 1]) for end in ends)]


# ---- two selectors --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gap:
    """The paired difference in accuracy of two selectors, or of one under two interests."""

    ours: str
    theirs: str
    difference: float
    low: float | None
    high: float | None
    p: float | None  # two-sided, of the bootstrap over products
    mcnemar: float | None  # only where every pair is of another product, and no probability is one half
    discordant: float  # share of pairs that only one of them has right (mean squared difference)
    n: int
    needed: int | None  # pairs for 80 % power at the difference seen; None for no difference
    group: str = ""  # backends, interest
    part: str = ""


def gap(ours: Cases, theirs: Cases, names: tuple[str, str], group: str = "", part: str = "") -> Gap:
    """Accuracy of `ours` minus that of `theirs`. Raises ValueError unless they are of the same pairs."""
    _same_pairs(ours, theirs, names)
    ours, theirs = ours.take(ours.settled), theirs.take(theirs.settled)
    if not len(ours):
        raise ValueError("no pair has a winner")
    interval, p = significance.paired_means(ours.right, theirs.right, ours.clusters)
    found = from_interval("", interval)
    mcnemar = significance.mcnemar(ours.right, theirs.right) if found.clusters == found.n else None
    discordant = float(np.mean((ours.right - theirs.right) ** 2))
    needed = pairs_needed(abs(interval.value), discordant)
    return Gap(
        *names, interval.value, found.low, found.high, p, mcnemar, discordant, found.n, needed, group, part
    )


def paired(ours: Cases, theirs: Cases, names: tuple[str, str]) -> list[Figure]:
    """Disagreement of the orders and log loss, of all pairs, ours minus theirs; less is better of each.

    Raises ValueError as `gap` does.
    """
    _same_pairs(ours, theirs, names)
    if not len(ours):
        return []
    mine, other, note = _means(ours), _means(theirs), f"all pairs, minus that of {names[1]}"
    return [
        mean_figure(name, mine[name][0] - other[name][0], ours.clusters, note=note)
        for name in ("flip rate", "order gap", "log loss")
    ]


def _same_pairs(ours: Cases, theirs: Cases, names: tuple[str, str]) -> None:
    if not (np.array_equal(ours.ids, theirs.ids) and np.array_equal(ours.truth, theirs.truth)):
        raise ValueError(f"{names[0]} and {names[1]} did not judge the same pairs")


def pairs_needed(difference: float, discordant: float) -> int | None:
    """Independent pairs for McNemar's test at a level of 5 % to find `difference` with a power of 80 %.

    n = (z_{.975} √ψ + z_{.8} √(ψ - δ²))² / δ², with ψ = `discordant`, the share of pairs that only
    one of the two has right, and δ = `difference` (Miettinen, 1968; Connor, 1987). Pairs of one product say
    less than independent ones, so take it as the least. None for no difference.
    """
    if difference == 0:
        return None
    if not 0 < difference**2 <= discordant <= 1:
        raise ValueError(f"{discordant:.3g} discordant pairs cannot make a difference of {difference:.3g}")
    z, w = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf(0.8)
    root = z * math.sqrt(discordant) + w * math.sqrt(max(0.0, discordant - difference**2))
    return math.ceil((root / difference) ** 2)


def _right(p: Floats, truth: Floats) -> Floats:
    """1 on the winner's side, ½ at one half."""
    share = _share(p)
    return np.where(truth > 0.5, share, 1 - share)


def _share(p: Floats) -> Floats:
    """1 where A is favoured, 0 where B is, ½ for neither."""
    return (np.sign(p - 0.5) + 1) / 2


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan

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
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moonshelf.creatives.schema import Judgement
from moonshelf.evaluation.report.outcome import versus
from moonshelf.evaluation.statistics import significance
from moonshelf.evaluation.statistics.metrics import Floats, Interval, bootstrap, members

Mask = NDArray[np.bool_]

BINS = 10
LEAST = 10  # pairs in a bin, where there are as many
COVERAGES = (0.5, 0.7, 0.9)
CLIP = 1e-6  # probabilities are kept this far from 0 and 1, or one sure mistake would cost infinity
SIGNS = 200  # random signs behind the floor of the calibration error


@dataclass(frozen=True)
class Cases:
    """Judged pairs, one row each: what is known of their clicks, and what the selector said."""

    ids: tuple[str, ...]
    clusters: tuple[str, ...]  # product of the pair: its rows vary together
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
        return cls(
            ids=tuple(j.pair_id for j in judgements),
            clusters=tuple(clusters),
            truth=known,
            p=np.array([j.p for j in judgements], np.float64),
            first=np.array([j.p_first for j in judgements], np.float64),
            second=np.array([j.p_second for j in judgements], np.float64),
            judged=np.array([not j.abstained for j in judgements], bool),
        )

    def __post_init__(self) -> None:
        # One rounding step off a half, p and 1 - p would fall on different sides of it.
        for name in ("truth", "p", "first", "second"):
            object.__setattr__(self, name, np.round(getattr(self, name), 12))

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: ArrayLike) -> Cases:
        """Those of a mask or a list of row numbers."""
        chosen = np.arange(len(self))[np.asarray(rows)].tolist()
        return Cases(
            ids=tuple(self.ids[i] for i in chosen),
            clusters=tuple(self.clusters[i] for i in chosen),
            truth=self.truth[chosen],
            p=self.p[chosen],
            first=self.first[chosen],
            second=self.second[chosen],
            judged=self.judged[chosen],
        )

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


@dataclass(frozen=True)
class Figure:
    """One figure; `bound` is what nobody can beat on these pairs (a ceiling, or a floor of a loss)."""

    name: str
    value: float | None  # None where it is not defined for these pairs
    low: float | None = None  # bootstrap interval over products, 95 %; None with one product
    high: float | None = None
    n: int = 0  # pairs that it counts
    clusters: int = 0
    bound: float | None = None
    note: str = ""


# name, what it says; in the order of the tables
NAMES: dict[str, str] = {
    "accuracy": "swap-averaged accuracy",
    "winner first": "accuracy with the winner shown first",
    "winner second": "accuracy with the winner shown second",
    "position swap": "right in both orders",
    "flip rate": "pairs whose winner changes with the order",
    "order gap": "distance between the probabilities of the two orders, mean",
    "position bias": "share of all verdicts for the place shown first (none: 50)",
    "coverage": "pairs with a verdict",
    "accuracy of verdicts": "accuracy where it did not abstain",
    "abstention as miss": "accuracy with every abstention counted as wrong",
    "log loss": "log loss against the posterior, nats",
    "Brier": "expected Brier score under the posterior",
    "ECE": "calibration error, bins of equal mass",
    "AURC": "area under the risk-coverage curve",
    **{f"accuracy@{c:.0%}": f"accuracy on the surest {c:.0%}" for c in COVERAGES},
}
PAIRED = ("flip rate", "order gap", "log loss")  # of every pair, so that two selectors are compared by each


def figures(cases: Cases, *, seed: int = 0) -> list[Figure]:
    """Every figure of `NAMES`, each with its interval; [] for no pair."""
    if not len(cases):
        return []
    statistic, counted, bounds = _statistic(cases)
    value, resampled, clusters = significance.resample(statistic, len(cases), cases.clusters, seed=seed)
    found = []
    for i, name in enumerate(NAMES):
        n, bound = int(counted[name].sum()), bounds.get(name)
        if not math.isfinite(value[i]):
            found.append(Figure(name, None, n=n, note="no pair of this kind"))
            continue
        one = significance.intervals(value[i : i + 1], resampled[:, i : i + 1], n, clusters)[0]
        found.append(from_interval(name, one, bound))
    return found


def values(cases: Cases) -> dict[str, float | None]:
    """The figures of `NAMES` without their intervals; None for what is not defined."""
    if not len(cases):
        return dict.fromkeys(NAMES)
    found = _statistic(cases)[0](None).tolist()
    return {name: v if math.isfinite(v) else None for name, v in zip(NAMES, found, strict=True)}


def mean_figure(
    name: str,
    values: ArrayLike,
    clusters: Sequence[str],
    *,
    bound: float | None = None,
    note: str = "",
    seed: int = 0,
) -> Figure:
    """The mean of some rows' own values as a figure; without a value where there is no row."""
    value = np.asarray(values, np.float64)
    if not len(value):
        return Figure(name, None, note=note or "no pair of this kind")
    return from_interval(name, bootstrap(value, clusters, seed=seed), bound, note)


def from_interval(name: str, one: Interval, bound: float | None = None, note: str = "") -> Figure:
    """A figure from a bootstrap interval; ends that are not defined are None."""
    low, high = (end if math.isfinite(end) else None for end in (one.low, one.high))
    return Figure(name, one.value, low, high, one.n, one.clusters, bound, note)


def _means(cases: Cases) -> dict[str, tuple[Floats, Mask]]:
    """The figures that are a mean: each row's value, and which rows count."""
    settled, everything = cases.settled, np.ones(len(cases), bool)
    wins_a = cases.truth > 0.5
    right_first, right_second = _right(cases.first, cases.truth), _right(cases.second, cases.truth)
    winner_first = np.where(wins_a, right_first, right_second)
    winner_second = np.where(wins_a, right_second, right_first)
    p, q = np.clip(cases.p, CLIP, 1 - CLIP), cases.truth
    losses = -(q * np.log(p) + (1 - q) * np.log1p(-p))
    brier = (cases.p - q) ** 2 + q * (1 - q)
    means: dict[str, tuple[Floats | Mask, Mask]] = {
        "accuracy": (cases.right, settled),
        "winner first": (winner_first, settled),
        "winner second": (winner_second, settled),
        "position swap": ((winner_first == 1) & (winner_second == 1), settled),
        "flip rate": (np.abs(_share(cases.first) - _share(cases.second)) == 1, everything),
        "order gap": (np.abs(cases.first - cases.second), everything),
        "position bias": ((_share(cases.first) + 1 - _share(cases.second)) / 2, everything),
        "coverage": (cases.judged, everything),
        "accuracy of verdicts": (cases.right, settled & cases.judged),
        "abstention as miss": (cases.right * cases.judged, settled),
        "log loss": (losses, everything),
        "Brier": (brier, everything),
    }
    return {name: (values.astype(np.float64), mask) for name, (values, mask) in means.items()}


def _statistic(cases: Cases) -> tuple[significance.Statistic, dict[str, Mask], dict[str, float]]:
    """The figures as a function of row weights, which rows each counts, and their bounds."""
    settled, everything, q = cases.settled, np.ones(len(cases), bool), cases.truth
    means = _means(cases)
    numbers = {name: values for name, (values, _) in means.items()}
    counted = {name: mask for name, (_, mask) in means.items()}
    counted |= {"ECE": everything} | {
        name: settled for name in NAMES if name not in counted and name != "ECE"
    }
    sure = _Sure.of(cases.take(settled))
    gap, bins = _gaps(cases)

    def statistic(weights: Floats | None) -> Floats:
        w = np.ones(len(cases)) if weights is None else weights
        found = [
            _ratio(float((w * numbers[name])[mask].sum()), float(w[mask].sum()))
            for name, mask in counted.items()
            if name in numbers
        ]
        error = np.abs(np.bincount(bins, weights=w * gap)).sum()
        return np.array([*found, _ratio(float(error), float(w.sum())), *sure.figures(w[settled])])

    entropy = -sum(_xlogx(side) for side in (q, 1 - q))
    best = cases.knowable
    bounds = {"log loss": float(np.mean(entropy)), "Brier": float(np.mean(q * (1 - q)))}
    bounds["ECE"] = ece_floor(cases)
    if settled.any():
        for name in (
            "accuracy",
            "winner first",
            "winner second",
            "position swap",
            "abstention as miss",
        ):
            bounds[name] = float(best[settled].mean())
        if (kept := settled & cases.judged).any():
            bounds["accuracy of verdicts"] = float(best[kept].mean())
        order = np.sort(best[settled])[::-1]  # the best selector is surest where the posterior is
        for c in COVERAGES:
            bounds[f"accuracy@{c:.0%}"] = float(order[: _kept(len(order), c)].mean())
        bounds["AURC"] = float(np.mean(1 - np.cumsum(order) / np.arange(1, len(order) + 1)))
    return statistic, counted, bounds


# ---- calibration ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bin:
    """Pairs of like confidence: the mean probability of the side held for better, and how often it is."""

    said: float
    truth: float
    n: int
    low: float | None = None
    high: float | None = None


def ece(cases: Cases) -> float:
    """Mean distance between what is said and what is true, over bins of equal mass."""
    gap, bins = _gaps(cases)
    return float(np.abs(np.bincount(bins, weights=gap)).sum() / len(cases))


def ece_floor(cases: Cases, *, seed: int = 0) -> float:
    """The calibration error that remains at this n where none is: residuals get random signs by product."""
    said, true, bins = _folded(cases)
    size = np.bincount(bins)
    middle = np.bincount(bins, weights=true - said) / np.maximum(size, 1)
    few = size[bins] == 1  # a bin of one pair has no mean to take out
    residual = np.where(few, true - said, true - said - middle[bins])
    residual *= np.where(few, 1.0, np.sqrt(size / np.maximum(size - 1, 1))[bins])
    member, m = members(len(cases), cases.clusters)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(SIGNS, m))
    drawn = [np.abs(np.bincount(bins, weights=residual * s[member])).sum() for s in signs]
    return float(np.mean(drawn)) / len(cases)


def reliability(cases: Cases) -> list[Bin]:
    """The bins of `ece`, least sure first, each with a bootstrap interval over products."""
    said, true, bins = _folded(cases)
    found = []
    for b in np.unique(bins):
        rows = bins == b
        one = mean_figure("", true[rows], [c for c, kept in zip(cases.clusters, rows, strict=True) if kept])
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


@dataclass(frozen=True)
class _Sure:
    """Rows in groups of equal confidence, surest first."""

    group: NDArray[np.intp]  # of each row
    wrong: Floats
    groups: int

    @classmethod
    def of(cls, cases: Cases) -> _Sure:
        # rounded, so that p and 1 - p are equally sure whatever the last bit says
        levels, place = np.unique(-np.round(np.abs(cases.p - 0.5), 12), return_inverse=True)
        return cls(place, 1 - cases.right, len(levels))

    def curve(self, weights: Floats) -> tuple[Floats, Floats]:
        """(groups + 1,) kept rows and expected mistakes among them, from none to all."""
        kept = np.bincount(self.group, weights=weights, minlength=self.groups)
        wrong = np.bincount(self.group, weights=weights * self.wrong, minlength=self.groups)
        return np.append(0.0, np.cumsum(kept)), np.append(0.0, np.cumsum(wrong))

    def figures(self, weights: Floats) -> list[float]:
        """AURC, then accuracy at `COVERAGES`; NaN without rows. Weights are whole numbers."""
        kept, wrong = self.curve(weights)
        total = round(kept[-1])
        if not total:
            return [math.nan] * (1 + len(COVERAGES))
        at = np.arange(1, total + 1)
        risk = np.interp(at, kept, wrong) / at
        return [float(risk.mean()), *(1 - float(risk[_kept(total, c) - 1]) for c in COVERAGES)]


def risk_coverage(cases: Cases) -> list[tuple[float, float]]:
    """(coverage, share of mistakes) after each level of confidence, surest first, of pairs with a winner."""
    settled = cases.take(cases.settled)
    if not len(settled):
        return []
    kept, wrong = _Sure.of(settled).curve(np.ones(len(settled)))
    return list(zip((kept[1:] / kept[-1]).tolist(), (wrong[1:] / kept[1:]).tolist(), strict=True))


# ---- two selectors --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gap:
    """The paired difference of two selectors in accuracy, and how many pairs would show it."""

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


def gap(ours: Cases, theirs: Cases, names: tuple[str, str]) -> Gap:
    """Accuracy of `ours` minus that of `theirs`. Raises ValueError unless they are of the same pairs."""
    _same_pairs(ours, theirs, names)
    ours, theirs = ours.take(ours.settled), theirs.take(theirs.settled)
    if not len(ours):
        raise ValueError("no pair has a winner")
    found = versus(ours.right.tolist(), theirs.right.tolist(), ours.clusters, names[1])
    discordant = float(np.mean((ours.right - theirs.right) ** 2))
    needed = pairs_needed(abs(found.difference), discordant)
    return Gap(
        *names, found.difference, found.low, found.high, found.p, found.mcnemar, discordant, len(ours), needed
    )


def paired(ours: Cases, theirs: Cases, names: tuple[str, str]) -> list[Figure]:
    """The figures of `PAIRED`, ours minus theirs; less is better of each. Raises ValueError as `gap` does."""
    _same_pairs(ours, theirs, names)
    if not len(ours):
        return []
    mine, other = _means(ours), _means(theirs)
    note = f"all pairs, minus that of {names[1]}"
    return [mean_figure(name, mine[name][0] - other[name][0], ours.clusters, note=note) for name in PAIRED]


def _same_pairs(ours: Cases, theirs: Cases, names: tuple[str, str]) -> None:
    if ours.ids != theirs.ids or not np.array_equal(ours.truth, theirs.truth):
        raise ValueError(f"{names[0]} and {names[1]} did not judge the same pairs")


def pairs_needed(
    difference: float, discordant: float, *, power: float = 0.8, level: float = 0.05
) -> int | None:
    """Independent pairs for McNemar's test to find `difference` in accuracy with that power.

    n = (z_{1-level/2} √ψ + z_{power} √(ψ - δ²))² / δ², with ψ = `discordant`, the share of pairs that only
    one of the two has right, and δ = `difference` (Miettinen, 1968; Connor, 1987). Pairs of one product say
    less than independent ones, so take it as the least. None for no difference.
    """
    if difference == 0:
        return None
    if not 0 < difference**2 <= discordant <= 1:
        raise ValueError(f"{discordant:.3g} discordant pairs cannot make a difference of {difference:.3g}")
    z, w = NormalDist().inv_cdf(1 - level / 2), NormalDist().inv_cdf(power)
    root = z * math.sqrt(discordant) + w * math.sqrt(max(0.0, discordant - difference**2))
    return math.ceil((root / difference) ** 2)


def _right(p: Floats, truth: Floats) -> Floats:
    """1 on the winner's side, ½ at one half."""
    share = _share(p)
    return np.where(truth > 0.5, share, 1 - share)


def _share(p: Floats) -> Floats:
    """1 where A is favoured, 0 where B is, ½ for neither."""
    return (np.sign(p - 0.5) + 1) / 2


def _kept(rows: int, coverage: float) -> int:
    return max(1, math.ceil(round(coverage * rows, 9)))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _xlogx(x: Floats) -> Floats:
    return np.where(x > 0, x * np.log(np.maximum(x, 1e-300)), 0.0)

"""How sure a figure is, and whether two encoders differ on the same rows.

Whole clusters are drawn (rows of one product, or of one query, vary together), the same draws for both sides
of a comparison: the difference is paired. With a single cluster nothing can be said about the spread: the
ends of an interval are then nan. Choices: the two-sided p is twice the smaller share of resampled
differences on either side of zero, at most 1, counted with the observed one so that it is never 0: it falls
below 0.05 where the 95 % interval of the difference leaves zero out. McNemar's exact test is given beside
where it fits, for 0/1 values of rows that are independent. Marks are not corrected for how many figures are
compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from moonshelf.evaluation.statistics.metrics import Floats, Ints

RESAMPLES = 1000
Statistic = Callable[[Floats | None], Floats]  # row weights, None for 1 each -> (figures,)


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % percentile interval, over `n` values in `clusters` independent groups."""

    value: float
    low: float
    high: float
    n: int
    clusters: int


def bootstrap(values: ArrayLike, clusters: Sequence[str] | None = None, *, seed: int = 0) -> Interval:
    """The mean of the rows' own values; without names of `clusters` each row is its own."""
    return _mean(_checked(values), clusters, seed)[0]


def paired_means(
    ours: ArrayLike, theirs: ArrayLike, clusters: Sequence[str] | None = None, *, seed: int = 0
) -> tuple[Interval, float | None]:
    """Mean of `ours - theirs` with its interval, and p; p is None with a single cluster."""
    left, right = _same_rows(ours, theirs)
    found, resampled = _mean(left - right, clusters, seed)
    return found, two_sided(resampled)


def resample(
    statistic: Statistic, rows: int, clusters: Sequence[str] | None = None, *, seed: int = 0
) -> tuple[list[Interval], Floats]:
    """The figures of a statistic that is no mean, and its values (resamples, figures) over drawn clusters.

    Of the same rows and clusters, every statistic sees the same draws.
    """
    member, m = members(rows, clusters)
    value, blocks = statistic(None), draws(m, RESAMPLES, seed)
    found = [statistic(row[member].astype(float)) for block in blocks for row in block]
    resampled = np.array(found).reshape(-1, len(value))
    return [interval(one, resampled[:, i], rows, m) for i, one in enumerate(value)], resampled


def interval(value: float, resampled: Floats, rows: int, clusters: int) -> Interval:
    """Of one figure from its draws; those in which it is undefined are left out."""
    defined = resampled[np.isfinite(resampled)]
    low, high = np.quantile(defined, [0.025, 0.975]) if len(defined) else (math.nan, math.nan)
    return Interval(float(value), float(low), float(high), rows, clusters)


def two_sided(differences: Floats) -> float | None:
    """p of resampled differences; None if there are none."""
    defined = differences[np.isfinite(differences)]
    side = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(defined) + 1)) if len(defined) else None


def mcnemar(ours: ArrayLike, theirs: ArrayLike) -> float | None:
    """Two-sided p that both are right equally often, from rows where one is; None unless all are 0 or 1."""
    left, right = _same_rows(ours, theirs)
    if not (np.isin(left, (0, 1)).all() and np.isin(right, (0, 1)).all()):
        return None
    better, worse = int((left > right).sum()), int((left < right).sum())
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def members(rows: int, clusters: Sequence[str] | None) -> tuple[NDArray[np.intp], int]:
    """The cluster of each row as a number, and how many there are; without names each row is its own."""
    if clusters is None:
        return np.arange(rows), rows
    if len(clusters) != rows:
        raise ValueError(f"{rows} values but {len(clusters)} cluster names")
    names, member = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    return member, len(names)


def draws(clusters: int, resamples: int, seed: int) -> Iterator[Ints]:
    """How often each cluster is drawn, in blocks (some resamples, clusters); the same for the same seed.

    None of a single cluster.
    """
    rng = np.random.default_rng(seed)
    step = max(1, 4_000_000 // clusters)  # bounds the memory of the draws to 32 MB
    for start in range(0, resamples if clusters > 1 else 0, step):
        yield rng.multinomial(clusters, np.full(clusters, 1.0 / clusters), size=min(step, resamples - start))


def _mean(value: Floats, clusters: Sequence[str] | None, seed: int) -> tuple[Interval, Floats]:
    """A mean with its interval, and its draws (resamples,)."""
    member, m = members(len(value), clusters)
    total, count = np.bincount(member, weights=value), np.bincount(member)
    means = [(drawn @ total) / (drawn @ count) for drawn in draws(m, RESAMPLES, seed)]
    resampled = np.concatenate([*means, np.empty(0)])
    return interval(value.mean(), resampled, len(value), m), resampled


def _same_rows(ours: ArrayLike, theirs: ArrayLike) -> tuple[Floats, Floats]:
    left, right = _checked(ours), _checked(theirs)
    if len(left) != len(right):
        raise ValueError(f"{len(left)} values against {len(right)}: the two are not of the same rows")
    return left, right


def _checked(values: ArrayLike) -> Floats:
    """One finite value a row, at least one of them; else ValueError."""
    value = np.asarray(values, np.float64)
    if value.ndim != 1 or not len(value):
        raise ValueError("a mean needs at least one value")
    if not np.isfinite(value).all():
        raise ValueError("the values to average are not all finite")
    return value

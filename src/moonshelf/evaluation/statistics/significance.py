"""How sure a figure is, and whether two encoders differ on the same rows.

Whole clusters are drawn (rows of one product, or of one query, vary together), the same draws for both sides
of a comparison: the difference is paired. Choices: the two-sided p is twice the smaller share of resampled
differences on either side of zero, at most 1, counted with the observed one so that it is never 0: it falls
below 0.05 where the 95 % interval of the difference leaves zero out. McNemar's exact test is given beside
where it fits, for 0/1 values of rows that are independent. Marks are not corrected for how many figures are
compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from moonshelf.evaluation.statistics.metrics import (
    Floats,
    Interval,
    checked_values,
    draws,
    members,
    resampled_means,
)

RESAMPLES = 1000
Statistic = Callable[[Floats | None], Floats]  # row weights, None for 1 each -> (figures,)


def paired_means(
    ours: ArrayLike, theirs: ArrayLike, clusters: Sequence[str] | None = None, *, seed: int = 0
) -> tuple[Interval, float | None]:
    """Mean of `ours - theirs` with its interval, and p; p is None with a single cluster."""
    left, right = checked_values(ours), checked_values(theirs)
    if len(left) != len(right):
        raise ValueError(f"{len(left)} values against {len(right)}: the two are not of the same rows")
    difference = left - right
    member, m = members(len(difference), clusters)
    mean = float(difference.mean())
    if m == 1:
        return Interval(mean, math.nan, math.nan, len(left), 1), None
    resampled = resampled_means(difference, member, m, RESAMPLES, seed)
    return _interval(mean, resampled, len(left), m), _two_sided(resampled)


def resample(
    statistic: Statistic, rows: int, clusters: Sequence[str] | None = None, *, seed: int = 0
) -> tuple[Floats, Floats, int]:
    """A statistic (figures,), its values (resamples, figures) over drawn clusters, and their number.

    Of the same rows and clusters, every statistic sees the same draws.
    """
    member, m = members(rows, clusters)
    value = statistic(None)
    if m == 1:
        return value, np.empty((0, len(value))), 1
    blocks = draws(m, RESAMPLES, seed)
    return value, np.array([statistic(row[member].astype(float)) for block in blocks for row in block]), m


def intervals(value: Floats, resampled: Floats, rows: int, clusters: int) -> list[Interval]:
    """One interval a figure, from what `resample` gives; draws in which it is undefined are left out."""
    if not len(resampled):
        return [Interval(float(one), math.nan, math.nan, rows, clusters) for one in value]
    return [_interval(float(one), resampled[:, i], rows, clusters) for i, one in enumerate(value)]


def two_sided(differences: Floats) -> float | None:
    """p of resampled differences; None if there are none."""
    defined = differences[np.isfinite(differences)]
    return _two_sided(defined) if len(defined) else None


def mcnemar(ours: ArrayLike, theirs: ArrayLike) -> float | None:
    """Two-sided p that both are right equally often, from rows where one is; None unless all are 0 or 1."""
    left, right = checked_values(ours), checked_values(theirs)
    if len(left) != len(right):
        raise ValueError(f"{len(left)} values against {len(right)}: the two are not of the same rows")
    if not (np.isin(left, (0, 1)).all() and np.isin(right, (0, 1)).all()):
        return None
    better, worse = int((left > right).sum()), int((left < right).sum())
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _interval(value: float, resampled: Floats, rows: int, clusters: int) -> Interval:
    defined = resampled[np.isfinite(resampled)]
    if not len(defined):
        return Interval(value, math.nan, math.nan, rows, clusters)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Interval(value, float(low), float(high), rows, clusters)


def _two_sided(differences: Floats) -> float:
    n = len(differences)
    side = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (n + 1))

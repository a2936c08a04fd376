"""Ranks from dense scores, for studies and tests on small matrices; a run searches in blocks instead."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moonshelf.evaluation.statistics.metrics import Floats, Ranks, places


def ranks_of(scores: ArrayLike, gains: ArrayLike) -> Ranks:
    """From `scores` and `gains` (queries, corpus). Raises ValueError for what has no ranking."""
    score, gain = _checked(scores, gains)
    query, column = np.nonzero(gain > 0)
    above, tied, _ = places(score, query, column)
    return Ranks(query, gain[query, column], above, tied, score.shape[1])


def _checked(scores: ArrayLike, gains: ArrayLike) -> tuple[Floats, Floats]:
    score, gain = np.asarray(scores, np.float64), np.asarray(gains, np.float64)
    if score.ndim != 2 or score.shape != gain.shape:
        raise ValueError(f"scores {score.shape} and gains {gain.shape} must be one (queries, corpus) shape")
    if not score.shape[1]:
        raise ValueError("the corpus is empty")
    if np.isnan(score).any():
        raise ValueError("a score is not a number")
    if (gain < 0).any() or not np.isfinite(gain).all():
        raise ValueError("gains must be finite and not negative")
    without = np.flatnonzero(~(gain > 0).any(axis=1))
    if len(without):
        raise ValueError(f"query {without[0]} of the block has no relevant item in the corpus")
    return score, gain

"""Ranking and label metrics on score blocks, and bootstrap intervals; numpy only, all in float64.

Choices: every function takes one block of queries, `scores` (q, g) and `gains` (q, g) with 0 for "not
relevant", and returns one value a query, so that a large evaluation streams over blocks. **Ties**: a
value is its expectation over a uniformly random order of the tied items; so a model that gives every
item the same score gets exactly the chance level, which is also how the chance level is computed.
`similarity` rounds to 9 decimals first, because a matrix product may give two equal vectors scores that
differ in the last bit, and such a difference is no ranking.
R@k is the hit rate (a relevant item among the first k), as it is reported for one-of-a-kind retrieval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

TIE_DECIMALS = 9  # float32 vectors carry about 7: closer scores are equal


def similarity(queries: ArrayLike, gallery: ArrayLike) -> Floats:
    """Inner products (q, g) in float64, rounded so that equal vectors tie."""
    left, right = np.asarray(queries, np.float64), np.asarray(gallery, np.float64)
    return np.round(left @ right.T, TIE_DECIMALS)


def hit_at_k(scores: ArrayLike, gains: ArrayLike, k: int) -> Floats:
    """(q,) probability that one of the first `k` items is relevant, over random orders of ties."""
    above, tied, relevant = _best_tie(scores, gains)
    slots = np.clip(k - above, 0, tied)
    return np.array([1.0 - _miss(*row) for row in zip(tied, relevant, slots, strict=True)])


def reciprocal_rank(scores: ArrayLike, gains: ArrayLike) -> Floats:
    """(q,) expectation of 1 / rank of the first relevant item."""
    above, tied, relevant = _best_tie(scores, gains)
    return np.array([_expected_reciprocal(*row) for row in zip(above, tied, relevant, strict=True)])


def ndcg_at_k(scores: ArrayLike, gains: ArrayLike, k: int) -> Floats:
    """(q,) nDCG with linear gains and 1/log2(rank + 1); tied items share the mean gain of their tie.

    The mean over a tie is the exact expectation, because DCG is linear in the gains (McSherry and
    Najork, ECIR 2008).
    """
    score, gain = _checked(scores, gains)
    order = np.argsort(-score, axis=1, kind="stable")
    ranked_gain = np.take_along_axis(gain, order, axis=1)
    ranked_score = np.take_along_axis(score, order, axis=1)
    n = score.shape[1]
    discount = np.zeros(n)
    discount[: min(k, n)] = 1.0 / np.log2(np.arange(min(k, n)) + 2.0)
    # number the ties of all rows through, then average the gains within each
    new = np.ones_like(ranked_score, dtype=bool)
    new[:, 1:] = ranked_score[:, 1:] != ranked_score[:, :-1]
    tie = np.cumsum(new.ravel()) - 1
    mean = np.bincount(tie, weights=ranked_gain.ravel()) / np.bincount(tie)
    dcg = (mean[tie].reshape(score.shape) * discount).sum(axis=1)
    ideal = (-np.sort(-gain, axis=1) * discount).sum(axis=1)
    return dcg / ideal


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its bootstrap interval, over `n` values in `clusters` independent groups."""

    value: float
    low: float
    high: float
    n: int
    clusters: int


def bootstrap(
    values: ArrayLike,
    clusters: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean and percentile interval, resampling whole clusters (rows of one product vary together).

    With a single cluster nothing can be said about the spread: the interval is then [nan, nan].
    """
    value = np.asarray(values, np.float64)
    if value.ndim != 1 or not len(value):
        raise ValueError("a mean needs at least one value")
    if not np.isfinite(value).all():
        raise ValueError("the values to average are not all finite")
    if clusters is None:
        member: NDArray[np.intp] = np.arange(len(value))
    else:
        if len(clusters) != len(value):
            raise ValueError(f"{len(value)} values but {len(clusters)} cluster names")
        _, member = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    total = np.bincount(member, weights=value)
    count = np.bincount(member)
    m = len(total)
    if m == 1:
        return Interval(float(value.mean()), math.nan, math.nan, len(value), 1)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, 4_000_000 // m)  # bounds the memory of the draws to 32 MB
    for start in range(0, resamples, step):
        draws = rng.multinomial(m, np.full(m, 1.0 / m), size=min(step, resamples - start))
        means[start : start + len(draws)] = (draws @ total) / (draws @ count)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value.mean()), float(low), float(high), len(value), m)


def knn_scores(queries: ArrayLike, fitted: ArrayLike, labels: ArrayLike, n_labels: int, k: int = 5) -> Floats:
    """(q, n_labels) similarity-weighted votes of the `k` nearest fitted rows, each row of known label.

    A tie at the k-th place goes to the earlier row: votes, unlike ranks, need a fixed set of voters.
    """
    sims = similarity(queries, fitted)
    label = np.asarray(labels, np.int64)
    votes = np.zeros((len(sims), n_labels))
    nearest = np.argsort(-sims, axis=1, kind="stable")[:, :k]
    rows = np.repeat(np.arange(len(sims)), nearest.shape[1])
    weight = 1.0 + np.take_along_axis(sims, nearest, axis=1).ravel()  # in [0, 2]: never negative
    np.add.at(votes, (rows, label[nearest].ravel()), weight)
    return np.round(votes, TIE_DECIMALS)


def centroid_scores(queries: ArrayLike, fitted: ArrayLike, labels: ArrayLike, n_labels: int) -> Floats:
    """(q, n_labels) cosine to the mean vector of each label; a label without rows scores -2."""
    vectors, label = np.asarray(fitted, np.float64), np.asarray(labels, np.int64)
    centre = np.zeros((n_labels, vectors.shape[1]))
    np.add.at(centre, label, vectors)
    norm = np.linalg.norm(centre, axis=1, keepdims=True)
    scores = similarity(queries, centre / np.where(norm > 0, norm, 1.0))
    scores[:, norm[:, 0] == 0] = -2.0
    return scores


def _checked(scores: ArrayLike, gains: ArrayLike) -> tuple[Floats, Floats]:
    score, gain = np.asarray(scores, np.float64), np.asarray(gains, np.float64)
    if score.ndim != 2 or score.shape != gain.shape:
        raise ValueError(f"scores {score.shape} and gains {gain.shape} must be one (queries, gallery) shape")
    if not score.shape[1]:
        raise ValueError("the gallery is empty")
    if np.isnan(score).any():
        raise ValueError("a score is not a number")
    if (gain < 0).any() or not np.isfinite(gain).all():
        raise ValueError("gains must be finite and not negative")
    without = np.flatnonzero(~(gain > 0).any(axis=1))
    if len(without):
        raise ValueError(f"query {without[0]} of the block has no relevant item in the gallery")
    return score, gain


def _best_tie(scores: ArrayLike, gains: ArrayLike) -> tuple[NDArray[np.int64], ...]:
    """Per query: items above the best relevant one, items tied with it, relevant ones among those."""
    score, gain = _checked(scores, gains)
    relevant = gain > 0
    best = np.where(relevant, score, -np.inf).max(axis=1, keepdims=True)
    tied = score == best
    return (score > best).sum(axis=1), tied.sum(axis=1), (tied & relevant).sum(axis=1)


@lru_cache(maxsize=65536)
def _miss(tied: int, relevant: int, slots: int) -> float:
    """Probability that `slots` of `tied` items, drawn without replacement, hold none of the relevant."""
    return math.comb(int(tied - relevant), int(slots)) / math.comb(int(tied), int(slots))


@lru_cache(maxsize=65536)
def _expected_reciprocal(above: int, tied: int, relevant: int) -> float:
    above, tied, relevant = int(above), int(tied), int(relevant)
    ways = math.comb(tied, relevant)
    return sum(math.comb(tied - j, relevant - 1) / ways / (above + j) for j in range(1, tied - relevant + 2))

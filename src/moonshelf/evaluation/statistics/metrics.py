"""Metrics of rankings, labels and pairs; numpy only, all in float64.

Choices: a ranking metric takes `Ranks`, the places of the relevant items, and returns one value a query;
places come from dense scores, from exact search in blocks, or from kept predictions. **Ties**: a value is
its expectation over a uniformly random order of the tied items; so a model that gives every item the same
score gets exactly the chance level, which is also how the chance level is computed. `similarity` rounds to 9
decimals first, because a matrix product may give two equal vectors scores that differ in the last bit, and
such a difference is no ranking. R@k, or hit@k, is the hit rate (a relevant item among the first k), as it is
reported for one-of-a-kind retrieval. nDCG counts grades; the others take every item of a gain above 0.

Figures that are no mean over rows are functions of row weights: a bootstrap draws rows again by giving them
weights. Macro figures are over the labels that the truth or the predictions hold, as scikit-learn has it; a
label that ties with others at the top is predicted with its share. Average precision and ROC-AUC of pairs are
threshold figures, so tied scores are passed at once (AUC: half each), as in scikit-learn; that of a constant
score is the share of positives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SCORES = 4_000_000  # of a block of queries: 32 MB, and as much again to round them
MACRO = ("macro precision", "macro recall", "macro F1")
TIE_DECIMALS = 9  # float32 vectors carry about 7: closer scores are equal


def similarity(queries: ArrayLike, corpus: ArrayLike) -> Floats:
    """Inner products (q, g) in float64, rounded so that equal vectors tie."""
    left, right = np.asarray(queries, np.float64), np.asarray(corpus, np.float64)
    return np.round(left @ right.T, TIE_DECIMALS)


@dataclass(frozen=True)
class Ranks:
    """Places of the relevant items of some queries: one entry an item, `query` ascending, gains above 0.

    With the size of the corpus, this is all that a ranking metric needs, ties included.
    """

    query: Ints  # 0 ... queries - 1, each at least once
    gain: Floats
    above: Ints  # items with a strictly higher score
    tied: Ints  # items with just this score, itself among them
    corpus: int

    def at_least(self, gain: float) -> Ranks:
        """Only the items of at least this gain. Raises ValueError if a query loses all of them."""
        keep = self.gain >= gain
        kept = Ranks(self.query[keep], self.gain[keep], self.above[keep], self.tied[keep], self.corpus)
        if len(np.unique(kept.query)) < len(np.unique(self.query)):
            raise ValueError(f"a query has no item of gain {gain}")
        return kept

    def shuffled(self) -> Ranks:
        """The same queries with all items tied: any metric of it is that of a random order."""
        nowhere = np.zeros_like(self.above)
        return Ranks(self.query, self.gain, nowhere, np.full_like(self.tied, self.corpus), self.corpus)


@dataclass(frozen=True)
class Found:
    """What `search` finds: `top` and `top_scores` (q, k), k at most the corpus; the rest a value an item."""

    top: Ints  # columns of the corpus, best first, ties in its order
    top_scores: Floats
    scores: Floats
    above: Ints  # items with a strictly higher score
    tied: Ints  # items with just this score, itself among them


def search(
    queries: NDArray, corpus: NDArray, rows: Ints, columns: Ints, k: int = 10, there: NDArray | None = None
) -> Found:
    """Exact search for `queries` (q, d) in `corpus` (g, d); item `columns[i]` is placed for query `rows[i]`.

    `rows` ascend. Scores are inner products in float64, a block of queries at a time; that of an item which
    is not `there` (g,) is -inf. Raises ValueError for an empty corpus, or vectors that do not fit or are not
    finite.
    """
    if queries.ndim != 2 or corpus.ndim != 2 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(f"queries {queries.shape} and corpus {corpus.shape} must be (n, dim) of one dim")
    if not len(corpus):
        raise ValueError("the corpus is empty")
    if not (np.isfinite(queries).all() and np.isfinite(corpus).all()):
        raise ValueError("a vector is not finite")
    k, wide = min(k, len(corpus)), corpus.astype(np.float64)
    top, top_scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
    scores, above, tied = np.empty(len(rows)), np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    step = max(1, SCORES // len(corpus))
    for start in range(0, len(queries), step):
        block = similarity(queries[start : start + step], wide)
        if there is not None:
            block[:, ~there] = -np.inf
        part = slice(*np.searchsorted(rows, [start, start + step]))
        scores[part] = block[rows[part] - start, columns[part]]
        above[part], tied[part], bound = places(block, rows[part] - start, columns[part], k)
        for row, score in enumerate(block):
            best = np.flatnonzero(score >= bound[row])  # the first k, and what ties with the last of them
            best = best[np.argsort(-score[best], kind="stable")[:k]]
            top[start + row], top_scores[start + row] = best, score[best]
    return Found(top, top_scores, scores, above, tied)


def places(score: Floats, rows: Ints, columns: Ints, k: int = 1) -> tuple[Ints, Ints, Floats]:
    """Of items of dense scores (q, g), `rows` ascending: how many are above, how many tie; and each row's
    `k`-th best score."""
    above, tied = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    bound = np.empty(len(score))
    parts = np.searchsorted(rows, np.arange(len(score) + 1))
    for row in range(len(score)):
        part = slice(parts[row], parts[row + 1])
        ranked, own = np.sort(score[row]), score[row, columns[part]]
        right = np.searchsorted(ranked, own, "right")
        above[part], tied[part] = len(ranked) - right, right - np.searchsorted(ranked, own, "left")
        bound[row] = ranked[-k]
    return above, tied, bound


def pair_scores(queries: NDArray, corpus: NDArray, rows: Ints, columns: Ints) -> Floats:
    """(n,) inner products of pairs of rows in float64, rounded so that equal vectors tie."""
    left, right = queries[rows].astype(np.float64), corpus[columns].astype(np.float64)
    return np.round(np.einsum("ij,ij->i", left, right), TIE_DECIMALS)


def ranking_metric(name: str, ranks: Ranks) -> Floats:
    """(q,) values of `R@k` or its other name `hit@k`, `recall@k`, `nDCG@k`, `MRR` or `mAP`."""
    kind, _, k = name.partition("@")
    deep = {"R": hit, "hit": hit, "recall": recall, "nDCG": ndcg}
    whole = {"MRR": reciprocal, "mAP": average_precision}
    if kind in deep:
        return deep[kind](ranks, int(k))
    if name not in whole:
        raise ValueError(f"unknown metric {name}")
    return whole[name](ranks)


def hit(ranks: Ranks, k: int) -> Floats:
    """(q,) probability that one of the first `k` items is relevant, over random orders of ties."""
    ties = _Ties.of(ranks)
    slots = np.clip(k - ties.above, 0, ties.tied)[ties.first]
    best = zip(
        ties.tied[ties.first].tolist(), ties.relevant[ties.first].tolist(), slots.tolist(), strict=True
    )
    return np.array([1.0 - _miss(*row) for row in best])


def recall(ranks: Ranks, k: int) -> Floats:
    """(q,) expected share of the relevant items that is among the first `k`."""
    reached = np.clip(k - ranks.above, 0, ranks.tied) / ranks.tied
    return np.bincount(ranks.query, reached) / np.bincount(ranks.query)


def reciprocal(ranks: Ranks) -> Floats:
    """(q,) expectation of 1 / rank of the first relevant item."""
    ties = _Ties.of(ranks)
    columns = (ties.above, ties.tied, ties.relevant)
    best = zip(*(column[ties.first].tolist() for column in columns), strict=True)
    return np.array([_expected_reciprocal(*row) for row in best])


def ndcg(ranks: Ranks, k: int) -> Floats:
    """(q,) nDCG with linear gains and 1/log2(rank + 1); tied items share the mean gain of their tie.

    The mean over a tie is the exact expectation, because DCG is linear in the gains (McSherry and
    Najork, ECIR 2008).
    """
    ties = _Ties.of(ranks)
    discount = np.zeros(ranks.corpus + 1)  # summed over the first 0, 1, 2 ... places
    first = min(k, ranks.corpus)
    discount[1 : first + 1] = np.cumsum(1.0 / np.log2(np.arange(first) + 2.0))
    discount[first + 1 :] = discount[first]
    reached = discount[ties.above + ties.tied] - discount[ties.above]
    dcg = np.add.reduceat(ties.gain / ties.tied * reached, ties.first)
    order = np.lexsort((-ranks.gain, ranks.query))
    starts = np.flatnonzero(np.diff(ranks.query, prepend=-1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    ideal = np.add.reduceat(ranks.gain[order] * (discount[place + 1] - discount[place]), starts)
    return dcg / ideal


def average_precision(ranks: Ranks) -> Floats:
    """(q,) expectation of average precision over random orders of ties, the whole corpus deep.

    A relevant item at place j of a tie of t with r relevant ones has (j - 1)(r - 1)/(t - 1) relevant ones
    before it within the tie, on average (McSherry and Najork, ECIR 2008).
    """
    ties = _Ties.of(ranks)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, ranks.corpus + 1))])
    steps = np.where(
        ties.tied == 1, 1.0 / (ties.above + 1.0), harmonic[ties.above + ties.tied] - harmonic[ties.above]
    )
    share = (ties.relevant - 1.0) / np.maximum(ties.tied - 1.0, 1.0)
    counted = np.concatenate([[0], np.cumsum(ties.relevant)[:-1]])
    sizes = np.diff(ties.first, append=len(ties.above))
    before = counted - np.repeat(counted[ties.first], sizes)  # relevant ones in earlier ties
    sums = share * ties.tied + (before + 1.0 - share * (ties.above + 1.0)) * steps
    total = np.add.reduceat(ties.relevant, ties.first)
    return np.add.reduceat(ties.relevant / ties.tied * sums, ties.first) / total


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


# ---- ties ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ties:
    """Relevant items that share a score are one entry; by query, best first."""

    above: Ints
    tied: Ints
    relevant: Ints  # how many of the tied items
    gain: Floats  # of these together
    first: Ints  # (q,) the entry of each query's best tie

    @classmethod
    def of(cls, ranks: Ranks) -> _Ties:
        order = np.lexsort((ranks.above, ranks.query))
        query, above = ranks.query[order], ranks.above[order]
        starts = np.flatnonzero((np.diff(query, prepend=-1) != 0) | (np.diff(above, prepend=-1) != 0))
        sizes = np.diff(starts, append=len(order))
        gain = np.add.reduceat(ranks.gain[order], starts)
        first = np.flatnonzero(np.diff(query[starts], prepend=-1))
        return cls(above[starts], ranks.tied[order][starts], sizes, gain, first)


@lru_cache(maxsize=65536)
def _miss(tied: int, relevant: int, slots: int) -> float:
    """Probability that `slots` of `tied` items, drawn without replacement, hold none of the relevant."""
    if slots > tied - relevant:
        return 0.0
    drawn = np.arange(slots)
    return float(np.prod((tied - relevant - drawn) / (tied - drawn)))


@lru_cache(maxsize=65536)
def _expected_reciprocal(above: int, tied: int, relevant: int) -> float:
    before = np.arange(tied - relevant + 1)  # irrelevant items of the tie that come first
    none_yet = np.cumprod(np.concatenate([[1.0], (tied - relevant - before[:-1]) / (tied - before[:-1])]))
    return float((none_yet * relevant / (tied - before) / (above + before + 1)).sum())


# ---- labels and pairs ---------------------------------------------------------------------------------


def macro(truth: Sequence[str], best: Sequence[Sequence[str]]) -> Callable[[ArrayLike | None], Floats]:
    """Of row weights (None for 1 each): precision, recall and F1, each the plain mean over labels.

    `best[i]` are the labels that tie for row i; none where nothing was predicted. A label without a
    denominator counts 0.

    >>> macro(["a", "b"], [["a"], ["a"]])(None).round(2).tolist()
    [0.25, 0.5, 0.33]
    """
    names = sorted({*truth, *(label for tied in best for label in tied)})
    number = {name: i for i, name in enumerate(names)}
    wanted = np.array([number[name] for name in truth], np.int64)
    # predictions are (row, label, share) triples: a row goes in equal shares to the labels that tie
    sizes = np.array([len(tied) for tied in best], np.int64)
    row = np.repeat(np.arange(len(best)), sizes)
    label = np.array([number[name] for tied in best for name in tied], np.int64)
    share, right = 1.0 / sizes[row], label == wanted[row]

    def figures(weights: ArrayLike | None) -> Floats:
        weight = np.ones(len(wanted)) if weights is None else np.asarray(weights, np.float64)
        given = share * weight[row]
        support = np.bincount(wanted, weight, len(names)).astype(float)
        predicted = np.bincount(label, given, len(names)).astype(float)
        hits = np.bincount(label[right], given[right], len(names)).astype(float)
        present = support + predicted > 0
        hits, support, predicted = hits[present], support[present], predicted[present]
        f1 = 2 * hits / (support + predicted)
        return np.array([one.mean() for one in (_ratio(hits, predicted), _ratio(hits, support), f1)])

    return figures


class Ranking:
    """Scores of positives and negatives, sorted once; raises ValueError unless both kinds are there."""

    def __init__(self, scores: ArrayLike, positive: ArrayLike) -> None:
        score, is_positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
        if not np.isfinite(score).all():
            raise ValueError("a score is not finite")
        if is_positive.all() or not is_positive.any():
            raise ValueError("one class only: there is nothing to tell apart")
        self.order: NDArray[np.intp] = np.argsort(-score, kind="stable")
        self.score, self.positive = score[self.order], is_positive[self.order]
        self.ends = np.flatnonzero(np.append(np.diff(self.score) != 0, True))  # last of each tie

    def _passed(self, weights: ArrayLike | None) -> tuple[Floats, Floats]:
        """Weight of the positives, and of the negatives, at least as high as each distinct score."""
        weight = np.ones(len(self.score)) if weights is None else np.asarray(weights, np.float64)[self.order]
        found = np.cumsum(weight * self.positive)[self.ends]
        return found, np.cumsum(weight * ~self.positive)[self.ends]

    def average_precision(self, weights: ArrayLike | None = None) -> float:
        """Sum over thresholds of the gain in recall times the precision; nan if no positive has weight."""
        found, wrong = self._passed(weights)
        if found[-1] <= 0:
            return float("nan")
        return float((np.diff(found, prepend=0.0) * _ratio(found, found + wrong)).sum() / found[-1])

    def roc_auc(self, weights: ArrayLike | None = None) -> float:
        """Probability that a positive scores above a negative, ties half; nan if one kind has no weight."""
        found, wrong = self._passed(weights)
        if found[-1] <= 0 or wrong[-1] <= 0:
            return float("nan")
        height = (found + np.concatenate([[0.0], found[:-1]])) / 2
        return float((np.diff(wrong, prepend=0.0) * height).sum() / (found[-1] * wrong[-1]))

    def best_threshold(self, metric: str = "F1") -> tuple[float, float]:
        """Threshold with the highest F1 or accuracy, and that value.

        Scores of at least the threshold are called positive. It lies midway to the next lower score; of
        equally good thresholds the highest is taken.
        """
        found, wrong = self._passed(None)
        if metric == "F1":
            value = 2 * found / (found + wrong + found[-1])
        elif metric == "accuracy":
            value = (found + wrong[-1] - wrong) / (found[-1] + wrong[-1])
        else:
            raise ValueError(f"unknown metric {metric}")
        best = int(np.argmax(value))
        score = float(self.score[self.ends[best]])
        lower = float(self.score[self.ends[best + 1]]) if best + 1 < len(self.ends) else score - 1.0
        return (score + lower) / 2, float(value[best])


def at_threshold(
    scores: ArrayLike, positive: ArrayLike, threshold: float, weights: ArrayLike | None = None
) -> tuple[float, float]:
    """F1 and accuracy of calling scores of at least `threshold` positive; F1 is 0 without any positive."""
    called, is_positive = np.asarray(scores, np.float64) >= threshold, np.asarray(positive, bool)
    weight = np.ones(len(called)) if weights is None else np.asarray(weights, np.float64)
    hits = float(weight[called & is_positive].sum())
    either = float(weight[called].sum() + weight[is_positive].sum())
    right = float(weight[called == is_positive].sum())
    return (2 * hits / either if either > 0 else 0.0), right / float(weight.sum())


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)

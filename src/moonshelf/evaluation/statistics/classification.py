"""Figures of labels and of pairs that are no mean over rows, each a function of row weights.

A bootstrap draws rows again by giving them weights, so intervals and paired tests come from the same
functions as the figures. Choices: macro figures are over the labels that the truth or the predictions
hold, as scikit-learn has it; a label that ties with others at the top is predicted with its share. Average
precision and ROC-AUC of pairs are threshold figures, so tied scores are passed at once (AUC: half each), as
in scikit-learn; that of a constant score is the share of positives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moonshelf.evaluation.statistics.metrics import Floats

MACRO = ("macro precision", "macro recall", "macro F1")


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

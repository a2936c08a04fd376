"""Exact search in blocks: the first k of a corpus, and the exact places of the relevant items.

One block of queries is multiplied with one of the corpus in float32, so memory is bounded and nothing of the
size (queries, corpus) is ever held. Places are as exact as if all scores were float64: a float32 inner
product is off by at most `dim * 2^-24 * |q| |g|`, so only items that close to a relevant one's exact score
can be misplaced: just those are scored again in float64, rounded to `metrics.TIE_DECIMALS`, and compared.
Equal vectors therefore tie wherever they stand in a block. Where much of a block ties (words that no product
has), it is multiplied in float64 at once. The first k are those of the float32 scores, ties in corpus order;
they are for people to look at, and no figure is computed from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moonshelf.evaluation.statistics.metrics import TIE_DECIMALS, Floats, Ints

Singles = NDArray[np.float32]

QUERIES, CORPUS = 1024, 4096  # rows of a block: 16 MiB of scores
FIRST = 256  # columns of the first block; they double from there, so that few later items are candidates


@dataclass(frozen=True)
class Found:
    """`top` and `top_scores` are (q, k), k at most the corpus; the rest has one value a relevant item."""

    top: Ints  # columns of the corpus
    top_scores: Singles
    scores: Floats  # rounded to TIE_DECIMALS
    above: Ints  # items with a strictly higher score
    tied: Ints  # items with just this score, itself among them


def search(queries: np.ndarray, corpus: np.ndarray, rows: Ints, columns: Ints, k: int = 10) -> Found:
    """Search float32 `corpus` (g, d) for `queries` (q, d); place item `columns[i]` for query `rows[i]`.

    `rows` ascend. Raises ValueError for an empty corpus, or vectors that do not fit or are not finite.
    """
    left = np.ascontiguousarray(queries, np.float32)
    right = np.ascontiguousarray(corpus, np.float32)
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        raise ValueError(f"queries {left.shape} and corpus {right.shape} must be (n, dim) of one dim")
    if not len(right):
        raise ValueError("the corpus is empty")
    norms = np.linalg.norm(left, axis=1)
    longest = float(np.linalg.norm(right, axis=1).max())
    if not (np.isfinite(norms).all() and np.isfinite(longest)):
        raise ValueError("a vector is not finite")
    k = min(k, len(right))
    top, top_scores = np.empty((len(left), k), np.int64), np.empty((len(left), k), np.float32)
    scores = pair_scores(left, right, rows, columns)
    above, tied = np.zeros(len(rows), np.int64), np.ones(len(rows), np.int64)
    for start in range(0, len(left), QUERIES):
        block = left[start : start + QUERIES]
        part = slice(*np.searchsorted(rows, [start, start + QUERIES]))
        slack = 2.0**-24 * (right.shape[1] + 4) * longest * norms[rows[part]] + 1e-9
        placed = _Placed(rows[part] - start, columns[part], scores[part], slack, above[part], tied[part])
        best = _Best(len(block), k)
        for first, last in _blocks(len(right)):
            found = block @ right[first:last].T
            best.add(found, first)
            if len(placed.rows):
                placed.add(found, first, block, right[first:last])
        top[start : start + QUERIES], top_scores[start : start + QUERIES] = best.columns, best.scores
    return Found(top, top_scores, scores, above, tied)


def pair_scores(queries: np.ndarray, corpus: np.ndarray, rows: Ints, columns: Ints) -> Floats:
    """Inner products of pairs of rows in float64, rounded so that equal vectors tie."""
    scores = np.empty(len(rows))
    step = max(1, 4_000_000 // max(1, queries.shape[1]))  # 64 MB of pairs at a time
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        left, right = queries[rows[part]].astype(np.float64), corpus[columns[part]].astype(np.float64)
        scores[part] = np.einsum("ij,ij->i", left, right)
    return np.round(scores, TIE_DECIMALS)


def _blocks(size: int) -> list[tuple[int, int]]:
    blocks, start, width = [], 0, FIRST
    while start < size:
        blocks.append((start, min(start + width, size)))
        start, width = blocks[-1][1], min(2 * width, CORPUS)
    return blocks


class _Best:
    """The first k so far of each row, best first."""

    def __init__(self, rows: int, k: int) -> None:
        self.k = k
        self.scores = np.full((rows, k), -np.inf, np.float32)
        self.columns = np.zeros((rows, k), np.int64)

    def add(self, found: Singles, first: int) -> None:
        """Take in scores of columns from `first` on: an equal one does not displace an earlier one."""
        n, width = found.shape
        if not self.k or not n:
            return
        bound = self.scores[:, -1:]
        if width > self.k and not first:  # most of the first block can be passed over as well
            lowest = np.partition(found, width - self.k, axis=1)[:, width - self.k, None]
            bound = np.nextafter(lowest, np.float32(-np.inf))
        better = np.flatnonzero(found > bound)
        if not len(better):
            return
        rows = better // width
        counts = np.bincount(rows, minlength=n)
        place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        # what is kept so far, then what is better, in corpus order: equals stay so under a stable sort
        scores = np.full((n, self.k + int(counts.max())), -np.inf, np.float32)
        columns = np.zeros(scores.shape, np.int64)
        scores[:, : self.k], columns[:, : self.k] = self.scores, self.columns
        scores[rows, self.k + place] = found.ravel()[better]
        columns[rows, self.k + place] = better % width + first
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self.k]
        self.scores = np.take_along_axis(scores, order, axis=1)
        self.columns = np.take_along_axis(columns, order, axis=1)


@dataclass
class _Placed:
    """Counts of one block of queries; `above` and `tied` are views that are filled in."""

    rows: Ints
    columns: Ints
    scores: Floats
    slack: Floats
    above: Ints
    tied: Ints

    def add(self, found: Singles, first: int, block: Singles, right: Singles) -> None:
        high, low = (
            (self.scores + self.slack).astype(np.float32), (self.scores - self.slack).astype(np.float32),
        )  # fmt: skip
        surely, near = self._count(found, high, low)
        own = (self.columns >= first) & (self.columns < first + found.shape[1])
        open_ = np.flatnonzero(near > own)  # something besides the item itself is too close to call
        if near[open_].sum() > found.size // 16:
            self._multiply(block, right, first)
            return
        self.above += surely
        step = max(1, 4_000_000 // found.shape[1])
        for start in range(0, len(open_), step):
            items = open_[start : start + step]
            mine = found[self.rows[items]]
            close = (mine >= low[items, None]) & (mine <= high[items, None])
            which, column = np.divmod(np.flatnonzero(close), close.shape[1])
            items = items[which]
            other = column + first != self.columns[items]
            items, column = items[other], column[other]
            exact = pair_scores(block, right, self.rows[items], column)
            np.add.at(self.above, items, exact > self.scores[items])
            np.add.at(self.tied, items, exact == self.scores[items])

    def _count(self, found: Singles, high: Singles, low: Singles) -> tuple[Ints, Ints]:
        """Per item: scores of its row above `high`, and from `low` to `high`."""
        n = len(self.rows)
        surely, within = np.empty(n, np.int64), np.empty(n, np.int64)
        if n > 8 * len(found):  # many relevant items a query: one sort serves them all
            bounds = np.searchsorted(self.rows, np.arange(len(found) + 1))
            for row in range(len(found)):
                part = slice(bounds[row], bounds[row + 1])
                ranked = np.sort(found[row])
                surely[part] = len(ranked) - np.searchsorted(ranked, high[part], "right")
                within[part] = len(ranked) - np.searchsorted(ranked, low[part], "left")
            return surely, within - surely
        one_each = n == len(found) and bool((self.rows == np.arange(n)).all())
        step = n if one_each else max(1, 4_000_000 // found.shape[1])
        for start in range(0, n, step):
            part = slice(start, start + step)
            mine = found if one_each else found[self.rows[part]]
            surely[part] = _count_true(mine > high[part, None])
            within[part] = _count_true(mine >= low[part, None])
        return surely, within - surely

    def _multiply(self, block: Singles, right: Singles, first: int) -> None:
        """Count in float64 where nearly all items are close."""
        step = max(1, 4_000_000 // len(right))
        wide = right.astype(np.float64)
        for start in range(0, len(block), step):
            exact = np.round(block[start : start + step].astype(np.float64) @ wide.T, TIE_DECIMALS)
            for item in range(*np.searchsorted(self.rows, [start, start + step])):
                row, score = exact[self.rows[item] - start], self.scores[item]
                self.above[item] += int(np.count_nonzero(row > score))
                own = first <= self.columns[item] < first + len(right)
                itself = own and row[self.columns[item] - first] == score
                self.tied[item] += int(np.count_nonzero(row == score)) - int(itself)


def _count_true(mask: NDArray[np.bool_]) -> Ints:
    """How many of each row are true; several times as fast as a sum of booleans."""
    return np.bitwise_count(np.packbits(mask, axis=1)).sum(axis=1, dtype=np.int64)

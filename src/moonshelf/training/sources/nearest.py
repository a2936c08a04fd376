"""The search behind hard negatives: which neighbours of a product, in its category, may be its negatives.

Pools are the categories: a product asks those of its leaf first and then, where it still lacks some, the rest
of each level above. Neighbours are judged nearest first, and what is passed over is counted by its reason.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from moonshelf.errors import UserError

MAX_WINDOW = 2048  # what is not among so many nearest of a pool is not hard
_SCORES = 1 << 26  # of those that ask at a time with a whole pool: 256 MB


@dataclass(frozen=True)
class MiningSettings:
    """What makes a neighbour a negative. Scores are cosines, ranks count from the nearest stranger.

    `relative_margin` 0.05 is NV-Retriever's: at least 5% of the own pair's score below it. With both margins
    None the own pair is not computed, which saves two of three passes of the model.
    """

    num_negatives: int = 4
    range_min: int = 0  # so many nearest are skipped
    range_max: int | None = None  # ranks beyond it are not taken
    min_score: float | None = None
    max_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = 0.05
    min_level: int = 0  # steps of the category path that the two must share; 0 allows the whole feed
    identical_attributes: bool = False  # take products whose category and visible attributes are all equal
    reason: str = "off"

    def __post_init__(self) -> None:
        if self.num_negatives < 1 or self.range_min < 0 or self.min_level < 0:
            raise UserError("num_negatives must be at least 1, range_min and min_level at least 0.")
        if self.range_max is not None and self.range_max < self.range_min + self.num_negatives:
            raise UserError("range_max must leave room for num_negatives after range_min.")
        if self.reason not in ("off", "on", "auto"):
            raise UserError(f"reason must be off, on or auto, not {self.reason!r}.")

    @property
    def own_pair(self) -> bool:
        return self.absolute_margin is not None or self.relative_margin is not None


@dataclass
class Records:
    """All products of n: ids, category paths, what identifies them, and vectors (n, dim) float32."""

    ids: list[str]
    paths: list[tuple[str, ...]]
    same: dict[str, np.ndarray]  # reason -> (n, slots) int64 codes; two products that share one are the same
    vectors: np.ndarray
    pictures: np.ndarray | None  # of the picture alone; NaN where a product has none
    titles: np.ndarray | None  # of the text alone
    positive: np.ndarray  # (n,) float32: cosine of the two, NaN where unknown


class Negatives(NamedTuple):
    """P mined pairs, those of a product together, hardest first: deepest shared category, then nearest."""

    row: np.ndarray  # (P,) int64: the product's place among the records
    place: np.ndarray  # (P,) int64: its negative's
    score: np.ndarray  # (P,) float32
    cross_score: np.ndarray  # (P,) float32, NaN where unknown
    level: np.ndarray  # (P,) int64: steps of the category path that the two share


class Search:
    """Fills up each product's negatives, from the leaves of the category tree upwards."""

    def __init__(self, records: Records, settings: MiningSettings) -> None:
        self.records, self.settings = records, settings
        self.excluded: Counter[str] = Counter()  # reason -> neighbours
        n = len(records.ids)
        self.count, self.rank = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.found: list[Negatives] = []
        own = records.positive
        limits: list[np.ndarray] = [np.full(n, np.inf, np.float32)]
        if settings.absolute_margin is not None:
            limits.append(own - settings.absolute_margin)
        if settings.relative_margin is not None:
            limits.append(own - np.abs(own) * settings.relative_margin)
        self.limit = np.fmin.reduce(limits)  # of the crossed pair; infinite where the own pair is unknown

    def run(self) -> Negatives:
        """The negatives of all products."""
        paths = self.records.paths
        for level in range(max(map(len, paths)), self.settings.min_level - 1, -1):
            pools: dict[tuple[str, ...], dict[tuple[str, ...], list[int]]] = {}
            for row, path in enumerate(paths):
                if len(path) >= level:
                    branches = pools.setdefault(path[:level], defaultdict(list))
                    branches[path[level : level + 1]].append(row)
            for branches in pools.values():
                members = np.array(sorted(chain.from_iterable(branches.values())), np.int64)
                for step, rows in branches.items():
                    below = np.array(rows if step else [], np.int64)  # asked already, one level below
                    asking = self._lacking(np.array(rows, np.int64))
                    if len(asking) and len(members) - len(below) > 0:
                        self._fill(asking, members, below, level)
        nothing = Negatives(
            *(np.zeros(0, kind) for kind in (np.int64, np.int64, np.float32, np.float32, np.int64))
        )
        every = Negatives(*map(np.concatenate, zip(nothing, *self.found, strict=True)))
        order = np.lexsort((-every.score, -every.level, every.row))
        return Negatives(*(column[order] for column in every))

    def _lacking(self, rows: np.ndarray) -> np.ndarray:
        reach = self.settings.range_max
        lacks = self.count[rows] < self.settings.num_negatives
        return rows[lacks if reach is None else lacks & (self.rank[rows] < reach)]

    def _fill(self, asking: np.ndarray, members: np.ndarray, without: np.ndarray, level: int) -> None:
        reach = min(len(members) - len(without), MAX_WINDOW)
        block = max(1, min(256, _SCORES // len(members)))
        for start in range(0, len(asking), block):
            rows = asking[start : start + block]
            self._take(rows, *neighbours(self.records.vectors, members, rows, reach, without), level)

    def _take(self, rows: np.ndarray, scores: np.ndarray, places: np.ndarray, level: int) -> None:
        """Judge the next neighbours (r, w) of some products (r,), nearest first."""
        s, records = self.settings, self.records
        passed: dict[str, np.ndarray] = {}
        left = (places >= 0) & (places != rows[:, None])
        others = np.where(places >= 0, places, 0)

        def drop(reason: str, hit: np.ndarray) -> None:
            nonlocal left
            passed[reason] = left & hit
            left = left & ~hit

        for reason, codes in records.same.items():
            hit = np.zeros_like(left)
            for own in codes[rows].T:
                for theirs in codes.T:
                    hit |= own[:, None] == theirs[others]
            drop(reason, hit)
        rank = self.rank[rows][:, None] + np.cumsum(left, 1)
        self.rank[rows] += left.sum(1)
        drop("range_min", rank <= s.range_min)
        if s.range_max is not None:
            left &= rank <= s.range_max
        if s.min_score is not None:
            drop("min_score", scores < s.min_score)
        if s.max_score is not None:
            drop("max_score", scores > s.max_score)
        cross = self._cross(rows, others, left)
        drop("margin", cross > self.limit[rows][:, None])
        order, need = np.cumsum(left, 1), (s.num_negatives - self.count[rows])[:, None]
        for reason, hit in passed.items():  # of those that came before a product had enough
            self.excluded[reason] += int((hit & (order - left < need)).sum())
        r, column = np.nonzero(left & (order <= need))
        taken = rows[r], places[r, column], scores[r, column], cross[r, column]
        self.found.append(Negatives(*taken, np.full(len(r), level)))
        np.add.at(self.count, rows[r], 1)

    def _cross(self, rows: np.ndarray, others: np.ndarray, left: np.ndarray) -> np.ndarray:
        """(r, w) float32: mean cosine of one's picture with the other's title; NaN where not asked for."""
        cross = np.full(left.shape, np.nan, np.float32)
        pictures, titles = self.records.pictures, self.records.titles
        if pictures is None or titles is None:
            return cross
        for r, row in enumerate(rows):
            columns = np.flatnonzero(left[r])
            if len(columns) and np.isfinite(self.records.positive[row]):
                there = others[r, columns]
                pair = np.stack([pictures[there] @ titles[row], titles[there] @ pictures[row]])
                cross[r, columns] = np.nanmean(pair, axis=0)  # one of the two, where the other lacks one
        return cross


def neighbours(
    vectors: np.ndarray, members: np.ndarray, rows: np.ndarray, k: int, without: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (r, k) float32 and places (r, k) int64 of the nearest `members` but those in `without`.

    Nearest first, -1 where there are no more. Exact: a product of matrices costs less than the vectors did.
    """
    kept = members[~np.isin(members, without)]
    scores = torch.from_numpy(vectors[rows]) @ torch.from_numpy(vectors[kept]).T
    found, at = scores.topk(min(k, len(kept)), dim=1)
    places = np.full((len(rows), k), -1, np.int64)
    places[:, : at.shape[1]] = kept[at.numpy()]
    return np.pad(found.numpy(), ((0, 0), (0, k - at.shape[1]))), places

"""Retrieval: rank a corpus for each query, graded or not, by exact search in blocks.

Choices: a product that could not be encoded stays in the corpus, unreachable, and counts as a miss where
it is the query. Which direction is asked (text → image …) is a matter of what the data set lets queries and
corpus show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from moonshelf.errors import UserError
from moonshelf.evaluation.contract import Encode, Encoder, asking, why_not
from moonshelf.evaluation.record import Predictions
from moonshelf.evaluation.statistics import metrics
from moonshelf.evaluation.tasks.base import BaseTask, Kept, common
from moonshelf.product import Product

TOP = 10  # items that are kept of each ranking


@dataclass(frozen=True)
class Retrieval(BaseTask):
    """Rank the corpus for each query. `relevant[i]` maps keys of the corpus to gains for query i."""

    queries: Sequence[Product]
    corpus: Sequence[Product]
    corpus_keys: Sequence[str]
    relevant: Sequence[Mapping[str, float]]
    clusters: Sequence[str]
    query_reads: frozenset[str]
    corpus_reads: frozenset[str]
    metrics: tuple[str, ...] = ("R@1", "R@10", "MRR", "mAP")
    hit_gain: float = 0.0  # R@k, MRR and mAP count items of at least this gain, 0 for every relevant one
    note: str = ""

    def __post_init__(self) -> None:
        self.check("queries", self.queries, "has no query: there is nothing to rank")
        self.check("corpus", self.corpus, "has an empty corpus: there is nothing to rank")

    @property
    def products(self) -> Sequence[Product]:
        """The side that is scored, as other tasks call it."""
        return self.queries

    def predict(self, encoder: Encoder, encode: Encode) -> Kept:
        """What is kept of every query; for an encoder that cannot do it, results that say why."""
        if reason := why_not(encoder, self.query_reads, self.corpus_reads):
            sizes = len(self.queries), len(self.corpus)
            return [*self.unable("ranking", self.metrics, encoder, reason, *sizes)]
        rows, columns, gains = self._truth()
        queries, corpus = encode(asking(encoder), self.queries), encode(encoder, self.corpus)
        if not corpus.ok.any():
            raise UserError(
                f"{encoder.name} could encode nothing of the corpus of {self.dataset} {self.name}: "
                "check its pictures and titles"
            )
        found = metrics.search(queries.vectors, corpus.vectors, rows, columns, TOP, corpus.ok)
        first = np.isfinite(found.top_scores) & queries.ok[:, None]
        ids = np.array([product.id for product in self.corpus], object)
        bounds = np.searchsorted(rows, np.arange(len(self.queries) + 1)).tolist()
        parts = [slice(*bound) for bound in pairwise(bounds)]
        places = [part if ok else slice(0, 0) for part, ok in zip(parts, queries.ok.tolist(), strict=True)]
        more = {"hit_gain": self.hit_gain, "note": self.note}
        head = self.head("ranking", "ranking", encoder, self.metrics, len(self.corpus), **more)
        columns_kept = {
            **common(self.queries, self.clusters, queries),
            "relevant": [ids[columns[part]].tolist() for part in parts],
            "gains": [gains[part].tolist() for part in parts],
            "relevant_scores": [found.scores[place].tolist() for place in places],
            "above": [found.above[place].tolist() for place in places],
            "tied": [found.tied[place].tolist() for place in places],
            "top": [ids[row[kept]].tolist() for row, kept in zip(found.top, first, strict=True)],
            "top_scores": [row[kept].tolist() for row, kept in zip(found.top_scores, first, strict=True)],
            "rationale": list(queries.rationales),
        }  # fmt: skip
        return [Predictions(head, columns_kept)]

    def _truth(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Query, corpus column and gain of every relevant item, by query."""
        where: dict[str, list[int]] = {}
        for column, key in enumerate(self.corpus_keys):
            where.setdefault(key, []).append(column)
        rows: list[int] = []
        columns: list[int] = []
        gains: list[float] = []
        for row, grades in enumerate(self.relevant):
            items = [(c, float(gain)) for key, gain in grades.items() if gain > 0 for c in where.get(key, ())]
            if max((gain for _, gain in items), default=0.0) < max(self.hit_gain, 1e-12):
                raise UserError(
                    f"the query {self.queries[row].id} of {self.dataset} {self.name} has no relevant item: "
                    "drop it or complete the truth"
                )
            rows += [row] * len(items)
            columns += [column for column, _ in items]
            gains += [gain for _, gain in items]
        return np.array(rows), np.array(columns), np.array(gains)

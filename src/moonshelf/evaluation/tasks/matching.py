"""Same-product matching: pairs of listings, scored by the similarity of their vectors.

Average precision and ROC-AUC need no threshold and are of all pairs. F1 and accuracy need one: it is chosen
on one half of the clusters and the figures are of the other, so no pair judges a threshold that it helped to
choose. Halves are cut by a hash of the cluster's name, so a larger sample keeps them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random

import numpy as np

from moonshelf.errors import UserError
from moonshelf.evaluation.contract import Encode, Encoder, asking, why_not
from moonshelf.evaluation.record import Predictions
from moonshelf.evaluation.statistics.metrics import pair_scores
from moonshelf.evaluation.statistics.scoring import PAIR_METRICS
from moonshelf.evaluation.tasks.base import BaseTask, Kept
from moonshelf.product import Product


@dataclass(frozen=True)
class Matching(BaseTask):
    """Tell pairs of one product from pairs of two. `pairs` are positions in `products`."""

    products: Sequence[Product]
    pairs: Sequence[tuple[int, int]]
    same: Sequence[bool]
    clusters: Sequence[str]  # of the pairs
    reads: frozenset[str]
    metrics: tuple[str, ...] = PAIR_METRICS
    note: str = ""

    def __post_init__(self) -> None:
        sizes = [len(self.pairs), len(self.same), len(self.clusters)]
        if len(set(sizes)) > 1 or len(set(self.same)) < 2:
            raise UserError(
                f"the task {self.dataset} {self.name} needs pairs of one product and of two, each with its "
                f"truth and its cluster: it has {sizes[0]} pairs, {sizes[1]} truths, {sizes[2]} clusters"
            )
        self.check("products", self.products, "has no product")

    def predict(self, encoder: Encoder, encode: Encode) -> Kept:
        """What is kept of every pair; for an encoder that cannot do it, results that say why."""
        n, method = len(self.pairs), "pair classification"
        if reason := why_not(encoder, self.reads, self.reads):
            return [*self.unable(method, self.metrics, encoder, reason, n, n)]
        asked, found = encode(asking(encoder), self.products), encode(encoder, self.products)
        left, right = np.array(self.pairs, np.int64).T
        ok = asked.ok[left] & found.ok[right]
        score = np.where(ok, pair_scores(asked.vectors, found.vectors, left, right), -1.0)
        names = [product.id for product in self.products]
        head = self.head(method, "pairs", encoder, self.metrics, n, note=self.note)
        ids = [(names[a], names[b]) for a, b in self.pairs]
        return [Predictions(head, {
            "id": [f"{a} ~ {b}" for a, b in ids], "cluster": list(self.clusters), "ok": ok.tolist(),
            "text": [""] * len(ids), "left": [a for a, _ in ids], "right": [b for _, b in ids],
            "score": score.tolist(), "same": [bool(same) for same in self.same],
            "held_out": [second_half(cluster) for cluster in self.clusters],
        })]  # fmt: skip


def second_half(cluster: str) -> bool:
    """Whether a cluster is in the half that is scored; the other half chooses the threshold."""
    return hashlib.sha256(cluster.encode()).digest()[0] % 2 == 1


def same_product_pairs(
    groups: Sequence[str], kinds: Sequence[str], *, each: int = 5, most: int = 3, seed: int = 0
) -> tuple[list[tuple[int, int]], list[bool], list[str]]:
    """Pairs for `Matching`: positions, whether they are of one group, and the cluster of each.

    Of every group at most `most` pairs; for each of these, `each` pairs of its first member with products of
    other groups, of the same kind (a category) where there are any, drawn with `seed`. A pair belongs to the
    cluster of its first member's group. Empty where no group has two members.
    """
    rng = Random(seed)
    members: dict[str, list[int]] = {}
    of_kind: dict[str, list[int]] = {}
    for i, (group, kind) in enumerate(zip(groups, kinds, strict=True)):
        members.setdefault(group, []).append(i)
        of_kind.setdefault(kind, []).append(i)
    pairs: list[tuple[int, int]] = []
    same: list[bool] = []
    clusters: list[str] = []
    for group, inside in members.items():
        wanted = list(combinations(inside, 2))
        wanted = rng.sample(wanted, most) if len(wanted) > most else wanted
        drawn: set[tuple[int, int]] = set()
        for first, _ in wanted:
            near = [i for i in of_kind[kinds[first]] if groups[i] != group]
            others = near or [i for i in range(len(groups)) if groups[i] != group]
            drawn.update((first, other) for other in rng.sample(others, min(each, len(others))))
        for found, truth in ((wanted, True), (sorted(drawn), False)):
            pairs += found
            same += [truth] * len(found)
            clusters += [group] * len(found)
    return pairs, same, clusters

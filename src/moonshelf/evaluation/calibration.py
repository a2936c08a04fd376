"""When should `auto` reason? The margin's threshold against the share of products that reason, and quality.

The engine's `auto` writes a rationale where the direct vector is not clearly nearest to one of the model's
category names: where the margin between the two best cosines is below `AUTO_MARGIN`. `AtThreshold` is an
encoder that does so at any threshold from vectors that are known already, so that a whole curve costs one
direct and one reasoned pass, and each of its points is the evaluation of a model set to that threshold:
queries, corpus and label names take part alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moonshelf.evaluation.statistics.metrics import similarity
from moonshelf.evaluation.tasks import Encode, Encoder, Retrieval, Task, Vectors
from moonshelf.product import Product

FILE = "auto.json"
STEPS = 10  # thresholds between "nobody reasons" and "all do", at equal shares of the products


@dataclass(frozen=True)
class AutoPoint:
    """One figure at one threshold; `share` is that of the task's queries and products that reason."""

    dataset: str
    task: str
    view: str
    method: str
    encoder: str  # the direct one
    reasoned: str
    threshold: float  # cosine; a product reasons if its margin is below
    share: float
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    default: bool = False  # this threshold is the engine's


def margins(vectors: NDArray[np.floating], labels: NDArray[np.floating]) -> NDArray[np.float64]:
    """(n,) difference of the two best cosines of unit `vectors` (n, d) to `labels` (l, d), in [0, 2].

    With fewer than two labels nothing can be unsure, and the engine's `auto` reasons always: all are 0.
    """
    if len(labels) < 2:
        return np.zeros(len(vectors))
    best = np.partition(similarity(vectors, labels), -2, axis=1)[:, -2:]
    return best[:, 1] - best[:, 0]


class AtThreshold:
    """`reasoned` where the margin of `direct` is below `threshold`, else `direct`; both give one space."""

    cheap = True

    def __init__(
        self,
        direct: Encoder,
        reasoned: Encoder,
        encode: Encode,
        labels: NDArray[np.floating],
        threshold: float,
    ) -> None:
        self.direct, self.reasoned, self.threshold = direct, reasoned, threshold
        self._encode, self._labels = encode, labels
        self.name = f"{direct.name}, auto below {threshold:.4g}"
        self.fingerprint = f"{direct.fingerprint}|{reasoned.fingerprint}|auto below {threshold!r}"
        self.reads, self.one_space, self.writes = direct.reads, direct.one_space, reasoned.writes

    def unsure(self, products: Sequence[Product]) -> NDArray[np.bool_]:
        """(n,) which of the products reason."""
        return margins(self._encode(self.direct, products).vectors, self._labels) < self.threshold

    def encode(self, products: Sequence[Product]) -> Vectors:
        direct, unsure = self._encode(self.direct, products), self.unsure(products)
        out = Vectors(
            direct.vectors.copy(), direct.ok.copy(), list(direct.rationales), direct.valid.copy(),
            list(direct.problems),
        )  # fmt: skip
        rows = np.flatnonzero(unsure)
        if len(rows):
            part = self._encode(self.reasoned, [products[i] for i in rows.tolist()])
            out.vectors[rows], out.ok[rows], out.valid[rows] = part.vectors, part.ok, part.valid
            for i, text in zip(rows.tolist(), part.rationales, strict=True):
                out.rationales[i] = text
            out.problems += part.problems
        return out


def calibrate(
    tasks: Sequence[Task],
    direct: Encoder,
    reasoned: Encoder,
    encode: Encode,
    labels: Sequence[str],
    *,
    default: float,
    steps: int = STEPS,
) -> list[AutoPoint]:
    """Quality of every task at thresholds where 0, 1/steps … all of its products reason, and at `default`.

    `labels` are the model's category names, `default` its own threshold (the engine's `AUTO_MARGIN`).
    `encode` should be a cache's. What the encoders cannot do, or is fitted to labels, has no points.
    """
    names = [Product(id=f"label {i}", title=name) for i, name in enumerate(labels)]
    vectors = encode(direct, names).vectors if names else np.zeros((0, 1), np.float32)
    points: list[AutoPoint] = []
    for task in tasks:
        shown = _shown(task)
        margin = margins(encode(direct, shown).vectors, vectors)
        for threshold in _thresholds(margin, steps, default):
            share = float(np.mean(margin < threshold))
            mixed = AtThreshold(direct, reasoned, encode, vectors, threshold)
            for r in task.run(mixed, _uncached):
                if r.value is not None and not r.method.endswith("fitted"):
                    points.append(
                        AutoPoint(
                            r.dataset, r.task, r.view, r.method, direct.name, reasoned.name, threshold, share,
                            r.metric, r.value, r.low, r.high, r.n, threshold == default,
                        )
                    )  # fmt: skip
    return points


def _shown(task: Task) -> list[Product]:
    return [*task.queries, *task.corpus] if isinstance(task, Retrieval) else list(task.products)


def _thresholds(margin: NDArray[np.float64], steps: int, default: float) -> list[float]:
    """Rising thresholds, without those at which the same products reason; `default` is always among them."""
    above = np.nextafter(np.quantile(margin, np.arange(1, steps + 1) / steps), np.inf)
    found: dict[int, float] = {int((margin < default).sum()): float(default)}
    for threshold in [0.0, *above.tolist()]:
        found.setdefault(int((margin < threshold).sum()), threshold)
    return sorted(found.values())


def _uncached(encoder: Encoder, products: Sequence[Product]) -> Vectors:
    return encoder.encode(products)

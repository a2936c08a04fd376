"""What shorter vectors cost, and when `auto` should reason.

    python -m research.studies.curves starter --data DATA --suite fashion

**Sizes.** Matryoshka sizes times float32, int8 and binary. `Compressed` is an encoder that gives another's
vectors as a store would keep them, so every task scores it as it scores any encoder, ties and intervals
included. Choices: a vector is cut to its first numbers and made unit length again; int8 codes are scaled by
the vector's own largest number, so that there is nothing to calibrate and a result does not depend on what
else is in the catalogue; binary keeps the signs, and their cosine is one minus twice the share of differing
bits. Queries are compressed as the corpus is.

**Thresholds.** The engine's `auto` writes a rationale where the direct vector is not clearly nearest to one
of the model's category names: where the margin between the two best cosines is below `AUTO_MARGIN`.
`AtThreshold` is an encoder that does so at any threshold from vectors that are known already, so that a whole
curve costs one direct and one reasoned pass, and each of its points is the evaluation of a model set to that
threshold: queries, corpus and label names take part alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from moonshelf import MoonModel
from moonshelf.evaluation.contract import Encode, Encoder, Vectors, asking, why_not
from moonshelf.evaluation.data.registry import select
from moonshelf.evaluation.encoders.baselines import ModelEncoder
from moonshelf.evaluation.encoders.cache import EmbeddingCache
from moonshelf.evaluation.statistics.metrics import similarity
from moonshelf.evaluation.tasks import Labelling, Retrieval, Task
from moonshelf.model.engine import AUTO_MARGIN
from moonshelf.plaintext import table
from moonshelf.product import Product
from research.script import app_of, start

CALIBRATED = ("category", "colour")  # beside retrieval: each threshold scores a task again
PRECISIONS = ("float32", "int8", "binary")
SMALLEST = 32  # numbers; `halves` stops here


@dataclass(frozen=True)
class CurvePoint:
    """One figure of one encoder at one size; `bytes` is what a store keeps of a vector."""

    dataset: str
    task: str
    view: str
    encoder: str
    dims: int
    precision: str
    bytes: int
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    corpus: int = 0


def stored_bytes(dims: int, precision: str) -> int:
    """Bytes of one vector without its scale: cosine needs none."""
    return {"float32": 4 * dims, "int8": dims, "binary": -(-dims // 8)}[precision]


def compress(vectors: NDArray[np.floating], dims: int, precision: str = "float32") -> NDArray[np.float32]:
    """(n, dims) float32 unit vectors that compare as the stored codes do; a zero row stays zero."""
    if not 1 <= dims <= vectors.shape[1]:
        raise ValueError(f"a vector of {vectors.shape[1]} numbers cannot be cut to {dims}")
    codes = np.asarray(vectors[:, :dims], np.float64)
    used = np.abs(codes).max(axis=1, keepdims=True, initial=0.0) > 0
    if precision == "int8":
        codes = np.rint(codes * (127 / np.where(used, np.abs(codes).max(axis=1, keepdims=True), 1.0)))
    elif precision == "binary":
        codes = np.where(codes > 0, 1.0, -1.0) * used
    elif precision != "float32":
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    norm = np.linalg.norm(codes, axis=1, keepdims=True)
    return (codes / np.where(norm > 0, norm, 1.0)).astype(np.float32)


class Compressed:
    """`inner`, its vectors cut to `dims` numbers and kept at `precision`; rationales are not passed on."""

    writes, cheap = False, True

    def __init__(self, inner: Encoder, encode: Encode, dims: int, precision: str) -> None:
        self.inner, self.dims, self.precision = inner, dims, precision
        self._encode = encode
        self.name = f"{inner.name}, {dims} {precision}"
        self.fingerprint = f"{inner.fingerprint}|first {dims}|{precision}"
        self.reads, self.one_space = inner.reads, inner.one_space
        asker = asking(inner)
        self.queries = None if asker is inner else Compressed(asker, encode, dims, precision)

    def encode(self, products: Sequence[Product]) -> Vectors:
        out = self._encode(self.inner, products)
        n = len(products)
        vectors = compress(out.vectors, self.dims, self.precision)
        return Vectors(vectors, out.ok, [""] * n, np.ones(n, bool), out.problems)


def halves(width: int) -> tuple[int, ...]:
    """Sizes to try for a vector that was not trained at several: the whole, a half, a quarter …"""
    sizes = [width]
    while sizes[-1] % 2 == 0 and sizes[-1] // 2 >= SMALLEST:
        sizes.append(sizes[-1] // 2)
    return tuple(sizes)


def curves(
    tasks: Sequence[Retrieval],
    encoder: Encoder,
    encode: Encode,
    *,
    dims: Sequence[int] | None = None,
    precisions: Sequence[str] = PRECISIONS,
) -> list[CurvePoint]:
    """Every size times every precision on each task that `encoder` can do.

    `encode` should be a cache's: it is asked for the same vectors at every point. `dims` are the sizes that
    the model was trained at, by default those of `halves`; sizes beyond the vector's own are left out.
    """
    points: list[CurvePoint] = []
    for task in tasks:
        if why_not(encoder, task.query_reads, task.corpus_reads):
            continue
        width = encode(encoder, task.corpus).vectors.shape[1]
        for size in [d for d in dims if d <= width] if dims else halves(width):
            for precision in precisions:
                for r in task.run(Compressed(encoder, encode, size, precision), _uncached):
                    if r.value is not None:
                        points.append(
                            CurvePoint(
                                r.dataset, r.task, r.view, encoder.name, size, precision,
                                stored_bytes(size, precision), r.metric, r.value, r.low, r.high, r.n,
                                r.corpus,
                            )
                        )  # fmt: skip
    return points


def _uncached(encoder: Encoder, products: Sequence[Product]) -> Vectors:
    return encoder.encode(products)


# ---- thresholds of auto -----------------------------------------------------------------------------

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


# ---- the script ----------------------------------------------------------------------------------------


def measure(
    model: MoonModel, suite: str, data: Path | None, limit: int | None, cache: Path | None = None
) -> tuple[list[CurvePoint], list[AutoPoint]]:
    """Points of both curves, of the first metric of each task of a suite."""
    store, points, auto = EmbeddingCache(cache), list[CurvePoint](), list[AutoPoint]()
    direct, reasoned = ModelEncoder(model, "off"), ModelEncoder(model, "on")
    for read in select(suite).values():
        first = [
            replace(task, metrics=task.metrics[:1]) for task in read(data, limit=limit, fit_rows=0).tasks
        ]
        ranked = [task for task in first if isinstance(task, Retrieval)]
        points += curves(ranked, direct, store.encode, dims=model.config.matryoshka)
        named = [t for t in first if isinstance(t, Labelling) and t.key in CALIBRATED and t.level == -1]
        tasks: list[Task] = [*ranked, *(t for t in named if "hidden" not in t.view)]
        if len(model.labels) > 1:
            auto += calibrate(tasks, direct, reasoned, store.encode, model.labels, default=AUTO_MARGIN)
    return points, auto


def markdown(points: Sequence[Any]) -> str:
    """Points of one kind as a table; floats with four digits."""
    if not points:
        return "No task of the suite gives a point."
    shown = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in astuple(point)] for point in points]
    return table([one.name for one in fields(points[0])], shown, left=4)


def main(
    model: Annotated[str, typer.Argument(help="Folder of a model, or 'starter'.")] = "starter",
    suite: Annotated[str, typer.Option(help="As of `moonshelf evaluate`.")] = "sampleshop",
    data: Annotated[Path | None, typer.Option(help="Folder of the validation data sets.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="At most so many rows.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Keep embeddings here between runs.")] = None,
) -> None:
    """Print both tables as Markdown."""
    for points in measure(MoonModel.from_pretrained(model), suite, data, limit, cache):
        print(markdown(points), end="\n\n")


app = app_of(main)

if __name__ == "__main__":
    start(app)

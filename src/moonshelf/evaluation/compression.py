"""What shorter and coarser vectors cost: Matryoshka sizes times float32, int8 and binary.

`Compressed` is an encoder that gives another's vectors as a store would keep them, so every task scores it
as it scores any encoder, ties and intervals included. Choices: a vector is cut to its first numbers and made
unit length again; int8 codes are scaled by the vector's own largest number, so that there is nothing to
calibrate and a result does not depend on what else is in the catalogue; binary keeps the signs, and their
cosine is one minus twice the share of differing bits. Queries are compressed as the corpus is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moonshelf.evaluation.contract import asking
from moonshelf.evaluation.tasks import Encode, Encoder, Retrieval, Vectors, why_not
from moonshelf.product import Product

FILE = "curves.json"
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

"""Kinds of vector index: what each is built of, what it costs in memory, how hard it searches.

All but `flat` and `hnsw` are a cheap first pass that proposes `shortlist` rows for each one wanted; these are
compared exactly with vectors kept in half precision beside the index, read from disk by memory map.

| kind | first pass | memory a vector (256 dimensions) |
|---|---|---|
| binary | signs after a random rotation, Hamming distance | 32 B |
| ivf-pq | product quantiser of `code` bytes in the `effort` nearest of `lists` cells | 40 B |
| prefix | the first `dims` numbers in half precision, as trained Matryoshka-wise | 128 or 256 B |
| sq8, ivf-sq8 | one byte a number; all rows, or the nearest cells | 256, 264 B |
| hnsw-sq8 | a graph over one byte a number | 464 B |
| flat | none: exact, 32-bit | 1,024 B |
| hnsw | a graph over 32-bit vectors | 1,232 B |
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import import_module
from typing import Annotated, Any

import numpy as np
from pydantic import Field

faiss: Any = import_module("faiss")  # its stubs lag behind the library

SCANS = ("flat", "sq8", "prefix", "binary")  # first passes that look at every row
KINDS = (*SCANS, "hnsw", "hnsw-sq8", "ivf-pq", "ivf-sq8")
LINKS, EF_BUILD, EF_SEARCH = 24, 100, 128
_BLOCK = 65_536  # rows that are converted at once
_TABLES = 256 << 20  # bytes that FAISS may derive from a file, such as tables of distances
_TRAIN_A_LIST = 64  # rows a cell's centre is learnt from; FAISS warns below 39
_TRAIN_ROWS = 16_384  # at least, where there are as many


@dataclass(frozen=True)
class Spec:
    """An index to be built, and how it is searched. `effort` is HNSW's ef or IVF's probes, 0 for a scan."""

    kind: str
    links: Annotated[int, Field(ge=0, le=512)] = 0
    ef_build: Annotated[int, Field(ge=0, le=65_536)] = 0
    lists: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    code: Annotated[int, Field(ge=0, le=65_536)] = 0
    dims: Annotated[int, Field(ge=0, le=65_536)] = 0
    effort: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    shortlist: Annotated[int, Field(ge=0, le=10_000)] = (
        0  # rows compared exactly, for each one wanted; 0: the first pass is final
    )

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no index of kind {self.kind!r}")

    @classmethod
    def default(cls, rows: int, flat_rows: int) -> Spec:
        return cls("flat") if rows <= flat_rows else cls.hnsw()

    @classmethod
    def hnsw(cls, ef: int = EF_SEARCH) -> Spec:
        return cls("hnsw", links=LINKS, ef_build=EF_BUILD, effort=ef)

    @property
    def rescored(self) -> bool:
        return self.kind not in ("flat", "hnsw")

    def memory(self, rows: int, dim: int) -> int:
        """Bytes in memory, by arithmetic; the vectors read by memory map are not among them."""
        # HNSW: twice the links on the lowest level, above it 1/links of the rows; an offset and a level.
        graph = 4 * 2 * self.links + 4 * (self.links + 1) // max(self.links, 1) + 12 if self.links else 0
        vector = {
            "flat": 4 * dim, "hnsw": 4 * dim + graph, "hnsw-sq8": dim + graph, "sq8": dim,
            "prefix": 2 * self.dims, "binary": math.ceil(dim / 8), "ivf-sq8": dim + 8,
            "ivf-pq": self.code + 8,
        }[self.kind]  # fmt: skip
        shared = 4 * dim * (self.lists + (256 if self.code else 0))  # centres of cells, codebooks
        return rows * (vector + 8) + shared  # 8: the key

    def disk(self, rows: int, dim: int) -> int:
        """Bytes of the vectors that are kept beside the index for the exact comparison."""
        return rows * dim * 2 if self.rescored else 0

    def label(self) -> str:
        """Such as `ivf-pq 1024 cells, 32 B, 16 probes, 10 compared`; that is a multiple of the results."""
        parts = [
            (self.dims, f"{self.dims} dims"), (self.links, f"M {self.links}"),
            (self.lists, f"{self.lists} cells"), (self.code, f"{self.code} B"),
            (self.effort, f"{'ef' if self.links else 'probes'} {self.effort}"),
            (self.shortlist, f"×{self.shortlist} compared"),
        ]  # fmt: skip
        return " ".join([self.kind, ", ".join(text for given, text in parts if given)]).strip()

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value}

    # ---------------------------------------------------------------------------------- FAISS

    def build(self, vectors: np.ndarray) -> Any:
        """The FAISS index of unit vectors (n, dim) float32; a row's place is its label."""
        index = self.empty(vectors.shape[1])
        if not index.is_trained:
            rows = min(len(vectors), max(_TRAIN_A_LIST * self.lists, _TRAIN_ROWS))
            sample = np.random.default_rng(0).choice(len(vectors), rows, replace=False)
            index.train(self.prepared(vectors[np.sort(sample)]))
        for start in range(0, len(vectors), _BLOCK):
            index.add(self.prepared(vectors[start : start + _BLOCK]))
        return index

    def empty(self, dim: int) -> Any:
        """The FAISS index before it is trained and filled."""
        metric = faiss.METRIC_INNER_PRODUCT
        if self.kind == "binary":
            return faiss.IndexBinaryFlat(8 * math.ceil(dim / 8))
        if self.kind == "hnsw":
            index = faiss.IndexHNSWFlat(dim, self.links, metric)
        elif self.kind == "prefix":
            return faiss.index_factory(self.dims, "SQfp16", metric)
        else:
            names = {
                "flat": "Flat", "sq8": "SQ8", "hnsw-sq8": f"HNSW{self.links},SQ8",
                "ivf-sq8": f"IVF{self.lists},SQ8", "ivf-pq": f"IVF{self.lists},PQ{self.code}x8np",
            }  # fmt: skip
            index = faiss.index_factory(
                dim, names[self.kind], metric
            )  # np: no polysemous codes, slow to learn
        if self.links:
            index.hnsw.efConstruction = self.ef_build
        return index

    def prepared(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors (m, dim) as the first pass takes them."""
        if self.kind == "binary":
            return np.packbits(vectors @ _rotation(vectors.shape[1]) > 0, axis=1)
        if self.kind == "prefix":
            short = vectors[:, : self.dims]
            norms = np.linalg.norm(short, axis=1, keepdims=True)
            vectors = short / np.maximum(norms, 1e-12)
        return np.ascontiguousarray(vectors, np.float32)

    def write(self, index: Any, path: Any) -> None:
        """To a path, or to a writer of FAISS."""
        (faiss.write_index_binary if self.kind == "binary" else faiss.write_index)(index, path)

    def read(self, path: str) -> Any:
        """Raises RuntimeError for a file that FAISS cannot read, or whose sizes no file of its length has."""
        faiss.set_deserialization_vector_byte_limit(2 * os.path.getsize(path) + _TABLES)
        return (faiss.read_index_binary if self.kind == "binary" else faiss.read_index)(path)


@lru_cache(maxsize=4)
def _rotation(dim: int) -> np.ndarray:
    """(dim, dim rounded up to whole bytes) float32 with orthonormal rows: every sign says as much.

    The same in every process; where a library rounds otherwise, a sign of a number near zero differs.
    """
    width = 8 * math.ceil(dim / 8)
    found: np.ndarray = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0][:dim]
    return np.ascontiguousarray(found, np.float32)

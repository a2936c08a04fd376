"""Chooses a vector index by measurement: the least memory, then the least latency, that reaches a recall.

Queries are rows of the store itself, drawn at random, each left out of its own answer: vectors of shoppers'
queries lie elsewhere, so keep a margin. Truth is exact search over all other rows. What counts is the least
of three recalls at k: without a filter, and with random filters that half and a tenth of the rows pass; a row
as near as the last right one is right too. Narrower filters have a way of their own (see `nearest`).
Latency is that of one query at a time, from Python.

Candidates are tried in the order of their memory, each with rising effort until it reaches the target. By
default that ends at the first that does: the others cost more. Nothing is changed where none does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from moonshelf.catalogue.index_spec import EF_BUILD, LINKS, Spec, faiss
from moonshelf.catalogue.nearest import AnnIndex, Hits
from moonshelf.errors import UserError

SMALL = (
    10_000  # rows: below, a flat index answers within a millisecond and quantisers have little to learn from
)
QUERIES = 200
SHARES = (0.5, 0.1)  # of the rows that pass the filters
_WARM_UP = 5
_TIE = 1e-6  # of cosine: what is as near as the last right one is right
_BLOCK = 16_384
_EF = (16, 32, 64, 128, 256, 512)
_PROBES = (2, 4, 8, 16, 32, 64)
_SHORTLISTS = (4, 10, 30, 100)  # rows compared for each one wanted


@dataclass(frozen=True)
class Trial:
    """One index as it was measured."""

    spec: Spec
    recall: float  # the least of `recalls`
    recalls: dict[str, float]  # "all", and each share of the rows that passed a filter
    p50_ms: float
    p95_ms: float
    memory_bytes: int  # of the FAISS index and the keys
    disk_bytes: int  # of the vectors that are read by memory map
    build_s: float
    reached: bool

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "spec": self.spec.as_dict(), "label": self.spec.label()}


@dataclass
class Tuning:
    """What is asked for, and after `choose` what was measured."""

    target: float
    k: int = 10
    max_mb: float | None = None
    max_ms: float | None = None  # median latency
    everything: bool = False  # measure all candidates, for the table
    say: Callable[[str], None] = lambda text: None
    small: int = 0  # rows below which only flat is tried; 0: SMALL
    seed: int = 0
    trials: list[Trial] = field(default_factory=list)
    note: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.target <= 1:
            raise UserError(f"a recall lies above 0 and at most at 1, so it cannot be {self.target:g}.")
        if not 1 <= self.k <= 100:
            raise UserError(f"k must lie between 1 and 100, not {self.k}.")

    def choose(self, keys: np.ndarray, vectors: np.ndarray) -> tuple[AnnIndex, dict[str, Any]]:
        """The index of keys (n,) int64 and unit vectors (n, dim) float32, and the record of why.

        Raises UserError if nothing reaches the target within the limits.
        """
        rows, dim = vectors.shape
        exam = Exam(keys, vectors, self.k, self.seed)
        best: tuple[Trial, AnnIndex] | None = None
        self.small = self.small or SMALL
        if rows < self.small:
            self.note = f"{rows:,} products are too few for anything but a flat index, which is exact"
        for family in self.families(rows, dim):
            memory = family[0].memory(rows, dim)
            if best is not None and not self.everything and memory > best[0].memory_bytes:
                break
            if self.max_mb is not None and memory > self.max_mb * 1e6:
                self.say(f"{family[0].kind}: about {memory / 1e6:,.0f} MB, more than {self.max_mb:g}")
                continue
            self.say(f"{family[0].label()}: building {rows:,} rows …")
            started = time.perf_counter()
            index = AnnIndex.of(keys, vectors, spec=family[0])
            trial, index = self.measure(index, family, exam, time.perf_counter() - started)
            if trial.reached and (best is None or _cost(trial) < _cost(best[0])):
                best = trial, index
        if best is None:
            raise UserError(self._failure())
        return best[1], {
            "target": self.target, "k": self.k, "max_mb": self.max_mb, "max_ms": self.max_ms, "rows": rows,
            "queries": len(exam.queries), "chosen": best[0].as_dict(),
            "tried": [trial.as_dict() for trial in self.trials], "note": self.note,
        }  # fmt: skip

    def measure(
        self, index: AnnIndex, family: list[Spec], exam: Exam, build_s: float
    ) -> tuple[Trial, AnnIndex]:
        """The least effort of a family that reaches the target, else the last that was tried."""
        memory = bytes_of(index) + index.ids.nbytes
        for spec in family:
            index = AnnIndex(index.first, index.ids, spec, index.kept)
            recalls = exam.recalls(index)
            p50, p95 = exam.latency(index)
            recall = min(recalls.values())
            slow = self.max_ms is not None and p50 > self.max_ms
            fat = self.max_mb is not None and memory > self.max_mb * 1e6
            trial = Trial(
                spec, recall, recalls, p50, p95, memory, spec.disk(*exam.shape), build_s,
                reached=recall >= self.target and not slow and not fat,
            )  # fmt: skip
            self.trials.append(trial)
            self.say(
                f"{spec.label()}: recall@{self.k} {recall:.3f}, p50 {p50:.2f} ms, {memory / 1e6:,.1f} MB"
            )
            if trial.reached or slow or fat:
                break
        return trial, index

    def families(self, rows: int, dim: int) -> Iterator[list[Spec]]:
        """Candidates, the least memory first; within one, the least effort first."""
        found = [[Spec("flat")]]
        if rows >= self.small:
            lists = 2 ** round(math.log2(max(16, math.sqrt(rows))))
            lists = min(lists, 2 ** int(math.log2(rows / 64)))
            found.append([Spec("sq8", shortlist=2)])
            found.append([replace(Spec.hnsw(), effort=ef) for ef in _EF])
            graph = Spec("hnsw-sq8", links=LINKS, ef_build=EF_BUILD, shortlist=2)
            found.append([replace(graph, effort=ef) for ef in _EF])
            found.append([Spec("ivf-sq8", lists=lists, effort=p, shortlist=2) for p in _PROBES if p < lists])
            found.append([Spec("binary", shortlist=s) for s in _SHORTLISTS])
            if dim % 8 == 0:
                found.append(
                    [
                        Spec("ivf-pq", lists=lists, code=dim // 8, effort=p, shortlist=s)
                        for p, s in ((4, 4), (8, 10), (16, 10), (16, 30), (32, 30), (64, 30), (64, 100))
                        if p < lists
                    ]
                )
            for dims in (64, 128):
                if dims < dim:
                    found.append([Spec("prefix", dims=dims, shortlist=s) for s in _SHORTLISTS])
        return iter(sorted((f for f in found if f), key=lambda family: family[0].memory(rows, dim)))

    def _failure(self) -> str:
        limits = [f"{self.max_mb:g} MB"] if self.max_mb is not None else []
        limits += [f"{self.max_ms:g} ms"] if self.max_ms is not None else []
        within = f" within {' and '.join(limits)}" if limits else ""
        text = f"no index reaches a recall@{self.k} of {self.target:g}{within}, so nothing was changed"
        if not self.trials:
            return f"{text}: even the smallest needs more memory. Raise --max-mb."
        near = max(self.trials, key=lambda trial: (trial.recall >= self.target, trial.recall, -trial.p50_ms))
        return (
            f"{text}. Nearest: {near.spec.label()} with {near.recall:.3f}, {near.p50_ms:.2f} ms and "
            f"{near.memory_bytes / 1e6:,.1f} MB. Raise the limit or lower the target."
        )


def _cost(trial: Trial) -> tuple[float, float]:
    return trial.memory_bytes, trial.p50_ms


class Exam:
    """Queries, filters, and the truth about them. Keys (n,) are in ascending order."""

    def __init__(
        self,
        keys: np.ndarray,
        vectors: np.ndarray,
        k: int,
        seed: int = 0,
        masks: Mapping[str, np.ndarray] | None = None,
        queries: int = QUERIES,
    ) -> None:
        """`masks` (n,) bool are filters by name, by default random ones of SHARES."""
        rng = np.random.default_rng(seed)
        rows = len(keys)
        self.keys, self.vectors, self.k, self.shape = keys, vectors, k, vectors.shape
        self.drawn = np.sort(rng.choice(rows, min(queries, rows), replace=False))
        self.queries = np.ascontiguousarray(vectors[self.drawn])
        order = rng.permutation(rows)
        if masks is None:
            masks = {}
            for share in SHARES:
                masks[f"{share:g}"] = mask = np.zeros(rows, bool)
                mask[order[: math.ceil(share * rows)]] = True
        self.masks: dict[str, np.ndarray | None] = {"all": None, **masks}
        self.least = self._least()  # the score that a right answer has at least, (queries,) for each filter
        self.right = {name: self._countable(mask) for name, mask in self.masks.items()}

    def _least(self) -> dict[str, np.ndarray]:
        best = {name: np.full((len(self.drawn), 0), -np.inf, np.float32) for name in self.masks}
        for start in range(0, self.shape[0], _BLOCK):
            scores = self.queries @ self.vectors[start : start + _BLOCK].T
            inside = (self.drawn >= start) & (self.drawn < start + scores.shape[1])
            scores[np.flatnonzero(inside), self.drawn[inside] - start] = -np.inf  # not one's own neighbour
            for name, mask in self.masks.items():
                some = scores if mask is None else scores[:, mask[start : start + _BLOCK]]
                both = np.concatenate([best[name], some], axis=1)
                keep = min(self.k, both.shape[1])
                best[name] = -np.partition(-both, keep - 1, axis=1)[:, :keep] if keep else both
        return {name: scores.min(axis=1) if scores.size else np.zeros(0) for name, scores in best.items()}

    def _countable(self, mask: np.ndarray | None) -> np.ndarray:
        """How many right answers there can be: (queries,)."""
        others = (len(self.keys) if mask is None else int(mask.sum())) - (
            1 if mask is None else mask[self.drawn].astype(int)
        )
        return np.minimum(self.k, np.broadcast_to(others, len(self.drawn)))

    def recalls(self, index: AnnIndex) -> dict[str, float]:
        """Recall without a filter and with each."""
        return {
            name: self.recall(
                name,
                index.search(
                    self.queries, self.k + 1, None if mask is None else index.passing(self.keys[mask])
                ),
            )
            for name, mask in self.masks.items()
        }

    def recall(self, name: str, hits: Hits) -> float:
        """Of answers, k + 1 for each query, that passed the filter of this name."""
        good = 0
        for row, some in enumerate(hits):
            places = np.searchsorted(self.keys, [key for key, _ in some])
            places = places[places != self.drawn[row]][: self.k]
            exact = self.vectors[places] @ self.queries[row]
            good += int((exact >= self.least[name][row] - _TIE).sum())
        return good / max(1, int(self.right[name].sum()))

    def latency(self, index: AnnIndex) -> tuple[float, float]:
        """(median, 95th percentile) of milliseconds of a query."""
        spent = []
        for place in [*range(min(_WARM_UP, len(self.queries))), *range(len(self.queries))]:
            started = time.perf_counter()
            index.search(self.queries[place : place + 1], self.k)
            spent.append(1000 * (time.perf_counter() - started))
        p50, p95 = np.percentile(spent[_WARM_UP:] or spent, [50, 95])
        return float(p50), float(p95)


def bytes_of(index: AnnIndex) -> int:
    """What FAISS would write: within a few bytes of what it holds."""
    counted = 0

    def count(chunk: bytes) -> int:
        nonlocal counted
        counted += len(chunk)
        return len(chunk)

    writer = faiss.PyCallbackIOWriter(count, 1 << 20)
    index.spec.write(index.first, writer)
    return counted

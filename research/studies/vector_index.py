"""LanceDB's own vector index against the FAISS index beside the store, on the same vectors, in turn.

    python -m research.studies.vector_index --rows 1000000 --dim 256 --out runs/vector-index.json

Vectors are drawn, not a model's (`drawn`): 1,000 clusters, in each twelve directions that matter and less of
all others; early numbers weigh more, as Matryoshka training makes them. Queries are rows, each left out of
its own answer; truth is exact search over all rows that pass. Asked are 10 results without a filter and with
filters that half, a tenth and a hundredth of the rows pass at random, one cluster (not the query's own, so
all that passes is far), and a fifth of the clusters. LanceDB filters by SQL; ours reads the rows of a filter
by the same SQL once and remembers them, so both its first time and the later ones are given. Then rows are
appended and deleted. The rule that this decides: LanceDB's is the only index if it reaches a recall@10 of .95
within a median of 6 ms.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import lancedb
import numpy as np
import pyarrow as pa
import typer
from lancedb.index import BTree, HnswSq, IvfRq

from moonshelf.catalogue.vector_index import Passing, VectorIndex
from research.script import app_of, start

K, AIM, QUERIES, ROUNDS = 10, 0.95, 100, 2
CLUSTERS, DIRECTIONS, NOISE = 1000, 12, 0.4
SHARES = (0.5, 0.1, 0.01)
Search = Callable[[np.ndarray, str | None], np.ndarray]  # a query, a filter's name: keys, best first


def drawn(rows: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (rows, dim) float32 and the cluster of each (rows,)."""
    rng = np.random.default_rng(0)
    weights = ((np.arange(dim) + 8.0) ** -0.35).astype(np.float32)
    clusters = max(10, min(CLUSTERS, rows // 1000))
    which = rng.integers(clusters, size=rows)
    vectors = np.empty((rows, dim), np.float32)
    for one in range(clusters):
        mine = np.flatnonzero(which == one)
        centre = rng.normal(size=dim).astype(np.float32) * weights
        mixing = rng.normal(size=(DIRECTIONS, dim)).astype(np.float32) * weights / np.sqrt(DIRECTIONS)
        inner = rng.normal(size=(len(mine), DIRECTIONS)).astype(np.float32) @ mixing
        noise = rng.normal(size=(len(mine), dim)).astype(np.float32) * weights
        found = centre + 0.7 * inner + NOISE * noise
        vectors[mine] = found / np.linalg.norm(found, axis=1, keepdims=True)
    return vectors, which


class Exam:
    """Queries, filters, the truth about them, and the two sides' marks."""

    def __init__(self, vectors: np.ndarray, which: np.ndarray) -> None:
        rng = np.random.default_rng(1)
        self.vectors, rows = vectors, len(vectors)
        self.drawn = rng.choice(rows, QUERIES, replace=False)
        self.lot = rng.random(rows)
        self.which = which
        fifth = int(which.max()) // 5
        self.sql = {f"{share:g}": f"lot < {share}" for share in SHARES}
        self.sql |= {"one cluster": "cluster = 3", "a fifth of the clusters": f"cluster < {fifth}"}
        self.masks = {f"{share:g}": self.lot < share for share in SHARES}
        self.masks |= {"one cluster": which == 3, "a fifth of the clusters": which < fifth}

    def right(self, mask: np.ndarray) -> np.ndarray:
        """(queries, K) keys of the nearest rows that pass."""
        best = []
        for query in self.drawn:
            scores = np.where(mask, self.vectors @ self.vectors[query], -np.inf)
            scores[query] = -np.inf
            best.append(np.argpartition(-scores, K)[:K])
        return np.array(best)

    def recall(self, search: Search, name: str | None, right: np.ndarray) -> float:
        good = 0
        for query, keys in zip(self.drawn, right, strict=True):
            found = search(self.vectors[query], name)
            good += len(set(found[found != query][:K].tolist()) & set(keys.tolist()))
        return good / right.size

    def times(self, sides: dict[str, Search], name: str | None) -> dict[str, tuple[float, float]]:
        """(median, 95th percentile) of milliseconds of each side, in turn, with other queries."""
        spent: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(ROUNDS):
            for place in range(QUERIES):
                for number, side in enumerate(list(sides)[:: 1 if (turn + place) % 2 else -1]):
                    query = self.vectors[self.drawn[(place + 37 * number) % QUERIES]]
                    started = time.perf_counter()
                    sides[side](query, name)
                    spent[side].append(1000 * (time.perf_counter() - started))
        return {side: tuple(np.percentile(ms, [50, 95]).round(2).tolist()) for side, ms in spent.items()}


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def in_lance(table: Any, exam: Exam, **effort: int) -> Search:
    def search(query: np.ndarray, name: str | None) -> np.ndarray:
        ask = table.search(query, vector_column_name="vector").distance_type("dot")
        for option, value in effort.items():
            ask = getattr(ask, option)(value)
        ask = ask.select(["key", "_distance"]).limit(K + 1)
        ask = ask.where(exam.sql[name], prefilter=True) if name else ask
        found: np.ndarray = ask.to_arrow()["key"].to_numpy()
        return found

    return search


def in_faiss(index: VectorIndex, passing: dict[str, Any]) -> Search:
    def search(query: np.ndarray, name: str | None) -> np.ndarray:
        hits = index.search(query[None], K + 1, passing[name] if name else None)[0]
        return np.array([key for key, _ in hits], np.int64)

    return search


def study(
    rows: Annotated[int, typer.Option()] = 1_000_000,
    dim: Annotated[int, typer.Option()] = 256,
    kinds: Annotated[str, typer.Option(help="Of LanceDB's.")] = "IVF_HNSW_SQ,IVF_RQ",
    ours: Annotated[bool, typer.Option(help="Build and measure ours beside them.")] = True,
    ef_build: Annotated[int, typer.Option(help="Of LanceDB's graphs.")] = 150,
    out: Annotated[Path | None, typer.Option(help="JSON of all figures, written as they come.")] = None,
) -> None:
    """Measure both sides and print every figure as it comes."""
    found: dict[str, Any] = {"rows": rows, "dim": dim, "load": os.getloadavg()}

    def note(**figures: Any) -> None:
        found.update(figures)
        print(json.dumps(figures), flush=True)
        if out is not None:
            out.write_text(json.dumps(found, indent=1), encoding="utf-8")

    vectors, which = drawn(rows, dim)
    exam = Exam(vectors, which)
    everything = np.ones(rows, bool)
    right: dict[str | None, np.ndarray] = {None: exam.right(everything)}
    right |= {name: exam.right(mask) for name, mask in exam.masks.items()}
    with tempfile.TemporaryDirectory() as folder:
        table = lancedb.connect(folder).create_table(
            "rows",
            pa.table({
                "key": pa.array(np.arange(rows, dtype=np.int64)), "lot": pa.array(exam.lot),
                "cluster": pa.array(which),
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim),
            }),
        )  # fmt: skip
        bare = size_of(Path(folder))
        started = time.perf_counter()
        held = rows if ours else 1
        index = VectorIndex.of(np.arange(held, dtype=np.int64), vectors[:held])
        note(ours={"build_s": round(time.perf_counter() - started, 1), "table_mb": round(bare / 1e6)})
        passing: dict[str, Any] = {}
        sides = {"ours": in_faiss(index, passing)} if ours else {}

        def marks(name: str | None, right: np.ndarray) -> dict[str, Any]:
            times = exam.times(sides, name)
            return {
                side: {"recall": exam.recall(search, name, right), "p50_p95_ms": times[side]}
                for side, search in sides.items()
            }

        def filtered(title: str) -> None:
            note(**{f"{title}, no filter": marks(None, right[None])})
            for name in exam.sql:
                note(**{f"{title}, filter {name}": marks(name, right[name])})

        for name, sql in exam.sql.items():
            started = time.perf_counter()
            keys = table.search().where(sql).select(["key"]).limit(None).to_arrow()["key"].to_numpy()
            passing[name] = Passing(index, keys)
            in_faiss(index, passing)(vectors[exam.drawn[0]], name)
            first = round(1000 * (time.perf_counter() - started), 1)
            note(**{f"first time of the filter {name}, ours": first})
        # LanceDB's kinds, each with the least effort that reaches the aim without a filter.
        cells = round(rows**0.5)
        # More cells than the least are looked into only where a filter leaves too few rows in these.
        lists = [
            {"maximum_nprobes": cells, "minimum_nprobes": p, "refine_factor": r}
            for p, r in ((8, 4), (16, 10), (32, 30))
        ]
        graph = [{"ef": ef, "refine_factor": r} for ef, r in ((64, 1), (128, 2), (256, 2))]
        configs: dict[str, tuple[Any, list[dict[str, int]]]] = {
            "IVF_HNSW_SQ": (HnswSq("dot", num_partitions=1, ef_construction=ef_build), graph),
            "IVF_RQ": (IvfRq("dot", num_partitions=cells), lists),
        }
        for kind in kinds.split(","):
            config, efforts = configs[kind]
            before, started = size_of(Path(folder)), time.perf_counter()
            table.create_index("vector", config=config, replace=True)
            seconds = round(time.perf_counter() - started, 1)
            note(**{kind: {"build_s": seconds, "mb": round((size_of(Path(folder)) - before) / 1e6)}})
            for effort in efforts:
                search = in_lance(table, exam, **effort)
                recall = exam.recall(search, None, right[None])
                note(**{f"{kind} {effort}": recall})
                if recall >= AIM:
                    break
            sides["lance"] = search
            filtered(kind)
        for column in ("lot", "cluster"):
            table.create_index(column, config=BTree())
        filtered(f"{kind}, columns indexed")
        # A thousand fresh rows, near others; then a hundredth of the rows leaves.
        rng = np.random.default_rng(2)
        fresh = vectors[rng.integers(rows, size=1000)] + 0.02 * rng.normal(size=(1000, dim)).astype(
            np.float32
        )
        fresh = (fresh / np.linalg.norm(fresh, axis=1, keepdims=True)).astype(np.float32)
        keys = np.arange(rows, rows + 1000, dtype=np.int64)
        started = time.perf_counter()
        table.add(
            pa.table({
                "key": pa.array(keys), "lot": pa.array(rng.random(1000)),
                "cluster": pa.array(np.zeros(1000, np.int64)),
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(fresh.ravel()), dim),
            }),
        )  # fmt: skip
        append = round(1000 * (time.perf_counter() - started), 1)
        started = time.perf_counter()
        index = index.catch_up(keys, fresh, np.empty(0, np.int64))
        caught = round(1000 * (time.perf_counter() - started), 1)
        sides |= {"ours": in_faiss(index, passing)} if ours else {}
        near = np.concatenate([exam.vectors, fresh])
        hits = {
            side: sum(int(search(vector, None)[0] == key) for key, vector in zip(keys, fresh, strict=True))
            for side, search in sides.items()
        }
        exam.vectors = near
        note(
            appended={"add_ms": append, "catch_up_ms": caught, "found_of_1000": hits,
                      "p50_p95_ms": exam.times(sides, None)}
        )  # fmt: skip
        started = time.perf_counter()
        table.optimize()
        note(optimize_s=round(time.perf_counter() - started, 1), after=exam.times(sides, None))
        gone = rng.choice(np.setdiff1d(np.arange(rows), exam.drawn), rows // 100, replace=False)
        started = time.perf_counter()
        for some in np.array_split(gone, max(1, len(gone) // 500)):
            table.delete(f"key IN ({','.join(map(str, some.tolist()))})")
        deleted = round(time.perf_counter() - started, 1)
        started = time.perf_counter()
        index = index.catch_up(np.empty(0, np.int64), np.empty((0, dim), np.float32), gone)
        caught = round(1000 * (time.perf_counter() - started), 1)
        sides |= {"ours": in_faiss(index, passing)} if ours else {}
        left = np.ones(len(near), bool)
        left[gone] = False
        note(deleted={"delete_s": deleted, "catch_up_ms": caught, **marks(None, exam.right(left))})
    note(load_after=os.getloadavg())


app = app_of(study)

if __name__ == "__main__":
    start(app)

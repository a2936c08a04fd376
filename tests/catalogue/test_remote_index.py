"""One suite for every engine that holds vectors: our own index, Qdrant and Milvus. The two databases are
tested against their clients' local modes only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel, product
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_data import DIM, clustered
from typer.testing import CliRunner

from moonshelf import cli
from moonshelf.catalogue import Catalogue
from moonshelf.catalogue.rows import FIELDS, key_of
from moonshelf.catalogue.vector_index import VectorIndex
from moonshelf.errors import UserError
from moonshelf.scale.vector_databases import Filters, RemoteIndex, connect, metadata_of, push

ENGINES = ("ours", "qdrant", "milvus")
VALUES = ("red", "blue", "it's", 'say "x"', "back\\slash", "größe ñ 靴", "%_like", "a] or true or [", "")


class Ours:
    """VectorIndex behind the same interface; filters by looking at each row."""

    def __init__(self, dim: int) -> None:
        self._index = VectorIndex.of(np.empty(0, np.int64), np.empty((0, dim), np.float32))
        self._rows: dict[int, Mapping[str, Any]] = {}

    def upsert(self, ids: np.ndarray, vectors: np.ndarray, metadata: Sequence[Mapping[str, Any]]) -> None:
        self._rows.update(zip(ids.tolist(), metadata, strict=True))
        self._index = self._index.catch_up(ids, vectors, ids[:0])

    def delete(self, ids: np.ndarray) -> None:
        for one in ids.tolist():
            self._rows.pop(one, None)
        self._index = self._index.catch_up(ids[:0], np.empty((0, self._index.dim), np.float32), ids)

    def search(self, vectors: np.ndarray, k: int, filters: Filters | None = None) -> Any:
        keys = np.array([key for key, row in self._rows.items() if passes(row, filters)], np.int64)
        return self._index.search(vectors, k, keys)

    def count(self) -> int:
        return len(self._index)

    def ids(self) -> np.ndarray:
        return np.sort(self._index.keys)


def passes(row: Mapping[str, Any], filters: Filters | None) -> bool:
    if filters is None:
        return True
    low, high, price = filters.price_min, filters.price_max, row["price"]
    return (
        all(set(row[name]) & set(values) for name, values in filters.values().items())
        and (low is None or (price is not None and price >= low))
        and (high is None or (price is not None and price <= high))
    )


def made(engine: str, folder: Path, name: str = "shelf", dim: int = DIM) -> RemoteIndex:
    if engine == "ours":
        return Ours(dim)
    pytest.importorskip({"qdrant": "qdrant_client", "milvus": "milvus_lite"}[engine])
    return connect(engine, ":memory:" if engine == "qdrant" else str(folder / "vectors.db"), name, dim)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def shared(engine, tmp_path_factory) -> RemoteIndex:
    """400 rows; tests must not change it."""
    remote = made(engine, tmp_path_factory.mktemp(engine))
    ids, vectors, rows = drawn()
    for start in range(0, 400, 150):
        remote.upsert(ids[start : start + 150], vectors[start : start + 150], rows[start : start + 150])
    return remote


def drawn(n: int = 400) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        row: dict[str, Any] = dict.fromkeys(FIELDS)
        row |= {"id": f"p{i}", "price": None if i % 7 == 0 else i / 10, "brand": VALUES[i % len(VALUES)]}
        row |= {"colour": ("red", "blue", None)[i % 3], "category": ("a > b > c", "a > bb", "d", None)[i % 4]}
        rows.append(metadata_of(row))
    return rng.integers(0, 2**63 - 1, n), clustered(rng, n), rows


def check(remote: RemoteIndex, queries: np.ndarray, k: int, filters: Filters | None = None) -> None:
    """Exactly what comparing each row gives."""
    ids, vectors, rows = drawn()
    some = np.array([passes(row, filters) for row in rows])
    for query, hits in zip(queries, remote.search(queries, k, filters), strict=True):
        scores = dict(zip(ids[some].tolist(), (vectors[some] @ query).tolist(), strict=True))
        best = sorted(scores.values(), reverse=True)[:k]
        assert [score for _, score in hits] == pytest.approx(best, abs=1e-4)
        assert all(scores[key] == pytest.approx(score, abs=1e-4) for key, score in hits)


def test_search(shared):
    queries = clustered(np.random.default_rng(1), 5)
    assert shared.count() == 400 and shared.ids().tolist() == sorted(drawn()[0].tolist())
    for k in (1, 10, 60):
        check(shared, queries, k)


VALUE = st.sampled_from([*VALUES, "a > b", "a", "a > b > c", "nobody's"])
FILTER = st.builds(
    Filters,
    st.dictionaries(
        st.sampled_from(["brand", "colour", "category", "size"]), st.lists(VALUE, max_size=3), max_size=2
    ),
    st.none() | st.floats(-1, 50),
    st.none() | st.floats(-1, 50),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(filters=FILTER)
def test_filters(shared, filters):
    check(shared, clustered(np.random.default_rng(1), 2), 10, filters)


def test_rows_come_change_and_go(engine, tmp_path):
    remote = made(engine, tmp_path)
    ids, vectors, rows = drawn(20)
    assert remote.count() == 0 and remote.ids().tolist() == []
    remote.upsert(ids[:0], vectors[:0], [])
    remote.upsert(ids, vectors, rows)
    remote.upsert(ids[:5], vectors[5:10], [{**row, "brand": ["changed"]} for row in rows[:5]])
    assert remote.count() == 20
    (hits,) = remote.search(vectors[5:6], 3, Filters({"brand": ["changed"]}))
    assert hits[0][0] == ids[0] and hits[0][1] == pytest.approx(1, abs=1e-4) and len(hits) == 3
    remote.delete(np.array([*ids[:3].tolist(), 12345]))
    remote.delete(ids[:0])
    assert remote.count() == 17 and remote.ids().tolist() == sorted(ids[3:].tolist())
    (hits,) = remote.search(vectors[5:6], 50)
    assert {key for key, _ in hits} == set(ids[3:].tolist())


def test_a_collection_becomes_a_copy_of_the_store(engine, tmp_path):
    shelf = Catalogue.create(tmp_path / "shelf", FakeModel())
    shelf.embed([product(i) for i in range(30)])
    remote = made(engine, tmp_path, dim=32)
    done = push(shelf.store, remote)
    assert (done.written, done.deleted, done.rows) == (30, 0, 30)
    keys, vectors = shelf.store.vectors()
    assert remote.ids().tolist() == keys.tolist()
    (hits,) = remote.search(vectors[:1], 30, Filters({"category": ["things > boot"], "colour": ["Red"]}))
    assert {key for key, _ in hits} == {key_of(f"p{i}") for i in range(30) if i % 5 == 1 and i % 3 == 0}
    shelf.embed([product(i, price=99.0) for i in range(5, 33)])
    done = push(shelf.store, remote)
    assert (done.written, done.deleted, done.rows) == (28, 5, 28)
    (hits,) = remote.search(vectors[:1], 50, Filters(price_min=99))
    assert len(hits) == 28


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_the_command(engine, tmp_path):
    pytest.importorskip({"qdrant": "qdrant_client", "milvus": "milvus_lite"}[engine])
    shelf = Catalogue.create(tmp_path / "shelf", FakeModel())
    shelf.embed([product(i) for i in range(12)])
    place = str(tmp_path / ("qdrant" if engine == "qdrant" else "milvus.db"))
    call = ["store", "push", str(shelf.folder), "--to", engine, "--url", place, "--collection", "shelf"]
    result = CliRunner().invoke(cli.app, [*call, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"written": 12, "deleted": 0, "rows": 12}


def test_mistakes_are_said(tmp_path):
    with pytest.raises(UserError, match="no backend 'faiss'"):
        connect("faiss", "x", "y", 4)
    with pytest.raises(UserError, match="no filter 'shade'"):
        Filters({"shade": ["x"]})
    with pytest.raises(UserError, match="finite"):
        Filters(price_max=float("nan"))
    pytest.importorskip("qdrant_client")
    connect("qdrant", str(tmp_path / "q"), "shelf", 4)._client.close()
    with pytest.raises(UserError, match="vectors of 4 and not of 8"):
        connect("qdrant", str(tmp_path / "q"), "shelf", 8)
    with pytest.raises(UserError, match=r"qdrant at http://127.0.0.1:9 cannot be used"):
        connect("qdrant", "http://127.0.0.1:9", "shelf", 8)

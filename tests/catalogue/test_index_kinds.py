"""Both kinds of vector index find what a scan finds, with and without filters, and follow the store."""

from __future__ import annotations

import numpy as np
import pytest
from index_data import clustered

from moonshelf.catalogue.vector_index import FLAT_ROWS, Passing, VectorIndex

ROWS = 4000


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    vectors = clustered(np.random.default_rng(0), ROWS)
    return np.random.default_rng(1).permutation(ROWS).astype(np.int64) * 10**12, vectors


@pytest.fixture(scope="module", params=[FLAT_ROWS, 0], ids=["flat", "hnsw"])
def index(request, rows) -> VectorIndex:
    return VectorIndex.of(*rows, request.param)


@pytest.fixture(autouse=True)
def narrow(monkeypatch) -> None:
    """Few rows of a filter are many."""
    monkeypatch.setattr("moonshelf.catalogue.vector_index._DENSE_ROWS", 100)


def recall(
    index: VectorIndex, queries: np.ndarray, keys: np.ndarray, vectors: np.ndarray, allowed=None
) -> float:
    """Of the ten nearest among `keys`; scores must be right and fall."""
    found = index.search(queries, 10, allowed)
    order = np.argsort(keys)
    scores = (queries @ vectors.T)[:, order]
    good = 0
    for line, hits in zip(scores, found, strict=True):
        ids, told = (np.array(column) for column in zip(*hits, strict=True))
        places = np.searchsorted(keys[order], ids)
        assert (keys[order][places] == ids).all() and len(set(ids)) == len(hits) == min(10, len(keys))
        np.testing.assert_allclose(told, line[places], atol=2e-3)
        assert (np.diff(told) <= 0).all()
        good += int((line[places] >= np.partition(line, -len(hits))[-len(hits)] - 1e-6).sum())
    return good / sum(map(len, found))


@pytest.mark.parametrize("share", [None, 0.5, 0.1, 0.02, 0.001])
def test_finds_what_a_scan_finds(index, rows, share):
    keys, vectors = rows
    queries = clustered(np.random.default_rng(5), 40)
    if share is None:
        assert recall(index, queries, keys, vectors) >= 0.95
        return
    some = np.random.default_rng(2).permutation(ROWS)[: int(share * ROWS)]
    allowed = Passing(index, keys[some])
    for _ in range(2):  # the second time with what was kept of the first
        assert recall(index, queries, keys[some], vectors[some], allowed) >= 0.95


def test_a_filter_far_from_the_query(index, rows):
    """A whole region of the space passes, and it is not the query's: the worst case for a first pass."""
    keys, vectors = rows
    for query in clustered(np.random.default_rng(5), 5):
        far = np.argsort(vectors @ query)[: ROWS // 4]
        assert recall(index, query[None], keys[far], vectors[far], keys[far]) >= 0.8


def test_catches_up_with_rows_that_come_change_and_go(index, rows):
    keys, vectors = rows
    rng = np.random.default_rng(3)
    later = index
    now = dict(zip(keys.tolist(), vectors, strict=True))
    for step in range(3):
        new = clustered(rng, 50)
        added = np.concatenate([rng.choice(keys, 25, replace=False), np.arange(25) + 1 + 100 * step])
        removed = np.setdiff1d(rng.choice(keys, 400, replace=False), added)
        later = later.catch_up(added, new, removed)
        now.update(zip(added.tolist(), new, strict=True))
        for key in removed.tolist():
            now.pop(key, None)
    assert len(later) == len(now) and len(index) == ROWS
    held, matrix = np.array(list(now)), np.array(list(now.values()))
    queries = clustered(rng, 30)
    assert recall(later, queries, held, matrix) >= 0.94
    some = rng.permutation(len(held))[: len(held) // 3]
    assert recall(later, queries, held[some], matrix[some], held[some]) >= 0.94
    few = some[:90]
    assert recall(later, queries, held[few], matrix[few], held[few]) >= 0.999
    gone = np.setdiff1d(keys, held)
    assert later.search(queries, 10, gone) == [[]] * 30


def test_clusters_that_the_query_is_not_in():
    """A filter that passes a few regions of the space: the graph finds too few, so all are compared."""
    vectors = clustered(np.random.default_rng(0), 8000)
    keys = np.arange(8000)
    index = VectorIndex.of(keys, vectors, 0)
    regions = np.argmax(vectors @ clustered(np.random.default_rng(4), 25).T, axis=1)
    some, others = np.flatnonzero(regions < 6), np.flatnonzero(regions >= 6)
    queries = vectors[np.concatenate([others[:20], some[:5]])]
    assert recall(index, queries, keys[some], vectors[some], Passing(index, keys[some])) >= 0.95

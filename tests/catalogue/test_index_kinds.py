"""Every kind of vector index: it finds what a scan finds, with and without filters, and follows the store."""

from __future__ import annotations

import numpy as np
import pytest
from index_data import DIM, clustered

from moonshelf.catalogue.index_spec import KINDS, Spec
from moonshelf.catalogue.nearest import AnnIndex

ROWS = 4000
SPECS = {
    "flat": Spec("flat"),
    "hnsw": Spec.hnsw(),
    "hnsw-sq8": Spec("hnsw-sq8", links=24, ef_build=60, effort=64, shortlist=2),
    "sq8": Spec("sq8", shortlist=2),
    "prefix": Spec("prefix", dims=32, shortlist=30),
    "binary": Spec("binary", shortlist=60),
    "ivf-sq8": Spec("ivf-sq8", lists=64, effort=32, shortlist=2),
    "ivf-pq": Spec("ivf-pq", lists=32, code=8, effort=16, shortlist=40),
}


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    vectors = clustered(np.random.default_rng(0), ROWS)
    return np.random.default_rng(1).permutation(ROWS).astype(np.int64) * 10**12, vectors


@pytest.fixture(scope="module", params=KINDS)
def index(request, rows) -> AnnIndex:
    return AnnIndex.of(*rows, spec=SPECS[request.param])


def recall(
    index: AnnIndex, queries: np.ndarray, keys: np.ndarray, vectors: np.ndarray, allowed=None
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
    allowed = index.passing(keys[some])
    for _ in range(3):  # from the second time on, a narrow filter has a matrix or signs of its own
        assert recall(index, queries, keys[some], vectors[some], allowed) >= 0.95


def test_a_filter_far_from_the_query(index, rows):
    """A whole region of the space passes, and it is not the query's: the worst case for a first pass."""
    keys, vectors = rows
    for query in clustered(np.random.default_rng(5), 5):
        far = np.argsort(vectors @ query)[: ROWS // 4]
        if not index.spec.rescored:
            assert recall(index, query[None], keys[far], vectors[far], keys[far]) >= 0.8
        allowed = index.passing(keys[far])
        for _ in range(2):
            (hits,) = index.search(query[None], 10, allowed)
            best = np.sort(vectors[far] @ query)[-10:]
            assert {key for key, _ in hits} <= set(keys[far].tolist()) and len(hits) == 10
            assert np.mean([score for _, score in hits]) >= best.mean() - 0.02, (
                "as near, if not the same rows"
            )


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


def test_clusters_that_the_query_is_not_in(monkeypatch):
    """A filter that passes a few regions of the space: the graph fails, and the filter's sketch answers."""
    monkeypatch.setattr("moonshelf.catalogue.nearest._DENSE_ROWS", 500)
    vectors = clustered(np.random.default_rng(0), 8000)
    keys = np.arange(8000)
    index = AnnIndex.of(keys, vectors, spec=SPECS["hnsw"])
    regions = np.argmax(vectors @ clustered(np.random.default_rng(4), 25).T, axis=1)
    some, others = np.flatnonzero(regions < 6), np.flatnonzero(regions >= 6)
    allowed = index.passing(keys[some])
    queries = vectors[np.concatenate([others[:20], some[:5]])]
    for _ in range(3):
        assert recall(index, queries, keys[some], vectors[some], allowed) >= 0.95
    assert allowed.sketched


def test_the_arithmetic_of_memory_is_near_what_is_written(index, rows):
    from moonshelf.catalogue.tuning import bytes_of

    measured = bytes_of(index) + index.ids.nbytes
    assert index.spec.memory(ROWS, DIM) == pytest.approx(measured, rel=0.12)


@pytest.mark.parametrize("near", [True, False])
def test_a_narrow_filter_that_comes_again_has_a_sketch(near, monkeypatch):
    """Rows so alike that their signs are nearly the same get a byte a number."""
    monkeypatch.setattr("moonshelf.catalogue.nearest._DENSE_ROWS", 4_000)
    rng = np.random.default_rng(0)
    vectors = clustered(rng, 100_000)
    if near:
        vectors = 4 * vectors[:1] + vectors
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    keys = np.arange(len(vectors))
    index = AnnIndex.of(keys, vectors, spec=SPECS["sq8"])
    allowed = index.passing(keys[:4900])
    for _ in range(3):
        assert recall(index, vectors[:40], keys[:4900], vectors[:4900], allowed) >= 0.95
    assert allowed.sketched and allowed.sketch._spec.kind == ("sq8" if near else "binary")


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="no index of kind 'magic'"):
        Spec("magic")

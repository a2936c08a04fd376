"""Blocked search finds what a float64 matrix of all scores says, ties and all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshelf.evaluation.statistics import metrics
from research.studies.dense import ranks_of


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(metrics, "SCORES", 60)


def unit(vectors):
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norm > 0, norm, 1)).astype(np.float32)


def check(queries, corpus, gains, k=5):
    """Places and the first k against the dense float64 scores."""
    rows, columns = np.nonzero(gains)
    found = metrics.search(queries, corpus, rows, columns, k)
    dense = metrics.similarity(queries, corpus)
    expected = ranks_of(dense, gains)
    np.testing.assert_array_equal(found.above, expected.above)
    np.testing.assert_array_equal(found.tied, expected.tied)
    np.testing.assert_allclose(found.scores, dense[rows, columns])
    best = -np.sort(-dense, axis=1)[:, :k]
    assert found.top.shape == (len(queries), min(k, len(corpus)))
    np.testing.assert_allclose(np.take_along_axis(dense, found.top, axis=1), best, atol=1e-6)
    np.testing.assert_allclose(found.top_scores, best, atol=1e-6)
    assert all(len(set(row)) == len(row) for row in found.top.tolist())
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 40), st.integers(1, 5), st.booleans())
def test_places_are_those_of_all_scores_in_float64(seed, q, g, dim, repeated):
    rng = np.random.default_rng(seed)
    queries, corpus = unit(rng.normal(size=(q, dim))), unit(rng.normal(size=(g, dim)))
    if repeated:  # equal vectors anywhere, and vectors of nothing
        corpus = corpus[rng.integers(0, max(1, g // 3), g)]
        corpus[rng.random(g) < 0.3] = 0
        queries[rng.random(q) < 0.3] = 0
    gains = (rng.random((q, g)) < 0.3).astype(float)
    gains[np.arange(q), rng.integers(0, g, q)] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "SCORES", 60)
        check(queries, corpus, gains)


@pytest.mark.parametrize("relevant", [1, 3, 40])
def test_large_blocks_near_ties_and_many_relevant_items(relevant):
    rng = np.random.default_rng(relevant)
    corpus = unit(rng.normal(size=(5000, 48)))
    corpus[1000:1500] = corpus[500:1000]  # equal
    corpus[2000:2500] = unit(corpus[500:1000] + 1e-7 * rng.normal(size=(500, 48)))  # all but equal
    queries = unit(corpus[rng.integers(0, 5000, 1100)] + 0.05 * rng.normal(size=(1100, 48)))
    gains = np.zeros((1100, 5000))
    gains[np.arange(1100)[:, None], rng.integers(0, 5000, (1100, relevant))] = 1
    found = check(queries, corpus, gains, k=10)
    assert (found.tied > 1).sum() > 50


def test_a_constant_encoder_ties_with_everything(small_blocks):
    vectors = unit(np.ones((30, 7)))
    gains = np.eye(30)
    found = check(vectors, vectors, gains)
    assert (found.above == 0).all() and (found.tied == 30).all()
    assert found.top[:, 0].tolist() == [0] * 30  # ties stand in corpus order
    assert found.top.tolist() == [[0, 1, 2, 3, 4]] * 30


def test_signs_alone_tie_in_few_levels():
    rng = np.random.default_rng(2)
    corpus = unit(np.sign(rng.normal(size=(3000, 64))))
    gains = np.zeros((50, 3000))
    gains[np.arange(50), rng.integers(0, 3000, 50)] = 1
    assert check(corpus[:50], corpus, gains).tied.max() > 20


def test_memory_stays_at_blocks():
    import tracemalloc

    rng = np.random.default_rng(3)
    vectors = unit(rng.normal(size=(10_000, 16)))
    everyone = np.arange(10_000)
    tracemalloc.start()
    found = metrics.search(vectors, vectors, everyone, everyone)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.top[:, 0] == everyone).all() and (found.above == 0).all()
    assert peak < 100e6  # all scores would take 400 MB in float32


@pytest.mark.parametrize(
    ("queries", "corpus", "message"),
    [
        (np.ones((1, 2)), np.ones((0, 2)), "corpus is empty"),
        (np.ones((1, 2)), np.ones((1, 3)), "one dim"),
        (np.full((1, 2), np.nan), np.ones((1, 2)), "not finite"),
    ],
)
def test_what_cannot_be_searched_says_why(queries, corpus, message):
    nothing = np.zeros(0, np.int64)
    with pytest.raises(ValueError, match=message):
        metrics.search(queries, corpus, nothing, nothing)

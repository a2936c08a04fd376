"""Metrics against ranx and scikit-learn, against enumeration of tie orders, and their properties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moonshelf.evaluation.statistics import metrics, significance
from research.studies.dense import ranks_of

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 7))


def hit_at(scores, gains, k):
    return metrics.hit(ranks_of(scores, gains), k)


def ndcg_at(scores, gains, k):
    return metrics.ndcg(ranks_of(scores, gains), k)


@st.composite
def blocks(draw, *, tied: bool = True):
    """Scores (few distinct values, so that ties are common) and gains with one relevant item at least."""
    q, g = draw(SHAPES)
    values = st.integers(0, 2) if tied else st.integers(0, 10**6)
    scores = draw(hnp.arrays(np.int64, (q, g), elements=values, unique=not tied)).astype(float)
    gains = draw(hnp.arrays(np.int64, (q, g), elements=st.integers(0, 3))).astype(float)
    first = draw(st.lists(st.integers(0, g - 1), min_size=q, max_size=q))
    gains[np.arange(q), first] = np.maximum(gains[np.arange(q), first], 1)
    return scores, gains


def _enumerate(scores, gains, function):
    """Mean of `function(ranked gains)` over all orders that agree with the scores."""
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    return np.mean([function([gains[i] for i in order]) for order in orders])


def _average_precision(ranked):
    places = [i for i, gain in enumerate(ranked) if gain > 0]
    return np.mean([(j + 1) / (place + 1) for j, place in enumerate(places)])


def _dcg(ranked, k):
    return sum(gain / math.log2(i + 2) for i, gain in enumerate(ranked[:k]))


@settings(max_examples=60, deadline=None)
@given(blocks(), st.integers(1, 8))
def test_ties_are_the_expectation_over_all_orders(block, k):
    scores, gains = block
    scores, gains = scores[:1, :6], gains[:1, :6]
    gains[0, 0] = max(gains[0, 0], 1)
    row = scores[0], gains[0]
    hit = _enumerate(*row, lambda ranked: float(any(g > 0 for g in ranked[:k])))
    first = _enumerate(*row, lambda ranked: 1 / (1 + next(i for i, g in enumerate(ranked) if g > 0)))
    ndcg = _enumerate(*row, lambda ranked: _dcg(ranked, k) / _dcg(sorted(row[1], reverse=True), k))
    assert hit_at(scores, gains, k)[0] == pytest.approx(hit)
    ranks = ranks_of(scores, gains)
    assert metrics.reciprocal(ranks)[0] == pytest.approx(first)
    assert ndcg_at(scores, gains, k)[0] == pytest.approx(ndcg)
    precision = _enumerate(*row, _average_precision)
    assert metrics.average_precision(ranks)[0] == pytest.approx(precision)


@settings(max_examples=100, deadline=None)
@given(blocks(), st.integers(1, 6), st.randoms())
def test_values_are_bounded_monotone_and_blind_to_the_order_of_the_corpus(block, k, random):
    scores, gains = block
    column = list(range(scores.shape[1]))
    random.shuffle(column)
    for metric in (hit_at, ndcg_at):
        value = metric(scores, gains, k)
        assert ((value >= -1e-12) & (value <= 1 + 1e-12)).all()
        np.testing.assert_allclose(metric(scores[:, column], gains[:, column], k), value, atol=1e-12)
    assert (hit_at(scores, gains, k) <= hit_at(scores, gains, k + 1) + 1e-12).all()
    np.testing.assert_allclose(hit_at(scores, gains, scores.shape[1]), 1)
    ranks = ranks_of(scores, gains)
    raised = ranks_of(np.exp(scores / 10**6), gains)  # by an increasing function: no ranking changes
    turned = ranks_of(scores[:, column], gains[:, column])
    for metric in (metrics.reciprocal, metrics.average_precision):
        value = metric(ranks)
        assert ((value > 0) & (value <= 1 + 1e-12)).all()
        np.testing.assert_allclose(metric(raised), value)
        np.testing.assert_allclose(metric(turned), value)
        np.testing.assert_allclose(metric(ranks) <= 1, True)
    first = np.where(metrics.reciprocal(ranks) > 1 - 1e-12, 1.0, 0.0)
    assert (metrics.hit(ranks, 1) >= first - 1e-12).all()


@settings(max_examples=60, deadline=None)
@given(blocks(), st.randoms())
def test_queries_do_not_touch_each_other(block, random):
    scores, gains = block
    order = list(range(len(scores)))
    random.shuffle(order)
    for name in ("R@1", "hit@2", "nDCG@3", "MRR", "mAP"):
        whole = metrics.ranking_metric(name, ranks_of(scores, gains))
        turned = metrics.ranking_metric(name, ranks_of(scores[order], gains[order]))
        np.testing.assert_allclose(turned, whole[order])
        alone = [
            metrics.ranking_metric(name, ranks_of(scores[i : i + 1], gains[i : i + 1]))[0]
            for i in range(len(scores))
        ]
        np.testing.assert_allclose(alone, whole)


def test_hit_is_another_name_and_an_unknown_name_is_refused():
    ranks = ranks_of(np.arange(6.0).reshape(2, 3), np.eye(3)[:2])
    np.testing.assert_array_equal(
        metrics.ranking_metric("hit@1", ranks), metrics.ranking_metric("R@1", ranks)
    )
    with pytest.raises(ValueError, match="unknown metric P@1"):
        metrics.ranking_metric("P@1", ranks)


def test_a_higher_grade_can_be_asked_for():
    ranks = ranks_of([[3.0, 2.0, 1.0]], [[1.0, 0.0, 3.0]])
    assert metrics.reciprocal(ranks)[0] == 1 and metrics.reciprocal(ranks.at_least(2))[0] == pytest.approx(
        1 / 3
    )
    with pytest.raises(ValueError, match="no item of gain 4"):
        ranks.at_least(4)


def test_a_random_order_is_the_mean_over_many():
    rng = np.random.default_rng(9)
    gains = np.zeros((1, 12))
    gains[0, :4] = [3, 1, 1, 2]
    chance = ranks_of(np.zeros((1, 12)), gains)
    drawn = ranks_of(rng.random((20000, 12)), np.repeat(gains, 20000, axis=0))
    for name in ("R@3", "nDCG@5", "MRR", "mAP"):
        expected = metrics.ranking_metric(name, chance)[0]
        assert metrics.ranking_metric(name, drawn).mean() == pytest.approx(expected, abs=0.008)
        assert metrics.ranking_metric(name, drawn.shuffled())[0] == pytest.approx(expected)


def test_a_constant_score_is_chance():
    gains = np.zeros((2, 100))
    gains[0, :3] = gains[1, 7] = 1
    chance = hit_at(np.zeros((2, 100)), gains, 10)
    drawn = math.comb(97, 10) / math.comb(100, 10)
    np.testing.assert_allclose(chance, [1 - drawn, 0.1])


@pytest.mark.slow  # ranx compiles for a minute; scikit-learn and the enumeration above check every run
@pytest.mark.filterwarnings("ignore")
def test_equal_to_ranx_without_ties():
    from ranx import Qrels, Run, evaluate

    rng = np.random.default_rng(3)
    scores = rng.permuted(np.tile(np.arange(40.0), (25, 1)), axis=1)
    gains = rng.integers(0, 4, (25, 40)) * (rng.random((25, 40)) < 0.2)
    gains[:, 5] = 1
    names = [f"q{i:02}" for i in range(25)]
    qrels = {
        q: {f"d{j}": int(g) for j, g in enumerate(row) if g} for q, row in zip(names, gains, strict=True)
    }
    run = {q: {f"d{j}": float(s) for j, s in enumerate(row)} for q, row in zip(names, scores, strict=True)}
    ranked = Run(run)
    evaluate(Qrels(qrels), ranked, ["hit_rate@1", "hit_rate@10", "mrr", "ndcg@10", "map"])
    ranks = ranks_of(scores, gains)
    for theirs, ours in (
        ("hit_rate@1", hit_at(scores, gains, 1)),
        ("hit_rate@10", hit_at(scores, gains, 10)),
        ("mrr", metrics.reciprocal(ranks)),
        ("map", metrics.average_precision(ranks)),
        ("ndcg@10", ndcg_at(scores, gains, 10)),
    ):
        np.testing.assert_allclose([ranked.scores[theirs][q] for q in names], ours, err_msg=theirs)


def test_ndcg_with_ties_is_scikit_learns():
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(4)
    scores = rng.integers(0, 4, (20, 12)).astype(float)
    gains = rng.integers(0, 3, (20, 12)).astype(float)
    gains[:, 0] = 2
    for k in (1, 5, 12, 50):
        expected = [ndcg_score(gains[i : i + 1], scores[i : i + 1], k=k) for i in range(20)]
        np.testing.assert_allclose(ndcg_at(scores, gains, k), expected)


def test_average_precision_without_ties_is_scikit_learns():
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(8)
    scores = rng.permuted(np.tile(np.arange(40.0), (25, 1)), axis=1)
    gains = (rng.random((25, 40)) < 0.2).astype(float)
    gains[:, 5] = 1
    expected = [average_precision_score(gain, score) for gain, score in zip(gains, scores, strict=True)]
    found = metrics.average_precision(ranks_of(scores, gains))
    np.testing.assert_allclose(found, expected)


def test_neighbours_and_centroids_are_scikit_learns():
    from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
    from sklearn.preprocessing import normalize

    rng = np.random.default_rng(5)
    fitted, queries = normalize(rng.normal(size=(90, 8))), normalize(rng.normal(size=(30, 8)))
    labels = rng.integers(0, 4, 90)
    ours = metrics.knn_scores(queries, fitted, labels, 4, k=5).argmax(axis=1)
    theirs = KNeighborsClassifier(5, metric="cosine", weights=lambda d: 2.0 - d).fit(fitted, labels)
    np.testing.assert_array_equal(ours, theirs.predict(queries))
    centre = NearestCentroid().fit(fitted, labels).centroids_
    ours = metrics.centroid_scores(queries, fitted, labels, 5)
    np.testing.assert_array_equal(ours.argmax(axis=1), (queries @ normalize(centre).T).argmax(axis=1))
    assert (ours[:, 4] == -2).all()  # a label that was never seen is never chosen


def test_similarity_ties_equal_vectors_wherever_they_stand():
    rng = np.random.default_rng(6)
    vector = rng.normal(size=(1, 256)).astype(np.float32)
    corpus = rng.normal(size=(137, 256)).astype(np.float32)
    corpus[[3, 77, 136]] = vector
    scores = metrics.similarity(vector, corpus)
    assert len(set(scores[0, [3, 77, 136]])) == 1


def test_interval_covers_the_mean_and_widens_with_clusters():
    rng = np.random.default_rng(7)
    per_cluster = rng.random(50)
    values = np.repeat(per_cluster, 8)
    names = np.repeat([f"c{i}" for i in range(50)], 8).tolist()
    rows, clustered = significance.bootstrap(values), significance.bootstrap(values, names)
    assert rows.value == clustered.value == pytest.approx(values.mean())
    assert clustered.low < clustered.value < clustered.high
    assert clustered.high - clustered.low > 2 * (rows.high - rows.low)  # about sqrt(8) times as wide
    assert (clustered.n, clustered.clusters) == (400, 50)
    assert clustered == significance.bootstrap(values, names)  # deterministic
    half_width = 1.96 * per_cluster.std() / math.sqrt(50)
    assert (clustered.high - clustered.low) / 2 == pytest.approx(half_width, rel=0.15)


def test_one_cluster_has_no_interval():
    interval = significance.bootstrap([0.0, 1.0], ["a", "a"])
    assert interval.value == 0.5 and math.isnan(interval.low) and math.isnan(interval.high)


@pytest.mark.parametrize(
    ("scores", "gains", "message"),
    [
        (np.zeros((1, 0)), np.zeros((1, 0)), "corpus is empty"),
        (np.zeros((1, 2)), np.zeros((1, 2)), "no relevant item"),
        (np.full((1, 2), np.nan), np.ones((1, 2)), "not a number"),
        (np.zeros((1, 2)), np.ones((1, 3)), "shape"),
        (np.zeros((1, 2)), np.array([[1.0, -1.0]]), "not negative"),
    ],
)
def test_what_cannot_be_scored_says_why(scores, gains, message):
    for metric in (hit_at, ndcg_at):
        with pytest.raises(ValueError, match=message):
            metric(scores, gains, 1)

"""Figures of labels and pairs against scikit-learn, with and without weights, and their properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as theirs

from moonshelf.evaluation.statistics.metrics import Ranking, at_threshold, macro


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 6))
def test_macro_figures_are_scikit_learns(seed, n, labels):
    rng = np.random.default_rng(seed)
    truth, given_ = rng.integers(0, labels, (2, n)).astype(str)
    weights = rng.integers(0, 4, n).astype(float)
    weights[0] = 1
    figures = macro(truth.tolist(), [[label] for label in given_.tolist()])
    for weight in (None, weights):
        kept = np.ones(n, bool) if weight is None else weight > 0
        used = None if weight is None else weight[kept]
        expected = theirs.precision_recall_fscore_support(
            truth[kept], given_[kept], average="macro", zero_division=0, sample_weight=used
        )
        np.testing.assert_allclose(figures(weight), expected[:3])


def test_a_tie_is_predicted_with_its_share_and_silence_with_none():
    precision, recall, f1 = macro(["a", "b"], [["a", "b"], []])(None)
    assert precision == pytest.approx((1 + 0) / 2)  # of half a prediction each, that of a is right
    assert recall == pytest.approx((0.5 + 0) / 2)
    assert f1 == pytest.approx((2 * 0.5 / 1.5 + 0) / 2)


scores_and_truth = st.lists(
    st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=2, max_size=40
).filter(lambda rows: len({same for _, same, weight in rows if weight}) == 2)


@settings(max_examples=80, deadline=None)
@given(scores_and_truth, st.randoms())
def test_pairs_are_scikit_learns_ties_and_weights_included(rows, random):
    score, same, weight = (np.array(column) for column in zip(*rows, strict=True))
    for weights in (None, weight.astype(float)):
        if weights is None and len(set(same.tolist())) < 2:
            continue
        ranking = Ranking(score, same)
        expected = theirs.average_precision_score(same, score, sample_weight=weights)
        assert ranking.average_precision(weights) == pytest.approx(expected)
        expected = theirs.roc_auc_score(same, score, sample_weight=weights)
        assert ranking.roc_auc(weights) == pytest.approx(expected)
        f1, accuracy = at_threshold(score, same, 2.5, weights)
        called = score >= 2.5
        assert f1 == pytest.approx(theirs.f1_score(same, called, sample_weight=weights, zero_division=0))
        assert accuracy == pytest.approx(theirs.accuracy_score(same, called, sample_weight=weights))
    order = list(range(len(score)))
    random.shuffle(order)
    turned = Ranking(score[order], same[order])
    assert turned.average_precision() == pytest.approx(ranking.average_precision())
    assert turned.best_threshold() == ranking.best_threshold()


@settings(max_examples=60, deadline=None)
@given(scores_and_truth)
def test_no_threshold_is_better_than_the_best(rows):
    score, same, _ = (np.array(column) for column in zip(*rows, strict=True))
    ranking = Ranking(score, same)
    for place, metric in enumerate(("F1", "accuracy")):
        threshold, value = ranking.best_threshold(metric)
        assert at_threshold(score, same, threshold)[place] == pytest.approx(value)
        others = [at_threshold(score, same, t)[place] for t in np.arange(-0.5, 7)]
        # "nothing is a pair" is no threshold of a matcher, though it may be the most accurate answer
        found = [o for o, t in zip(others, np.arange(-0.5, 7), strict=True) if (score >= t).any()]
        assert value == pytest.approx(max(found))


def test_a_constant_score_is_the_share_of_positives():
    same = np.array([True, False, False, False])
    ranking = Ranking(np.zeros(4), same)
    assert ranking.average_precision() == 0.25 and ranking.roc_auc() == 0.5


@pytest.mark.parametrize(
    ("scores", "same", "message"),
    [([1.0, 2.0], [True, True], "one class only"), ([np.nan, 1.0], [True, False], "not finite")],
)
def test_what_cannot_be_ranked_says_why(scores, same, message):
    with pytest.raises(ValueError, match=message):
        Ranking(scores, same)
    with pytest.raises(ValueError, match="unknown metric"):
        Ranking([1.0, 0.0], [True, False]).best_threshold("precision")

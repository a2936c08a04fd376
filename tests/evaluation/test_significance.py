"""Paired tests: they see what is there, keep quiet where nothing is, and agree with the books."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moonshelf.evaluation.statistics import significance
from moonshelf.evaluation.statistics.metrics import macro as macro_of


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
def test_mcnemar_is_the_exact_binomial(better, worse, equal):
    ours = [1] * better + [0] * worse + [1] * equal
    theirs = [0] * better + [1] * worse + [1] * equal
    if not ours:
        return
    n = better + worse
    expected = stats.binomtest(better, n).pvalue if n else 1.0
    assert significance.mcnemar(ours, theirs) == pytest.approx(expected)
    assert significance.mcnemar(theirs, ours) == pytest.approx(expected)


def test_mcnemar_is_of_values_that_are_0_or_1():
    assert significance.mcnemar([0.5, 1], [0, 1]) is None
    assert significance.mcnemar([1, 0], [1, 0]) == 1


def test_a_difference_of_a_mean_is_paired():
    rng = np.random.default_rng(0)
    hard = rng.random(300)  # what both find hard would drown the difference, if the two were not paired
    ours, theirs = hard + 0.05 + 0.05 * rng.normal(size=300), hard
    interval, p = significance.paired_means(ours, theirs)
    assert interval.value == pytest.approx(np.mean(ours - theirs))
    assert 0.03 < interval.low < interval.value < interval.high < 0.07 and p < 0.01
    back, same_p = significance.paired_means(theirs, ours)
    assert (back.low, back.high) == pytest.approx((-interval.high, -interval.low)) and same_p == p


def test_rows_of_a_cluster_are_no_independent_evidence():
    names = np.repeat([f"c{i}" for i in range(12)], 50).tolist()
    difference = np.repeat(np.tile([1.0, -0.6], 6), 50)
    zero = np.zeros(600)
    assert significance.paired_means(difference, zero)[1] < 0.01
    assert significance.paired_means(difference, zero, names)[1] > 0.05
    alone, p = significance.paired_means(difference, zero, ["one"] * 600)
    assert math.isnan(alone.low) and p is None


def test_equal_encoders_differ_rarely_and_p_agrees_with_the_interval():
    rng = np.random.default_rng(2)
    marked = 0
    for _ in range(200):
        ours, theirs = rng.random((2, 80)) < 0.4
        interval, p = significance.paired_means(ours, theirs)
        assert 0 < p <= 1
        if abs(p - 0.05) > 0.004:
            assert (p < 0.05) == (interval.low > 0 or interval.high < 0)
        marked += p < 0.05
    assert marked <= 22  # 10 are expected; beyond 22 is one chance in 5,000
    assert significance.paired_means([1, 0, 1], [1, 0, 1])[1] == 1


def test_figures_that_are_no_mean_are_resampled_with_the_same_draws():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, 200).astype(str).tolist()
    good = [[label if rng.random() < 0.8 else "0"] for label in truth]
    clusters = [f"c{i // 2}" for i in range(200)]
    macro = macro_of(truth, good)
    found, resampled = significance.resample(macro, 200, clusters)
    again = significance.resample(macro, 200, clusters)
    assert resampled.shape == (significance.RESAMPLES, 3)
    np.testing.assert_array_equal(resampled, again[1])
    for one, interval in zip(macro(None), found, strict=True):
        assert interval.low < one == interval.value < interval.high and interval.clusters == 100
    assert significance.two_sided(resampled[:, 2] - again[1][:, 2]) == 1
    assert significance.two_sided(resampled[:, 2] - 0.01) < 0.01
    alone = significance.resample(macro, 200, ["one"] * 200)
    assert math.isnan(alone[0][0].low) and alone[0][0].clusters == 1
    assert significance.two_sided(alone[1][:, 0]) is None


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="not of the same rows"):
        significance.paired_means([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="not of the same rows"):
        significance.mcnemar([1.0], [1.0, 0.0])

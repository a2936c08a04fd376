"""Figures of a selector: against plain float64 references and scikit-learn, and what must never matter."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshelf.creatives.evaluation.metrics import (
    COVERAGES,
    Cases,
    ece_floor,
    figures,
    gap,
    mean_figure,
    paired,
    pairs_needed,
    reliability,
    risk_coverage,
)
from moonshelf.creatives.schema import Judgement
from moonshelf.evaluation.statistics import significance

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

# Few distinct values, so that ties and exact halves are common.
chances = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]) | st.floats(0, 1)


@st.composite
def judged(draw, least=1, most=12) -> Cases:
    n = draw(st.integers(least, most))
    rows = draw(st.lists(st.tuples(chances, chances, chances, st.booleans()), min_size=n, max_size=n))
    truth, first, second, judged = (np.array(column) for column in zip(*rows, strict=True))
    products = draw(st.lists(st.sampled_from("abcde"), min_size=n, max_size=n))
    names = tuple(map(str, range(n)))
    return Cases(names, tuple(products), truth, (first + second) / 2, first, second, judged)


def cases(truth, p, first=None, second=None, judged=None, clusters=None) -> Cases:
    truth, p = np.asarray(truth, float), np.asarray(p, float)
    names = tuple(map(str, range(len(p))))
    return Cases(
        names,
        names if clusters is None else clusters,
        truth,
        p,
        p if first is None else np.asarray(first, float),
        p if second is None else np.asarray(second, float),
        np.ones(len(p), bool) if judged is None else np.asarray(judged),
    )


def values(found: Cases) -> dict[str, float | None]:
    return {one.name: one.value for one in figures(found)}


def swapped(found: Cases) -> Cases:
    """Every pair with the names A and B exchanged: A shown first is then B shown second."""
    return Cases(
        found.ids,
        found.clusters,
        1 - found.truth,
        1 - found.p,
        1 - found.second,
        1 - found.first,
        found.judged,
    )


@pytest.fixture(autouse=True, scope="module")
def few_draws():
    """The tests of values need no thousand draws of each; those of intervals need a hundred."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(significance, "RESAMPLES", 100)
        yield


def test_rows_come_from_judgements_and_are_checked():
    said = [
        Judgement(pair_id="1", p=0.6, p_first=0.7, p_second=0.5),
        Judgement(pair_id="2", p=0.5, p_first=0.9, p_second=0.1, abstained="orders disagree"),
    ]
    found = Cases.of(said, [0.9, 0.2], ["x", "y"])
    assert found.p.tolist() == [0.6, 0.5] and found.judged.tolist() == [True, False]
    assert found.take([1]).ids.tolist() == ["2"] and found.take(found.judged).clusters.tolist() == ["x"]
    for truth, products in (([0.9], ["x", "y"]), ([0.9, 1.1], ["x", "y"]), ([0.9, math.nan], ["x", "y"])):
        with pytest.raises(ValueError):
            Cases.of(said, truth, products)


def test_places_and_orders_counted_by_hand():
    #                 A wins, right   A wins, flips   B wins, right   B wins, wrong in both
    found = values(
        cases([0.9, 0.9, 0.2, 0.2], [0.8, 0.55, 0.3, 0.9], [0.9, 0.8, 0.2, 0.9], [0.7, 0.3, 0.4, 0.9])
    )
    assert found["accuracy"] == 0.75
    assert found["winner first"] == 0.75  # first column for A; for B the order in which A is second
    assert found["winner second"] == 0.5
    assert found["position swap"] == 0.5 and found["flip rate"] == 0.25
    # verdicts for the place shown first: A first: A A B A -> 3; A second: A B B A -> A is second twice -> 2
    assert found["position bias"] == 5 / 8


def test_a_judge_that_always_takes_one_place_shows_as_such():
    found = values(cases([0.9, 0.1] * 20, [0.5] * 40, [0.0] * 40, [1.0] * 40))
    assert (found["winner first"], found["winner second"], found["accuracy"]) == (0.0, 1.0, 0.5)
    assert (found["flip rate"], found["position bias"], found["position swap"]) == (1.0, 0.0, 0.0)


def test_abstentions_are_counted_both_ways():
    found = {
        f.name: f for f in figures(cases([0.9] * 4, [0.8, 0.8, 0.2, 0.8], judged=[True, True, True, False]))
    }
    assert found["accuracy"].value == 0.75 and found["coverage"].value == 0.75
    assert found["accuracy of verdicts"].value == pytest.approx(2 / 3)
    assert found["accuracy of verdicts"].n == 3
    assert found["abstention as miss"].value == 0.5


def test_pairs_without_a_winner_are_no_accuracy_but_count_in_the_losses():
    found = {f.name: f for f in figures(cases([0.5, 0.5], [0.5, 0.9]))}
    assert found["accuracy"].value is None and found["accuracy"].n == 0 and found["AURC"].value is None
    assert found["log loss"].n == 2 and found["log loss"].value > math.log(2)
    assert found["Brier"].value == pytest.approx((0 + 0.16) / 2 + 0.25)
    assert figures(cases([], [])) == []


@given(judged())
@settings(max_examples=60, deadline=None)
def test_means_are_those_of_a_plain_loop(found):
    def side(p):
        return "A" if p > 0.5 else "B" if p < 0.5 else None

    rows = []
    for q, p, first, second, kept in zip(
        found.truth, found.p, found.first, found.second, found.judged, strict=True
    ):
        row = {"coverage": float(kept)}
        row["flip rate"] = float({side(first), side(second)} == {"A", "B"})
        row["order gap"] = abs(first - second)
        row["position bias"] = np.mean([{"A": 1, "B": 0, None: 0.5}[side(x)] for x in (first, 1 - second)])
        said = min(max(p, 1e-6), 1 - 1e-6)
        row["log loss"] = -q * math.log(said) - (1 - q) * math.log(1 - said)
        row["Brier"] = q * (1 - p) ** 2 + (1 - q) * p**2
        if q != 0.5:
            winner = "A" if q > 0.5 else "B"
            right = [{winner: 1.0, None: 0.5}.get(side(x), 0.0) for x in (p, first, second)]
            row["accuracy"] = right[0]
            row["winner first"], row["winner second"] = right[1:] if winner == "A" else right[:0:-1]
            row["position swap"] = float(right[1:] == [1, 1])
            row["abstention as miss"] = right[0] * kept
            if kept:
                row["accuracy of verdicts"] = right[0]
        rows.append(row)
    got = values(found)
    for name in set(got) - {"ECE", "AURC"} - {f"accuracy@{c:.0%}" for c in COVERAGES}:
        kept = [row[name] for row in rows if name in row]
        assert got[name] == (pytest.approx(np.mean(kept), abs=1e-9) if kept else None), name


def test_losses_are_those_of_scikit_learn():
    from sklearn.metrics import brier_score_loss, log_loss

    rng = np.random.default_rng(0)
    truth, p = rng.random(200), rng.uniform(0.01, 0.99, 200)
    found = values(cases(truth, p))
    # a posterior is both outcomes, each with its weight
    y, said, weight = np.repeat([1, 0], 200), np.tile(p, 2), np.concatenate([truth, 1 - truth])
    assert found["log loss"] == pytest.approx(log_loss(y, said, sample_weight=weight))
    assert found["Brier"] == pytest.approx(brier_score_loss(y, said, sample_weight=weight))


def test_the_calibration_bins_are_those_of_scikit_learn():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(1)
    p = rng.uniform(0.5, 1, 200)
    y = (rng.random(200) < p).astype(float)
    bins = reliability(cases(y, p))
    true, said = calibration_curve(y, p, n_bins=10, strategy="quantile")
    np.testing.assert_allclose([b.said for b in bins], said)
    np.testing.assert_allclose([b.truth for b in bins], true)
    assert [b.n for b in bins] == [20] * 10
    assert values(cases(y, p))["ECE"] == pytest.approx(np.mean(np.abs(true - said)))
    assert all(b.low <= b.truth <= b.high for b in bins)


def test_the_floor_of_the_calibration_error_is_that_of_an_honest_judge():
    """Of judges that are calibrated by construction, the mean error and the mean floor agree."""
    rng = np.random.default_rng(2)
    errors, floors = [], []
    for _ in range(30):
        p = rng.uniform(0.05, 0.95, 120)
        found = cases((rng.random(120) < p).astype(float), p)
        errors.append(values(found)["ECE"])
        floors.append(ece_floor(found))
    assert np.mean(errors) == pytest.approx(np.mean(floors), rel=0.1)
    boast = cases(np.repeat([1, 0], [240, 160]), np.full(400, 0.95))
    assert values(boast)["ECE"] == pytest.approx(0.35)
    assert ece_floor(boast) < 0.05  # what is wrong with the mean is no noise


def test_equal_probabilities_share_a_bin():
    found = reliability(cases([1, 0] * 50, [0.7] * 60 + [0.3] * 40))
    assert [(b.said, b.n) for b in found] == [(pytest.approx(0.7), 100)]


@given(judged(most=6))
@settings(max_examples=60, deadline=None)
def test_risk_and_coverage_are_the_mean_over_all_orders_of_ties(found):
    settled = found.take(found.settled)
    got, n = values(found), len(settled)
    if not n:
        assert got["AURC"] is None and risk_coverage(found) == []
        return
    sure = np.round(np.abs(settled.p - 0.5), 12)
    risks = []
    for order in itertools.permutations(range(n)):
        if all(sure[a] >= sure[b] for a, b in itertools.pairwise(order)):
            wrong = 1 - settled.right[list(order)]
            risks.append(np.cumsum(wrong) / np.arange(1, n + 1))
    risk = np.mean(risks, axis=0)
    assert got["AURC"] == pytest.approx(risk.mean())
    for c in COVERAGES:
        kept = math.ceil(round(c * n, 9))
        assert got[f"accuracy@{c:.0%}"] == pytest.approx(1 - risk[kept - 1])
    points = risk_coverage(found)
    assert points[-1] == (1.0, pytest.approx(1 - got["accuracy"]))
    for coverage, wrong in points:
        assert wrong == pytest.approx(risk[round(coverage * n) - 1])


@given(judged())
@settings(max_examples=30, deadline=None)
def test_which_creative_is_called_a_changes_nothing(found):
    ours, theirs = figures(found), figures(swapped(found))
    for one, other in zip(ours, theirs, strict=True):
        assert (one.name, one.n) == (other.name, other.n)
        for name in ("value", "low", "high", "bound"):
            a, b = getattr(one, name), getattr(other, name)
            assert a == (None if b is None else pytest.approx(b, abs=1e-9)), (one.name, name)


@given(judged(least=2), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_rows_changes_no_value(found, random):
    rows = list(range(len(found)))
    random.shuffle(rows)
    ours, theirs = values(found), values(found.take(rows))
    assert all(theirs[k] == (None if v is None else pytest.approx(v, abs=1e-9)) for k, v in ours.items())


@given(judged(least=3))
@settings(max_examples=20, deadline=None)
def test_nobody_beats_the_bound_in_expectation(found):
    """A selector that says the posterior reaches every bound; the losses cannot go below theirs."""
    oracle = cases(found.truth, found.truth, clusters=found.clusters)
    best, given_figures = ({f.name: f for f in figures(one)} for one in (oracle, found))
    for name in ("log loss", "Brier"):
        mine = given_figures[name]
        assert mine.bound == pytest.approx(best[name].value, abs=1e-5)
        assert mine.value >= mine.bound - 1e-9
    assert best["ECE"].value <= 0.5
    if found.settled.any():
        assert best["accuracy"].value == 1 and best["accuracy"].bound == pytest.approx(
            np.maximum(found.truth, 1 - found.truth)[found.settled].mean()
        )


def test_the_ceiling_is_what_knowing_the_truth_gets():
    """Winners are drawn from the posterior; who takes the likelier side is right as often as the ceiling."""
    rng = np.random.default_rng(3)
    truth = rng.uniform(0.5, 1, 4000)
    accuracy = {f.name: f for f in figures(cases(truth, truth))}["accuracy"]
    drawn = (rng.random(4000) < truth).mean()
    assert accuracy.bound == pytest.approx(drawn, abs=0.02)


def test_intervals_draw_whole_products():
    truth, p = np.ones(200), np.repeat([0.9, 0.1], 100)
    loose = {f.name: f for f in figures(cases(truth, p))}["accuracy"]
    tight = {f.name: f for f in figures(cases(truth, p, clusters=[str(i // 50) for i in range(200)]))}[
        "accuracy"
    ]
    assert (loose.n, loose.clusters, tight.clusters) == (200, 200, 4)
    assert tight.high - tight.low > 3 * (loose.high - loose.low)
    alone = {f.name: f for f in figures(cases(truth, p, clusters=["x"] * 200))}["accuracy"]
    assert alone.low is None and alone.high is None and alone.value == 0.5


def test_a_mean_without_rows_has_no_value():
    assert mean_figure("x", [], []).value is None
    assert mean_figure("x", [1, 0], ["a", "b"]).value == 0.5


def test_the_needed_pairs_are_those_of_the_formula_on_record():
    assert pairs_needed(0.03, 0.2) == pytest.approx(1740, abs=3)
    assert pairs_needed(0.05, 0.2) == pytest.approx(625, abs=2)
    assert pairs_needed(0, 0.2) is None
    assert pairs_needed(0.01, 0.2) > 15_000
    with pytest.raises(ValueError):
        pairs_needed(0.6, 0.2)


def test_that_many_pairs_do_find_the_difference_four_times_in_five():
    rng, n = np.random.default_rng(4), pairs_needed(0.1, 0.3)
    found = 0
    for _ in range(300):
        kind = rng.choice(3, size=n, p=[0.2, 0.1, 0.7])  # ours alone, theirs alone, both
        found += significance.mcnemar((kind != 1).astype(int), (kind != 0).astype(int)) < 0.05
    assert found / 300 == pytest.approx(0.8, abs=0.07)


def test_two_selectors_are_compared_on_the_same_pairs():
    truth = np.ones(100)
    ours, theirs = cases(truth, [0.9] * 80 + [0.1] * 20), cases(truth, [0.1] * 30 + [0.9] * 70)
    found = gap(ours, theirs, ("ours", "theirs"))
    assert found.difference == pytest.approx(0.1) and found.discordant == 0.5 and found.n == 100
    assert found.mcnemar == pytest.approx(0.2026, abs=1e-3) and found.low < 0 < found.high
    assert found.needed == pairs_needed(abs(found.difference), 0.5)
    assert gap(ours, ours, ("ours", "ours")).needed is None
    with pytest.raises(ValueError, match="same pairs"):
        gap(ours, cases(truth[:99], [0.9] * 99), ("ours", "theirs"))


def test_how_far_the_orders_disagree_is_compared_pair_by_pair():
    rng = np.random.default_rng(0)
    truth, first = rng.random(200), rng.uniform(0.1, 0.9, 200)
    steady = cases(truth, first, first, first)
    other = np.clip(first + rng.normal(0, 0.1, 200), 0.01, 0.99)
    wavering = cases(truth, (first + other) / 2, first, other)
    found = {one.name: one for one in paired(steady, wavering, ("steady", "wavering"))}
    assert list(found) == ["flip rate", "order gap", "log loss"]
    for name, one in found.items():
        assert one.value == pytest.approx(values(steady)[name] - values(wavering)[name])
        assert one.low <= one.value <= one.high and one.n == 200 and "wavering" in one.note
    assert found["order gap"].high < 0 and found["flip rate"].value < 0
    same = paired(steady, steady, ("steady", "steady"))
    assert {(one.value, one.low, one.high) for one in same} == {(0, 0, 0)}
    with pytest.raises(ValueError, match="same pairs"):
        paired(steady, cases(truth[:9], [0.9] * 9), ("steady", "wavering"))

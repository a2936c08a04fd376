"""Edits of what a selector's reasons name: which factor, which pairs, and how far the probability falls."""

from __future__ import annotations

import pytest
from creative_fakes import Judge, assessment, judgement, pairs

from research.studies.reason_edits import edit_figures, edited_pairs, intervene, named_factor


def test_the_named_factor_is_one_that_both_orders_name_for_the_verdict():
    for_a = assessment(text="A>B", props="A<B")
    assert named_factor(judgement("x", 0.8, assessment=for_a, mirrored=for_a)) == ("A", "text")
    assert named_factor(judgement("x", 0.2, assessment=for_a, mirrored=for_a)) == ("B", "props")
    other = assessment(layout="A>B")
    assert named_factor(judgement("x", 0.8, assessment=for_a, mirrored=other)) is None
    assert named_factor(judgement("x", 0.8, assessment=for_a)) is None
    quiet = judgement("x", 0.8, assessment=for_a, mirrored=for_a, abstained="too close to call")
    assert named_factor(quiet) is None


def test_only_pairs_that_can_be_edited_are_and_no_more_than_wanted():
    for_a = assessment(text="A>B")
    judged = [judgement(f"pair {i}", 0.8, assessment=for_a, mirrored=for_a) for i in range(5)]

    def editor(one, side, question):
        assert (side, question) == ("A", "text")
        return None if one.id == "pair 1" else (one, one)

    rows = edited_pairs(pairs(5), judged, editor, most=3)
    assert [row[0].id for row in rows] == ["pair 0", "pair 2", "pair 3"]


def test_edits_are_held_against_their_placebo():
    trials = [(0.9, 0.4, 0.8), (0.7, 0.7, 0.7)]
    got = {one.name: one.value for one in edit_figures(trials, ["p1", "p2"])}
    assert got["fall after editing the named factor"] == pytest.approx(0.25)
    assert got["fall after a placebo edit"] == pytest.approx(0.05)
    assert got["named factor minus placebo"] == pytest.approx(0.2)
    assert got["falls more than under the placebo"] == 0.75  # no movement at all is half
    assert got["verdict turns after editing"] == 0.5 and got["verdict turns after the placebo"] == 0
    assert edit_figures([], []) == []


def test_the_edited_and_the_placebo_pair_are_judged_again():
    for_a = assessment(text="A>B")
    judged = [judgement(f"pair {i}", 0.8, assessment=for_a, mirrored=for_a) for i in range(2)]

    def editor(one, side, question):
        return one.model_copy(update={"title": "worse"}), one

    def says(ask):
        return 0.5 if ask.title == "worse" else 0.9 if ask.first.id[-1] == "a" else 0.1

    got = {one.name: one.value for one in intervene(Judge("ours", says), pairs(2), judged, editor)}
    assert got["fall after editing the named factor"] == pytest.approx(0.3)
    assert got["fall after a placebo edit"] == pytest.approx(-0.1)

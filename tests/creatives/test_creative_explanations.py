"""Checks of reasons: what counts as form, agreement, truth and cause, on answers that are known."""

from __future__ import annotations

import pytest
from creative_fakes import assessment, judgement, pair, pairs

from moonshelf.creatives.evaluation import explanations as reasons
from moonshelf.creatives.schema import KEYS


def found(figures) -> dict[str, float | None]:
    return {one.name: one.value for one in figures}


def test_form_and_agreement_are_counted_by_order():
    for_a, for_b = assessment(text="A>B", verdict="A"), assessment(text="A<B", verdict="B")
    judged = [
        judgement("pair 0", 0.8, assessment=for_a, mirrored=for_a),
        judgement("pair 1", 0.8, assessment=for_a, mirrored=for_b),  # speaks against itself, and its verdict
        judgement("pair 2", 0.8, assessment=for_a),  # the second order broke the form
        judgement("pair 3", 0.8, assessment=assessment(), mirrored=assessment()),  # nothing speaks for it
        judgement("pair 4", 0.5, abstained="both are the same image"),  # never asked: no form to keep
    ]
    got = {one.name: one for one in reasons.agreement_figures(pairs(5), judged)}
    assert (got["schema valid"].value, got["schema valid"].n) == (7 / 8, 8)
    assert (got["rubric agrees with the verdict"].value, got["rubric agrees with the verdict"].n) == (
        4 / 5,
        5,
    )
    assert got["rubric is even"].value == 2 / 7
    assert got["written verdict agrees with the read one"].value == 4 / 5
    assert got["same answers in the other order"].value == pytest.approx((1 + 8 / 9 + 1) / 3)
    assert got["all answers the same in the other order"].value == 2 / 3


def test_a_judge_without_reasons_has_no_figures_of_them():
    judged = [judgement("pair 0", 0.8)]
    assert reasons.agreement_figures(pairs(1), judged) == []
    assert reasons.question_figures([pair(0, assessment=assessment())], judged) == []
    assert reasons.claim_figures(pairs(1), judged) == []


def test_answers_are_held_against_the_truth_and_the_commonest_answer():
    truths = [assessment(text="A>B", props="A<B"), assessment(text="A<B")]
    known = [pair(i, assessment=truth) for i, truth in enumerate(truths)]
    wrong = assessment(text="A<B", props="A<B")
    judged = [
        judgement("pair 0", 0.8, assessment=truths[0], mirrored=truths[0]),
        judgement("pair 1", 0.8, assessment=wrong, mirrored=truths[1]),
    ]
    rows = {figure.name: (figure, constant) for figure, constant in reasons.question_figures(known, judged)}
    assert set(rows) == {"all aspects", *KEYS}
    assert rows["text"][0].value == 1 and rows["props"][0].value == 3 / 4 and rows["props"][0].n == 4
    assert rows["text"][1] == 0.5  # over both orders A and B are equally common
    assert rows["props"][1] == 0.5 and rows["layout"][1] == 1.0
    assert rows["all aspects"][0].value == pytest.approx(27 / 28)
    assert reasons.question_figures(pairs(2), judged) == []  # nobody knows the truth


def test_claims_are_held_against_both_pictures():
    facts = {"scale": "small", "background": "busy"}
    one = pair(0)
    one = one.model_copy(
        update={
            "a": one.a.model_copy(update={"facts": facts}),
            "b": one.b.model_copy(update={"facts": facts | {"scale": "large"}}),
        }
    )
    findings = [
        finding.model_copy(update=dict(zip(("reason_a", "reason_b"), said, strict=True)))
        for finding in assessment().findings
        for said in [
            {"subject": ("small", "medium"), "background": ("busy", "busy")}.get(finding.question, ("", ""))
        ]
    ]
    said = assessment().model_copy(update={"findings": tuple(findings)})
    got = found(reasons.claim_figures([one], [judgement("pair 0", 0.8, assessment=said)]))
    assert got["claims borne out"] == 3 / 4  # "medium" is not true of B
    assert got["claims of the one held against the other"] == 2 / 4
    assert got["claims borne out where the two differ"] == 1 / 2
    assert got["checkable claims an answer"] == 4

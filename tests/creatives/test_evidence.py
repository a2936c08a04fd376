"""Claims in reasons against facts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshelf.creatives.evidence import check, claims, ground, grounded, named, readable
from moonshelf.creatives.schema import AspectAnswer, Assessment
from research.synthetic.campaigns.simulator import pairs, simulate


def check_assessment(assessment, a, b):
    """(refuted, checked) claims by question."""
    found = {}
    for one in assessment.findings:
        both = [check(one.question, said, facts) for said, facts in ((one.reason_a, a), (one.reason_b, b))]
        found[one.question] = tuple(map(sum, zip(*both, strict=True)))
    return found


FACTS = {
    "claim": "warm",
    "claim_truth": "false",
    "legible": "faint",
    "badge": "sale",
    "colour": "red",
    "scale": "small",
}


@pytest.mark.parametrize(
    ("question", "reason", "expected"),
    [
        ("query", "says warm", (0, 1)),
        ("query", "says waterproof", (1, 1)),
        ("query", "says nothing", (1, 1)),
        ("query", "shows red", (0, 1)),
        ("query", "says waterproof and shows red and shown large", (2, 3)),
        ("query", "nothing asked", (0, 0)),
        ("query", "says warm wants waterproof no", (0, 1)),
        ("query", "says untrue warm wants wool no and shown small wants large no", (0, 3)),
        ("query", "shows navy blue wants red no", (1, 1)),
        ("query", "shows navy blue (wants red: no) and says warm (wants wool: no)", (1, 2)),
        ("query", "wants warm", (0, 0)),
        ("title", "shows red titled red yes", (0, 1)),
        ("title", "shows navy blue", (1, 1)),
        ("title", "shows red titled blue no and says waterproof titled cotton no", (1, 2)),
        ("title", "true to the title", (0, 0)),
        ("text", "faint words warm and badge", (0, 3)),
        ("text", "untrue faint words warm and badge", (0, 4)),
        ("text", "clear words waterproof", (3, 3)),
        ("text", "no words", (2, 2)),
        ("layout", "covered cut off left", (0, 0)),
        ("text", "off topic clear words", (3, 3)),
        ("subject", "large", (1, 1)),
        ("background", "busy", (0, 0)),  # not known: nothing is refuted
        ("layout", "a fine balance", (0, 0)),
    ],
)
def test_a_reason_is_held_against_the_facts(question: str, reason: str, expected: tuple[int, int]) -> None:
    assert check(question, reason, FACTS) == expected


def test_true_reasons_of_the_simulator_are_never_refuted_and_foreign_ones_are() -> None:
    refuted = crossed = checked = 0
    for campaign in simulate(40, seed=5):
        for pair in pairs(campaign):
            assert pair.assessment is not None
            found = check_assessment(pair.assessment, pair.a.facts, pair.b.facts)
            assert list(found) == [finding.question for finding in pair.assessment.findings]
            refuted += sum(wrong for wrong, _ in found.values())
            checked += sum(n for _, n in found.values())
            other = check_assessment(pair.assessment, pair.b.facts, pair.a.facts)
            crossed += sum(wrong for wrong, _ in other.values())
    assert refuted == 0 and checked > 40 * 10
    assert crossed > 0.1 * checked


def test_reasons_for_people_claim_what_the_written_ones_do() -> None:
    for campaign in simulate(20, seed=6):
        for pair in pairs(campaign):
            assert pair.assessment is not None
            shown = readable(pair.assessment)
            for facts in ((pair.a.facts, pair.b.facts), (pair.b.facts, pair.a.facts)):
                assert check_assessment(shown, *facts) == check_assessment(pair.assessment, *facts)
            for told, written in zip(shown.findings, pair.assessment.findings, strict=True):
                words = told.reason_a.replace("(", "").replace(")", "").replace(":", "")
                assert words == written.reason_a
    finding = AspectAnswer(question="query", answer="A=B", reason_a="says warm wants dry no and shows red")
    before, after = pair.assessment.findings[:2], pair.assessment.findings[3:]
    one = readable(Assessment(findings=(*before, finding, *after)))["query"]
    assert one.reason_a == "says warm (wants dry: no) and shows red"


@given(
    st.sampled_from(["query", "title", "text", "props", "layout", "subject", "background"]),
    st.text(max_size=40),
)
def test_any_words_can_be_read(question: str, reason: str) -> None:
    assert all(len(claim) == 2 for claim in claims(question, reason))


@pytest.mark.parametrize(
    ("title", "values"),
    [
        ("Charcoal Tee", {"grey"}),
        ("Navy Blue Bag, off-white", {"navy blue", "white"}),
        ("Bordeaux-red boots", {"maroon", "red"}),
        ("Reduced price: greyhound print, blueberry jam", set()),
        ("RAINPROOF jackets", {"waterproof"}),
        ("", set()),
    ],
)
def test_values_that_a_text_names(title: str, values: set[str]) -> None:
    assert named(title) == values


@pytest.mark.parametrize(
    ("question", "reason", "title", "kept", "dropped"),
    [
        ("title", "shows grey titled maroon no", "Leather bag", "shows grey", 1),
        ("title", "shows grey titled maroon no", "Burgundy bag", "shows grey titled maroon no", 0),
        ("title", "shows grey (titled blue: no)", "Navy blue bag", "shows grey", 1),
        ("title", "shows red and says cotton titled wool no", "Bag", "shows red", 1),
        ("title", "shows grey titled maroon no", "", "shows grey", 0),
        (
            "query",
            "says warm wants warm yes and shows red wants large no",
            "Bag",
            "says warm wants warm yes",
            1,
        ),
        ("query", "says nothing wants large no", "Bag", "nothing asked", 1),
        ("text", "clear words titled maroon", "Bag", "clear words titled maroon", 0),
    ],
)
def test_claims_of_title_and_interest_are_held_against_them(
    question: str, reason: str, title: str, kept: str, dropped: int
) -> None:
    side, out = grounded({question: reason}, title, ("cosy bag", "winter coat"))
    assert side == {question: kept} and len(out) == dropped


@pytest.mark.parametrize("title", ["", "Leather bag"])
@pytest.mark.parametrize("interest", [(), ("red bag",)])
def test_what_was_not_given_is_not_asked(title: str, interest: tuple[str, ...]) -> None:
    (pair,) = [pair for campaign in simulate(1, seed=4) for pair in pairs(campaign)]
    assert pair.assessment is not None
    found, _ = ground(pair.assessment, title, interest)
    assert ("title" in found, "query" in found) == (bool(title), bool(interest))
    assert found.swapped().swapped() == found and "wants" not in str(found["text"])
    assert ground(found, title, interest) == (found, [])
    with pytest.raises(ValueError, match="may be missing"):
        Assessment(findings=found.findings[1:])

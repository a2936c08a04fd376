"""The protocol's schema, its mirror, and the written form of an assessment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judging_fakes import assessment, pair
from pydantic import ValidationError

from moonshelf.creatives.prompt import CreativePrompt, read_assessment, write_assessment
from moonshelf.creatives.schema import KEYS, AspectAnswer, Assessment, Creative
from moonshelf.product import ImageRef

LABELS = ("K", "T")


@given(st.integers(0, 10_000))
def test_swapping_mirrors_and_twice_gives_the_same(seed: int) -> None:
    one = assessment(seed)
    assert one.swapped().swapped() == one
    assert one.swapped().rubric() == -one.rubric()
    assert one.swapped()["query"].reason_a == one["query"].reason_b


@given(st.integers(0, 10_000))
def test_what_is_written_is_read_back(seed: int) -> None:
    one = assessment(seed)
    assert read_assessment(write_assessment(one, LABELS), LABELS) == one
    # under exchanged labels the same words say the opposite of every comparison, but not of the reasons
    mirrored = read_assessment(write_assessment(one, LABELS), ("T", "K"))
    assert mirrored is not None and mirrored.rubric() == -one.rubric()


@given(st.integers(0, 500), st.data())
def test_a_broken_line_makes_all_of_it_invalid(seed: int, data: st.DataObject) -> None:
    lines = write_assessment(assessment(seed), LABELS).split("; ")
    place = data.draw(st.integers(0, len(lines) - 1))
    how = data.draw(st.sampled_from(["gone", "twice", "other key", "other label", "one reason"]))
    if how == "gone":
        del lines[place]
    elif how == "twice":
        lines.insert(place, lines[place])
    elif how == "other key":
        lines[place] = "verdict: K"
    elif how == "other label":
        lines[place] = f"{KEYS[place]}: A"
    else:
        lines[place] = f"{KEYS[place]}: only one, even"
    assert read_assessment("; ".join(lines), LABELS) is None


@given(st.text(max_size=60))
def test_reasons_cannot_break_the_form(reason: str) -> None:
    findings = list(assessment(1).findings)
    findings[2] = AspectAnswer(question="query", answer="A>B", reason_a=reason, reason_b="plain")
    read = read_assessment(write_assessment(Assessment(findings=tuple(findings)), LABELS), LABELS)
    assert read is not None and read["query"].answer == "A>B"


def test_a_question_takes_only_its_own_answers() -> None:
    with pytest.raises(ValidationError, match="does not answer"):
        AspectAnswer(question="same", answer="A>B")
    with pytest.raises(ValidationError, match="no question"):
        AspectAnswer(question="price", answer="A>B")
    with pytest.raises(ValidationError, match="each once"):
        Assessment(findings=assessment(1).findings[1:])


@given(st.text(), st.text())
def test_labels_follow_from_the_content_and_differ(one: str, two: str) -> None:
    prompt = CreativePrompt()
    first, second = prompt.draw_labels(one, two)
    assert first != second and {first, second} <= set(prompt.labels)
    assert prompt.draw_labels(one, two) == (first, second)


def test_a_pair_swaps_everything_that_has_a_side() -> None:
    one = pair(label="A", assessment=assessment(3), true_rates=(0.02, 0.03))
    other = one.swapped()
    assert other.label == "B" and other.true_rates == (0.03, 0.02) and other.a == one.b
    assert other.swapped() == one


@pytest.mark.parametrize("counts", [{"impressions": 10}, {"impressions": 10, "clicks": 11}, {"clicks": -1}])
def test_counts_that_cannot_be_are_refused(counts: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Creative(id="x", image=ImageRef(data=b"x"), **counts)

"""Edits change what they say and nothing else; a placebo has no effect in the click model."""

from __future__ import annotations

import pytest

from moonshelf import images
from moonshelf.creatives.known import TIE
from research.synthetic.campaigns.construction import construction_of
from research.synthetic.campaigns.edits import edited
from research.synthetic.campaigns.simulator import pairs, simulate, truth

pytestmark = pytest.mark.research


@pytest.fixture(scope="module")
def some():
    return [one for campaign in simulate(3, split="test", seed=11) for one in pairs(campaign)]


def terms(pair, side):
    return truth(pair.a if side == "A" else pair.b, pair.interest).terms


def test_an_edit_lowers_the_named_question_and_a_placebo_nothing(some):
    made = 0
    for one, side in zip(some[:3], "ABA", strict=True):
        for question in ("subject", "background", "text"):
            changed = edited(one, side, question)
            if changed is None:
                continue
            made += 1
            before, edit, placebo = (terms(pair, side) for pair in (one, *changed))
            assert before[question] - edit[question] > TIE
            assert placebo == before
            aside = [key for key in before if key not in (question, "style") and before[key] != edit[key]]
            assert len(aside) <= 1
            kept, other = ("b", "a") if side == "A" else ("a", "b")
            for pair in changed:
                assert getattr(pair, kept) == getattr(one, kept)
                new = getattr(pair, other)
                assert (
                    new.clicks is None
                    and images.load(new.image).size == images.load(getattr(one, other).image).size
                )
                assert pair.assessment is None and pair.interest == one.interest
                assert new.text == construction_of(new.facts).overlay  # words, and badge
            assert getattr(changed[0], other).sha256 != getattr(one, other).sha256
    assert made >= 3

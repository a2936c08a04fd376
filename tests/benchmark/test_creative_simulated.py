"""What drawn campaigns allow: the oracle, and edits that change what they say and nothing else."""

from __future__ import annotations

import pytest

from moonshelf import images
from moonshelf.benchmark.creative_simulated import drawn, edited, gap, interest_speaks, oracle
from moonshelf.creatives import clicks
from moonshelf.creatives.construction import construction_of
from moonshelf.creatives.outcomes import posterior, stratum
from moonshelf.creatives.simulator import pairs, simulate, truth


@pytest.fixture(scope="module")
def some():
    return [one for campaign in simulate(16, split="test", seed=11) for one in pairs(campaign)]


def terms(pair, side):
    return truth(pair.a if side == "A" else pair.b, pair.interest).terms


def test_the_oracle_does_not_depend_on_the_order_and_knows_most_decisive_pairs(some):
    there, back = oracle(some), oracle([one.swapped() for one in some])
    for one, other in zip(there, back, strict=True):
        assert one.p + other.p == pytest.approx(1)
    sure = [(one, j) for one, j in zip(some, there, strict=True) if stratum(posterior(one)) == "decisive"]
    right = [(j.p > 0.5) == (posterior(one) > 0.5) for one, j in sure]
    assert len(right) >= 5 and sum(right) >= 0.75 * len(right)


def test_the_oracle_says_what_its_gap_and_the_unseen_part_allow(some):
    for one, j in zip(some, oracle(some), strict=True):
        if one.a.sha256 == one.b.sha256:
            assert j.p == 0.5
        else:
            assert (j.p > 0.5) == (gap(one, one.interest) > 0) or abs(j.p - 0.5) < 1e-9


def test_an_interest_speaks_where_the_visible_gap_moves_with_it(some):
    for one in some:
        asked = truth(one.a, one.interest).terms["query"] - truth(one.b, one.interest).terms["query"]
        assert interest_speaks(one) == (abs(asked) > clicks.TIE)
    assert not any(interest_speaks(one.model_copy(update={"interest": ()})) for one in some)


def test_an_edit_lowers_the_named_question_and_a_placebo_nothing(some):
    made = 0
    for one, side in zip(some[:3], "ABA", strict=True):
        for question in ("subject", "background", "text"):
            changed = edited(one, side, question)
            if changed is None:
                continue
            made += 1
            before, edit, placebo = (terms(pair, side) for pair in (one, *changed))
            assert before[question] - edit[question] > clicks.TIE
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


def test_only_the_simulators_pairs_are_drawn(some):
    from creative_fakes import pair

    assert drawn(some[0]) and not drawn(pair(0))
    assert not drawn(pair(0, source="simulated elsewhere"))

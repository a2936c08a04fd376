"""What drawn campaigns allow: the oracle, and whether the interest speaks."""

from __future__ import annotations

import pytest

from moonshelf.creatives.known import TIE, drawn, gap, interest_speaks, oracle, without_interest
from moonshelf.creatives.labels import posterior, stratum
from research.synthetic.campaigns.simulator import pairs, simulate, truth


@pytest.fixture(scope="module")
def some():
    return [one for campaign in simulate(16, split="test", seed=11) for one in pairs(campaign)]


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
            assert (j.p > 0.5) == (gap(one) > 0) or abs(j.p - 0.5) < 1e-9


def test_an_interest_speaks_where_the_visible_gap_moves_with_it(some):
    for one in some:
        asked = truth(one.a, one.interest).terms["query"] - truth(one.b, one.interest).terms["query"]
        assert interest_speaks(one) == (abs(asked) > TIE)
    assert not any(interest_speaks(without_interest(one)) for one in some)


def test_only_the_simulators_pairs_are_drawn(some):
    from creative_fakes import pair

    assert drawn(some[0]) and not drawn(pair(0))
    assert not drawn(pair(0, source="simulated elsewhere"))

"""Simulated campaigns: the same everywhere, split cleanly, and true to their construction."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from moonshelf.creatives.known import asked_anew, gap, without_interest
from moonshelf.creatives.known import assess as known_assess
from moonshelf.creatives.schema import Campaign, Pair
from moonshelf.errors import UserError
from moonshelf.images import decode
from research.synthetic.campaigns import simulator
from research.synthetic.campaigns.clicks import ASPECTS, utilities
from research.synthetic.campaigns.construction import FACTS, construction_of, edit
from research.synthetic.campaigns.simulator import assess, pairs, simulate, truth, visible_rates

pytestmark = pytest.mark.research

N = 40


@pytest.fixture(scope="module")
def campaigns() -> list[Campaign]:
    return list(simulate(N, creatives=3, seed=2))


@pytest.fixture(scope="module")
def some_pairs(campaigns: list[Campaign]) -> list[Pair]:
    return [pair for campaign in campaigns for pair in pairs(campaign)]


def pixels_digest(campaign: Campaign) -> str:
    digest = hashlib.sha256()
    for creative in campaign.creatives:
        assert creative.image.data is not None
        digest.update(decode(creative.image.data).tobytes())
    return digest.hexdigest()


def test_a_campaign_follows_from_seed_and_number_in_every_process(campaigns: list[Campaign]) -> None:
    code = (
        "import sys; from research.synthetic.campaigns.simulator import simulate\n"
        "for c in simulate(2, creatives=3, seed=2, start=7): print(c.model_dump_json(exclude={'creatives'}),"
        " [(x.sha256, x.clicks) for x in c.creatives])"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    expected = [
        f"{c.model_dump_json(exclude={'creatives'})} {[(x.sha256, x.clicks) for x in c.creatives]}"
        for c in campaigns[7:9]
    ]
    assert seen.splitlines() == expected
    assert pixels_digest(next(simulate(1, creatives=3, seed=3))) != pixels_digest(campaigns[0])


def test_campaigns_are_labelled_as_simulated_and_have_all_that_a_reader_needs(
    campaigns: list[Campaign],
) -> None:
    for campaign in campaigns:
        assert campaign.source == "simulated" and campaign.exposure["simulated"] == "yes"
        assert len(campaign.creatives) == 3 and campaign.true_rates is not None
        assert campaign.interest and campaign.title
        for creative in campaign.creatives:
            assert creative.impressions is not None and creative.impressions >= 1000
            assert creative.facts["says"] in (creative.text.split(" | ")[0], "nothing")
            assert set(creative.facts) == {*FACTS, "construction"}
            product = construction_of(creative.facts).product
            assert product.id == campaign.product_id and product.title == campaign.title
            assert product.material in campaign.title.lower()
            assert product.titled in campaign.title.lower()


def test_splits_share_no_picture_product_or_reserved_wording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator, "draw", lambda _: Image.new("RGB", (8, 8)))  # the choices are enough
    products, wordings, backgrounds = {}, {}, {}
    for split in ("train", "validation", "test"):
        made = list(simulate(120, seed=1, split=split, per_product=2))  # type: ignore[arg-type]
        creatives = [creative for campaign in made for creative in campaign.creatives]
        products[split] = {campaign.product_id for campaign in made}
        wordings[split] = {c.facts["says"] for c in creatives if c.facts["new"] == "yes"}
        shown = [construction_of(c.facts) for c in creatives]
        backgrounds[split] = {(c.background, c.style) for c in shown}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not products[one] & products[other]
        assert not backgrounds[one] & backgrounds[other]
    assert not wordings["train"] and wordings["validation"] and wordings["test"]
    assert not wordings["validation"] & wordings["test"]


def test_truth_mirrors_under_swap(some_pairs: list[Pair]) -> None:
    for pair in some_pairs:
        assert pair.assessment is not None
        assert assess(pair.swapped()) == known_assess(pair.swapped()) == pair.assessment.swapped()


def test_answers_follow_from_the_terms_and_evidence_tells_the_sides_apart(some_pairs: list[Pair]) -> None:
    decided = dict.fromkeys(ASPECTS, 0)
    for pair in some_pairs:
        assert pair.assessment is not None
        a, b = (truth(creative, pair.interest).terms for creative in (pair.a, pair.b))
        for key in ASPECTS:
            finding = pair.assessment[key]
            gap = a[key] - b[key]
            expected = "A=B" if abs(gap) <= 0.03 + 1e-9 else "A>B" if gap > 0 else "A<B"
            assert finding.answer == expected
            if finding.answer != "A=B":
                decided[key] += 1
                assert finding.reason_a != finding.reason_b
        rates = visible_rates(pair)
        if abs(math.log(rates[0] / rates[1])) > 0.03:
            assert pair.assessment.verdict == ("A" if rates[0] > rates[1] else "B")
    assert min(decided.values()) > 5  # no question is idle


def test_true_rates_are_the_visible_ones_up_to_small_noise(some_pairs: list[Pair]) -> None:
    noise = []
    for pair in some_pairs:
        assert pair.true_rates is not None
        seen = visible_rates(pair)
        noise += [math.log(pair.true_rates[k] / seen[k]) for k in (0, 1)]
    assert np.std(noise) == pytest.approx(0.087, rel=0.35)
    assert max(map(abs, noise)) < 0.45


def test_copies_and_near_copies_are_known_as_such() -> None:
    made = [p for c in simulate(12, seed=4, same=1.0, alike=0.0) for p in pairs(c)]
    for pair in made:
        assert pair.assessment is not None and pair.true_rates is not None
        assert pair.a.sha256 == pair.b.sha256 and pair.a.id != pair.b.id
        assert pair.true_rates[0] == pair.true_rates[1]
        assert pair.assessment["same"].answer == pair.assessment["similar"].answer == "yes"
        assert pair.assessment.verdict is None
    for pair in [p for c in simulate(12, seed=4, same=0.0, alike=1.0) for p in pairs(c)]:
        assert pair.assessment is not None and pair.true_rates is not None
        assert pair.a.sha256 != pair.b.sha256
        assert (pair.assessment["same"].answer, pair.assessment["similar"].answer) == ("no", "yes")
        assert abs(math.log(pair.true_rates[0] / pair.true_rates[1])) < 0.06
    others = [p for c in simulate(30, seed=4, same=0.0, alike=0.0) for p in pairs(c)]
    assert all(p.assessment is not None and p.assessment["same"].answer == "no" for p in others)
    assert sum(p.assessment is not None and p.assessment["similar"].answer == "yes" for p in others) < 4


def test_interest_moves_the_rates_and_can_be_exchanged(campaigns: list[Campaign]) -> None:
    quiet = next(simulate(1, seed=2, interest=False))
    assert quiet.interest == ()
    assert all(truth(c, ()).terms["query"] == 0 for c in quiet.creatives)
    for campaign in campaigns:
        for creative in campaign.creatives:
            colour = creative.facts["colour"]
            wanted, unwanted = truth(creative, (f"{colour} thing",)), truth(creative, ("thing",))
            assert wanted.rate / unwanted.rate == pytest.approx(math.exp(0.45))


def test_a_pair_can_be_asked_anew(some_pairs: list[Pair]) -> None:
    rng, moved = np.random.default_rng(0), 0
    for pair in some_pairs:
        other = asked_anew(pair, rng)
        assert other.interest and other.a.image == pair.a.image and other.assessment == assess(other)
        bare = without_interest(pair)
        assert not bare.interest and bare.assessment == assess(bare)
        rates = visible_rates(pair)
        assert gap(pair) == pytest.approx(math.log(rates[0] / rates[1]))
        assert other.a.clicks is other.b.clicks is other.true_rates is None  # another interest's outcome
        assert pair.a.clicks is not None
        moved += other.assessment["query"] != pair.assessment["query"]  # type: ignore[index]
    assert moved > len(some_pairs) / 2


def test_an_edited_creative_has_the_rate_that_the_edit_promises(campaigns: list[Campaign]) -> None:
    for campaign in campaigns[:10]:
        for creative in campaign.creatives:
            one = construction_of(creative.facts)
            before = utilities(one.facts(), campaign.interest, one.product.titled)
            after = utilities(edit(one, "background", "busy").facts(), campaign.interest, one.product.titled)
            assert {key for key in before if before[key] != after[key]} <= {"background"}
            assert after["background"] == -0.20


@pytest.mark.parametrize("wrong", [{"creatives": 1}, {"split": "holdout"}, {"per_product": 0}, {"start": -1}])
def test_impossible_simulations_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        next(simulate(2, **wrong))  # type: ignore[arg-type]


def test_the_same_creatives_come_back_to_shoppers_who_ask_for_something_else() -> None:
    plain, other = (list(simulate(40, seed=6, other_interest=share)) for share in (0.0, 1.0))
    assert other[::2] == plain[::2], "every first campaign is as it was"
    flipped = asked = 0
    for one, two in zip(other[::2], other[1::2], strict=True):
        assert [c.sha256 for c in one.creatives] == [c.sha256 for c in two.creatives]
        assert one.product_id == two.product_id and one.id != two.id
        (first,), (second,) = pairs(one), pairs(two)
        if first.a.sha256 == first.b.sha256:
            continue
        asked += first.interest != second.interest
        before, after = (math.log(a / b) for a, b in (visible_rates(first), visible_rates(second)))
        flipped += before * after < 0
    assert asked >= 15 and flipped >= 4, (asked, flipped)
    half = list(simulate(40, seed=6, other_interest=0.5))
    copies = sum(
        a.creatives[0].sha256 == b.creatives[0].sha256 for a, b in zip(half[::2], half[1::2], strict=True)
    )
    assert 4 <= copies <= 16
    with pytest.raises(StopIteration):
        next(simulate(0, other_interest=1.0))
    alone = simulate(4, seed=6, per_product=1, other_interest=1.0)  # no product has two campaigns
    assert len({campaign.product_id for campaign in alone}) == 4

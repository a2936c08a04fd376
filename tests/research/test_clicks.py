"""The click model against arithmetic by hand, and its calibration against tables whose effects are known."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from moonshelf.errors import UserError
from research.synthetic.campaigns.claims import (
    ASPECTS,
    SPLITS,
    Ask,
    all_phrases,
    aspects_of,
    queries_for,
    read_query,
)
from research.synthetic.campaigns.clicks import calibrate, draw_outcome, rate, shares, utilities
from research.synthetic.shop.spec import COLOURS, KINDS

PLAIN = {
    "says": "nothing", "claim": "", "claim_truth": "none", "legible": "none", "covers": "no", "badge": "none",
    "colour": "red", "scale": "medium", "crop": "whole", "position": "centre", "background": "white",
    "props": "none", "format": "1:1", "font": "regular", "ink": "neutral", "new": "no",
}  # fmt: skip
CLAIMED = {"says": "keeps you dry", "claim": "waterproof", "claim_truth": "true", "legible": "clear"}
AES = Path(__file__).parents[3] / "shared" / "data" / "alimama_aes"


def log_rate(interest: tuple[str, ...] = (), titled: str = "", **facts: str) -> float:
    return math.log(rate(utilities({**PLAIN, **facts}, interest, titled)))


def test_a_plain_creative_has_the_base_rate_and_effects_add_up() -> None:
    assert log_rate() == pytest.approx(-3.99)
    several = log_rate(
        titled="blue", scale="small", crop="cropped", background="busy", props="clutter", badge="sale"
    )
    assert several == pytest.approx(-3.99 - 0.10 - 0.25 - 0.15 - 0.20 - 0.18 + 0.10)
    worded = log_rate(
        claim="leather", claim_truth="false", legible="faint", covers="yes", font="bold", ink="accent"
    )
    assert worded == pytest.approx(-3.99 - 0.30 - 0.10 - 0.20 + 0.02 + 0.02)


@pytest.mark.parametrize(
    ("query", "facts", "effect"),
    [
        ("waterproof backpack", CLAIMED, 0.55),
        ("backpack", CLAIMED, 0.05),
        ("lightweight backpack", CLAIMED, 0.05),
        ("red backpack", {}, 0.45),
        ("blue backpack", {}, 0.0),
        ("canvas backpack", {"claim": "canvas", "claim_truth": "true", "legible": "clear"}, 0.50),
        ("canvas backpack", {"claim": "canvas", "claim_truth": "false", "legible": "clear"}, -0.30),
        ("big backpack", {"scale": "large"}, 0.30 + 0.08),
        ("large backpack", {"claim": "large", "claim_truth": "true", "legible": "clear"}, 0.30 + 0.05),
    ],
)
def test_what_was_asked_for_counts(query: str, facts: dict[str, str], effect: float) -> None:
    assert log_rate((query,), **facts) == pytest.approx(-3.99 + effect)


def test_rates_mix_with_the_shares_of_the_queries() -> None:
    assert shares(2) == pytest.approx((2 / 3, 1 / 3))
    mixed = log_rate(("red backpack", "waterproof backpack"))
    assert mixed == pytest.approx(-3.99 + math.log(2 / 3 * math.exp(0.45) + 1 / 3))


def test_every_query_that_is_written_is_read_as_it_was_meant() -> None:
    for kind, entry in KINDS.items():
        asks = [Ask("nothing"), *(Ask("colour", colour) for colour in COLOURS)]
        for material in entry.materials:
            asks += [Ask("material", material), *(Ask("aspect", a) for a in aspects_of(kind, material))]
        for noun, ask in product(entry.nouns, asks):
            assert {read_query(query) for query in queries_for(ask, noun.lower())} == {ask}


def test_every_product_has_something_to_claim_and_no_wording_is_in_two_splits() -> None:
    assert all(aspects_of(kind, m) for kind, entry in KINDS.items() for m in entry.materials)
    phrases = {split: {phrase for _, phrase in all_phrases(split)} for split in SPLITS}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not phrases[one] & phrases[other]  # type: ignore[index]
    assert all(aspect.train and aspect.validation and aspect.test for aspect in ASPECTS.values())


def test_the_further_wordings_of_training_use_no_word_that_is_new_in_a_reserved_one() -> None:
    def words(phrases: tuple[str, ...]) -> set[str]:
        return {word for phrase in phrases for word in phrase.split()}

    for aspect in ASPECTS.values():
        new = words(aspect.validation + aspect.test) - words(aspect.train)
        assert aspect.more and not new & words(aspect.more)


def test_outcomes_are_binomial_with_enough_impressions() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([draw_outcome(rng, 0.02) for _ in range(4000)])
    assert drawn[:, 0].min() >= 1000
    assert np.median(drawn[:, 0]) == pytest.approx(3000, rel=0.05)
    assert drawn[:, 1].sum() / drawn[:, 0].sum() == pytest.approx(0.02, rel=0.02)
    assert (drawn[:, 1] <= drawn[:, 0]).all()


# --- calibration ----------------------------------------------------------------------------------------


def table(path: Path, noise: float) -> Path:
    """Every combination of two backgrounds with three text colours of their own, and four fonts, 10 times."""
    rng = np.random.default_rng(1)
    colours, fonts = (-0.04, 0.0, 0.04, 0.02, -0.02, 0.0), (0.03, -0.01, -0.01, -0.01)
    lines = []
    for again, colour, font in product(range(10), range(6), range(4)):
        logs = -4 + colours[colour] + fonts[font] + noise * rng.standard_normal()
        lines.append(f"{again}{colour}{font}\t 0 {colour // 3} 0 {colour} {font} \t{math.exp(logs)}\n")
    path.mkdir()
    (path / "ctr_online.txt").write_text("".join(lines))
    return path


def test_calibration_finds_the_effects_that_are_there(tmp_path: Path) -> None:
    exact = calibrate(table(tmp_path / "exact", 0.0))
    assert exact.creatives == 240 and exact.mean == pytest.approx(-4)
    assert exact.explained == pytest.approx(1) and exact.residual == pytest.approx(0, abs=1e-9)
    assert set(exact.effects) == {"text colour", "font"}  # the colour of the text determines the background
    assert [value for value, _ in exact.effects["font"].values()] == pytest.approx(
        (0.03, -0.01, -0.01, -0.01)
    )

    noisy = calibrate(table(tmp_path / "noisy", 0.1))
    assert noisy.residual == pytest.approx(0.1, rel=0.15)
    for level, truth in enumerate((-0.04, 0.0, 0.04, 0.02, -0.02, 0.0)):
        value, error = noisy.effects["text colour"][level]
        assert 0.005 < error < 0.03
        assert abs(value - truth) < 4 * error


def test_a_table_that_cannot_be_fitted_says_why(tmp_path: Path) -> None:
    path = tmp_path / "ctr_online.txt"
    for text, said in (
        ("1\t0 0 0 0 1\t0.02\n2\t0 0 0 0 x\t0.02\n", "line 2"),
        ("1\t0 0 0 0 1\t0\n", "rate of 0"),
        ("1\t0 0 0 0 1\t0.02\n2\t0 0 0 0 0\t0.03\n", "too few"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            calibrate(tmp_path)


@pytest.mark.skipif(
    not AES.exists(), reason="needs ../shared/data/alimama_aes, which is not part of the project"
)
def test_the_constants_are_those_of_the_data() -> None:
    found = calibrate(AES)
    assert found.mean == pytest.approx(-3.99, abs=0.005)
    assert found.residual == pytest.approx(0.087, abs=0.0005)
    assert found.explained == pytest.approx(0.09, abs=0.005) and found.adjusted < 0.02
    assert max(abs(v) for levels in found.effects.values() for v, _ in levels.values()) < 0.0315

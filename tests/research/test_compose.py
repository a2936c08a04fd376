"""What the construction says of a creative is what its picture shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moonshelf.errors import UserError
from research.synthetic.campaigns.claims import SPLITS
from research.synthetic.campaigns.compose import LETTER, SIZES, contrast, draw, plan
from research.synthetic.campaigns.construction import (
    DRAWN,
    FACTORS,
    Construction,
    construction_of,
    edit,
    item,
    placebos,
    styles,
)
from research.synthetic.campaigns.scenery import background
from research.synthetic.campaigns.simulator import changed_area, placebo

pytestmark = pytest.mark.research

SEED = 3


def numbered(kind: str) -> tuple[int, str, int]:
    return next((SEED, "train", k) for k in range(46) if item(SEED, "train", k).kind == kind)


def made(kind: str = "backpack", **choices: object) -> Construction:
    key = numbered(kind)
    return Construction(item=key, colour=item(*key).colours[0], **choices)  # type: ignore[arg-type]


def worded(kind: str = "backpack", **choices: object) -> Construction:
    return edit(made(kind, **choices), "says", "built to last")


def pixels(construction: Construction) -> np.ndarray:
    return np.asarray(draw(construction), dtype=np.int16)


def differing(one: Construction, other: Construction) -> np.ndarray:
    """Boolean mask (height, width) of the pixels that differ visibly."""
    return np.abs(pixels(one) - pixels(other)).max(axis=2) > 12


@pytest.mark.parametrize("kind", ["backpack", "sneaker", "jeans", "vase", "sunglasses"])
def test_the_product_is_as_large_as_said_and_whole_unless_cropped(kind: str) -> None:
    areas = {}
    for scale in FACTORS["scale"]:
        one = made(kind, scale=scale)
        box, (width, height) = plan(one).product, SIZES["1:1"]
        assert box.left >= 0 and box.top >= 0 and box.right <= width and box.bottom <= height
        picture = pixels(one)
        ground = pixels(replace(one, scale="medium"))[3, 3]
        areas[scale] = float((np.abs(picture - ground).max(axis=2) > 40).mean())
        cut = plan(replace(one, crop="cropped")).product
        assert cut.left < 0 or cut.top < 0 or cut.right > width or cut.bottom > height
    assert areas["small"] * 1.6 < areas["medium"] and areas["medium"] * 1.3 < areas["large"]


def test_position_moves_the_product() -> None:
    middles = []
    for position in ("left", "centre", "right"):
        box = plan(made("bottle", position=position)).product
        middles.append((box.left + box.right) / 2)
    assert middles[0] + 60 < middles[1] < middles[2] - 60


def test_backgrounds_look_as_they_are_called() -> None:
    def border(name: str) -> np.ndarray:
        picture = pixels(made(background=name, scale="small")).astype(float)
        return np.concatenate([picture[:40].reshape(-1, 3), picture[:, :40].reshape(-1, 3)])

    assert border("white").min() > 225
    assert border("dark").mean() < 80
    assert border("plain").std(axis=0).max() < 1
    assert 2 < border("gradient").std(axis=0).max() < 60
    assert border("busy").std(axis=0).max() > 40


@pytest.mark.parametrize("format_", SIZES)
def test_words_stand_clear_of_the_product_or_cover_it_as_said(format_: str) -> None:
    for position in FACTORS["position"]:
        clear = worded(format=format_, position=position, scale="large", band=True)
        covering = edit(clear, "covers", "yes")
        # the same with the other font differs in the words alone
        for one, covers in ((clear, False), (covering, True)):
            rows, columns = np.nonzero(differing(one, edit(one, "font", "capitals")))
            box = plan(one).product
            inside = (
                (rows > box.top) & (rows < box.bottom) & (columns > box.left) & (columns < box.right)
            ).mean()
            assert inside > 0.2 if covers else inside == 0


def test_clear_words_are_large_and_stand_out_and_faint_ones_do_not() -> None:
    ranges = {}
    for legible in ("clear", "faint"):
        one = edit(worded(), "legible", legible)
        room = plan(one).words
        assert room is not None
        strip = pixels(one)[room.top : room.bottom, room.left : room.right]
        marked = np.flatnonzero((np.abs(strip - strip[0, 0]).max(axis=2) > 12).any(axis=1))
        assert marked[-1] - marked[0] >= 0.7 * LETTER
        patch = strip.reshape(-1, 3)
        darkest, lightest = patch[patch.sum(axis=1).argmin()], patch[patch.sum(axis=1).argmax()]
        ranges[legible] = contrast(tuple(darkest), tuple(lightest))
    assert ranges["clear"] > 4.5 > 2.4 > ranges["faint"] > 1.4


def test_an_edit_changes_one_fact_and_a_part_of_the_picture() -> None:
    start = worded(scale="small", badge="sale", props="few", background="plain")
    colour = item(*start.item).colours[1]
    edits = [(f, v) for f, values in FACTORS.items() for v in values if getattr(start, f) != v]
    for factor, value in [*edits, ("colour", colour)]:
        if (factor, value) == ("legible", "none"):
            continue
        other = edit(start, factor, value)
        changed = {k for k, v in other.facts().items() if v != start.facts()[k]} - {"construction"}
        assert changed == {factor}
        if factor not in ("format", "background", "props"):
            assert 0 < changed_area(start, other) < 0.5


def test_removed_words_take_what_hangs_on_them_along() -> None:
    silent = edit(edit(worded(), "covers", "yes"), "legible", "none")
    assert silent == made()
    assert silent.facts()["says"] == "nothing"


@pytest.mark.parametrize(
    ("factor", "value"),
    [("colour", "no such"), ("scale", "huge"), ("mood", "gay"), ("says", "flies"), ("legible", "clear")],
)
def test_an_impossible_edit_is_refused_in_words(factor: str, value: str) -> None:
    with pytest.raises(UserError):
        edit(made(), factor, value)


def test_claims_are_checked_against_the_product() -> None:
    product = item(*numbered("backpack"))
    other = next(m for m in ("canvas", "nylon", "leather") if m != product.material)
    assert edit(made(), "says", f"real {product.material}").claim_truth == "true"
    assert edit(made(), "says", f"real {other}").claim_truth == "false"
    assert edit(made(), "says", "free shipping").claim_truth == "irrelevant"


def test_placebos_change_the_picture_and_no_fact() -> None:
    start = worded(badge="new", props="few", background="busy")
    options = list(placebos(start))
    assert len(options) > 5
    for option in options:
        facts, before = option.facts(), start.facts()
        assert {k for k in facts if facts[k] != before[k]} == {"construction"}
    assert all(changed_area(start, option) > 0 for option in options[-6:])


def test_a_placebo_is_as_large_as_the_edit_where_it_can_be() -> None:
    start = worded(badge="new", props="few", background="busy")
    rng = np.random.default_rng(0)
    for factor, value in (("badge", "none"), ("background", "white")):
        other = edit(start, factor, value)
        area, goal = changed_area(start, placebo(start, rng, other)), changed_area(start, other)
        assert area == pytest.approx(goal, abs=0.25)
    small = changed_area(start, placebo(start, rng, edit(start, "badge", "none")))
    assert small < 0.2 < changed_area(start, placebo(start, rng, edit(start, "background", "white")))


def test_even_the_plainest_creative_has_a_placebo() -> None:
    key = (SEED, "validation", 0)
    plainest = Construction(item=key, colour=item(*key).colours[0], style=4)  # the only white of its split
    assert 0 < changed_area(plainest, placebo(plainest, np.random.default_rng(0))) < 0.3


def test_splits_share_no_style_and_no_product() -> None:
    for name in FACTORS["background"]:
        seen = [number for split in SPLITS for number in styles(name, split)]
        assert len(seen) == len(set(seen)) and all(len(styles(name, split)) for split in SPLITS)
        assert max(styles(name, "validation")) < min(styles(name, "test")) < DRAWN
    designs = {split: {item(SEED, split, k).specs[0].style for k in range(46)} for split in SPLITS}
    assert len(set.union(*designs.values())) == 46 * 3


def test_every_style_can_be_drawn_and_is_its_own_in_all_splits() -> None:
    for name in FACTORS["background"]:
        numbers = [style for split in SPLITS for style in styles(name, split)]
        drawn = [background(name, style, (96, 96), 0.7, True).tobytes() for style in numbers]
        assert len(set(drawn)) == len(drawn)


def test_a_construction_comes_back_from_its_facts() -> None:
    one = worded(props="few", seed=77)
    assert construction_of(one.facts()) == one
    with pytest.raises(UserError, match="not drawn by the simulator"):
        construction_of({"says": "nothing"})

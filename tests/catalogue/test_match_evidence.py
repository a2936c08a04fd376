"""Values are compared as values, identifiers in one form; what is guessed is no evidence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshelf.catalogue.matching import values
from moonshelf.catalogue.matching.evidence import FEATURES, Item, Rarity, compare, features
from moonshelf.catalogue.rows import metadata_of
from moonshelf.identifiers import gtin14, gtin_of
from moonshelf.product import Product


def item(title: str = "", **fields) -> Item:
    return Item.of({"id": "x", **metadata_of(Product(id="x", title=title, **fields))})


def feature(a: Item, b: Item) -> dict[str, float]:
    return dict(zip(FEATURES, features(a, b, Rarity([a, b])), strict=True))


@pytest.mark.parametrize(
    ("text", "fourteen"),
    [
        ("04252614", "00042100005264"),  # UPC-E
        ("042100005264", "00042100005264"),  # the UPC-A that it abbreviates
        ("0042100005264", "00042100005264"),
        ("00042100005264", "00042100005264"),
        ("40170725", "00000040170725"),  # GTIN-8
        ("4006381333931", "04006381333931"),
        ("4006381333932", None),  # check digit
        ("04252615", None),
        ("12345678905", None),  # a digit is missing
        ("00000000", None),
        ("n/a", None),
        (None, None),
    ],
)
def test_gtins_have_one_form(text, fourteen):
    assert gtin14(text) == fourteen


@given(st.text(alphabet="0123456789", min_size=7, max_size=7))
def test_a_upc_e_is_the_upc_a_that_it_stands_for(body):
    """Whatever UPC-E is read, its UPC-A is read as the same."""
    for check in "0123456789":
        if one := gtin14("0" + body[1:] + check):
            assert gtin14(gtin_of("0" + body[1:] + check)) == one == gtin14(one)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Cola 0,5 l", "Cola 500ml", True),
        ("Water 16.9 fl oz", "Water 500 ml", True),
        ("Monitor 24 inch", 'Monitor 24"', True),
        ("Monitor 24 inch", "Monitor 61 cm", True),
        ("Disk 1TB", "Disk 1000 GB", True),
        ("Cola 6 x 33 cl", "Cola pack of 6 330ml", True),
        ("Cola 6 x 33 cl", "Cola 330ml 12er Pack", False),
        ("Rice 1 kg", "Rice 1,5 kg", False),
        ("Battery 2000 mAh", "Battery 2 Ah", True),
    ],
)
def test_amounts_are_compared_as_values(a, b, same):
    found = feature(item(a), item(b))
    assert bool(found["amounts_differ"]) is not same
    assert (compare(item(a), item(b)).conflicts == ()) is same


@pytest.mark.parametrize(
    ("a", "b", "shared", "differ"),
    [
        ("Sony DSC-W150/B", "Sony dscw150b", True, False),
        ("Belkin F8N044 SLV case", "Belkin F8N044SLV", True, False),
        ("Sony DSC-W150", "Sony DSC-W170", False, True),
        ("Shirt Acme", "Shirt Bolt", False, False),
    ],
)
def test_model_numbers_are_found_however_they_are_written(a, b, shared, differ):
    found = feature(item(a), item(b))
    assert (bool(found["code_shared"]), bool(found["no_code_shared"])) == (shared, differ)


def test_sizes_and_colours_of_attributes():
    medium = item("Shirt", attributes={"Size": "Medium", "Color": "navy"})
    assert feature(medium, item("Shirt", attributes={"size": "M", "colour": "blue"}))["size_same"] == 1
    other = feature(medium, item("Shirt", attributes={"size": "X-Large", "colour": "red"}))
    assert (other["size_differs"], other["colour_differs"]) == (1, 1)
    half = item("Tea", attributes={"size": "0.5 kg"})
    assert compare(half, item("Tea", attributes={"size": "500 g"})).agree == ["size"]


def test_another_pack_of_one_article_is_said():
    one, case = item(gtin="04006381333931"), item(gtin="14006381333938")
    assert compare(one, case).identifiers["gtin"] == "different"
    assert "another pack" in compare(one, case).conflicts[0]


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_two_titles_can_be_compared(a, b):
    one, two = item(a), item(b)
    found = features(one, two, Rarity([one, two]))
    assert len(found) == len(FEATURES) and all(value == value and abs(value) < 1e6 for value in found)
    assert found == pytest.approx(features(two, one, Rarity([one, two])))
    assert feature(one, one)["codes_differ"] == 0 and values.same(a, a)

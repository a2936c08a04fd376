"""Lists and mappings as values: whatever printed them, a field takes what it wants and loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import helpers as h
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshelf.feeds import shapes
from moonshelf.product import Product

URLS = ["https://cdn.example/a.jpg", "https://cdn.example/b.jpg"]


def read(tmp_path: Path, **record: Any) -> Product:
    (product,) = h.products(
        h.write(tmp_path / "feed.json", json.dumps([{"id": 1, "title": "Mug", **record}]))
    )
    return product


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("['a', 'b']", ["a", "b"]),
        ("('a', 'b')", ["a", "b"]),
        ("['a' 'b'\n 'c']", ["a", "b", "c"]),  # numpy
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("{'b', 'a'}", ["a", "b"]),
        ('{"a"=>[{"key"=>"b", "value"=>nil}]}', {"a": [{"key": "b", "value": None}]}),  # Ruby
        ("{'a': nan, 'b': True, 'c': Decimal('9.90')}", {"a": None, "b": True, "c": "9.90"}),
        (r"['C:\dir\q.jpg', 'it\'s']", ["C:\\dir\\q.jpg", "it's"]),
        ('"[\\"a\\"]"', ["a"]),  # printed twice
        (
            "{b'title': b'Mug', 1: ('a', {'b'}), 'picture': b'\\xff\\xd8'}",
            {"title": "Mug", "1": ["a", ["b"]], "picture": b"\xff\xd8"},
        ),
        ("['a', ..., 1j]", ["a", "Ellipsis", "1j"]),
        ("[]", []),
    ],
)
def test_what_programs_print_is_read(text: str, expected: Any) -> None:
    assert shapes.opened(text) == expected
    assert shapes.opened(f" {text}\n") == expected


@pytest.mark.parametrize(
    "text", ["[2024]", "(Set of 2)", "[NEW] Mug [x]", "{x}", "[", "['a", "['a'] + ['b']", "[x()]"]
)
def test_text_in_brackets_stays_text(text: str) -> None:
    assert shapes.opened(text) == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text("ab'\"\\\n[{é,: ", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab'\"", max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=3) | st.dictionaries(st.text("ab'\"", max_size=3), JSON, max_size=3))
def test_any_value_is_read_back_from_json_and_python(value: Any) -> None:
    for text in (json.dumps(value), repr(value)):
        found = shapes.opened(text)
        assert found == value or (found == text and not any(c in text for c in "'\""))


@given(JSON)
def test_any_shape_has_an_answer(value: Any) -> None:
    for found in (
        shapes.spoken(value),
        shapes.money(value),
        shapes.pictures(value),
        shapes.attributes(value),
    ):
        assert found is None or isinstance(found, (shapes.Spoken, list, dict))
    assert isinstance(shapes.categories(value), list)


@pytest.mark.parametrize(
    "value",
    [
        URLS,
        [{"url": url} for url in URLS],
        [{"src": url, "id": n, "alt": ""} for n, url in enumerate(URLS)],
        {"image": URLS},
        {"main": URLS[0], "back": URLS[1]},
        {"0": URLS[0], "1": URLS[1]},
        {"large": URLS, "thumb": ["https://cdn.example/s.jpg"] * 2, "hi_res": [None, None]},
        [{"thumb": "https://cdn.example/s.jpg", "large": url, "hi_res": None} for url in URLS],
        {"edges": [{"node": {"url": url}} for url in URLS]},
        [[{"image": {"contentUrl": url}}] for url in URLS],
        [{"formats": {"thumbnail": {"url": "t.jpg"}}, "url": url} for url in URLS],
    ],
)
@pytest.mark.parametrize("printed", [None, json.dumps, repr])
def test_pictures_in_every_shape(tmp_path: Path, value: Any, printed: Any) -> None:
    product = read(tmp_path, images=printed(value) if printed else value)
    assert [ref.url for ref in product.images] == URLS


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"value": "9.90", "currency": "EUR"}, (9.9, "EUR")),
        ({"amount": 9.9, "currencyCode": "EUR"}, (9.9, "EUR")),
        ({"currencyCode": "EUR", "centAmount": 990, "fractionDigits": 2}, (9.9, "EUR")),
        ({"amountMicros": "9900000", "currencyCode": "EUR"}, (9.9, "EUR")),
        ({"currencyCode": "EUR", "units": "9", "nanos": 900_000_000}, (9.9, "EUR")),
        ([{"value": {"value": "9,90", "currency": "eur"}}], (9.9, "EUR")),
        ({"regular": 20, "sale": 9.9, "currency": "EUR"}, (9.9, "EUR")),
        ({"regular": 9.9, "sale": 0, "currency": "EUR"}, (9.9, "EUR")),
        ({"EUR": 9.9}, (9.9, "EUR")),
        ([{"value": 9.9, "currency": "EUR"}, {"value": 12, "currency": "USD"}], (9.9, "EUR")),
        ([{"value": 12, "currency": "EUR"}, {"value": 9.9, "currency": "EUR"}], (9.9, "EUR")),
        ({"$numberDecimal": "9.90"}, (9.9, None)),
        (["9.90 EUR"], (9.9, "EUR")),
        ([9.9], (9.9, None)),
    ],
)
@pytest.mark.parametrize("printed", [None, json.dumps, repr])
def test_prices_in_every_shape(tmp_path: Path, value: Any, expected: Any, printed: Any) -> None:
    product = read(tmp_path, price=printed(value) if printed else value)
    assert (product.price, product.currency) == expected


def test_a_price_of_a_shape_that_is_not_understood_is_kept_and_said(tmp_path: Path) -> None:
    path = h.write(tmp_path / "f.json", json.dumps([{"id": 1, "title": "Mug", "price": {"a": 1, "b": 2}}]))
    (product,) = h.products(path)
    assert product.price is None and json.loads(product.extra["price"]) == {"a": 1, "b": 2}
    assert [problem.field for problem in h.problems(path)] == ["price"]


TAGGED = [
    [{"language_tag": "en_US", "value": "Red mug"}, {"language_tag": "de_DE", "value": "Rote Tasse"}],
    [{"lang": "en-US", "text": "Red mug"}, {"lang": "de-DE", "text": "Rote Tasse"}],
    [
        {"locale": "en_US", "scope": None, "data": "Red mug"},
        {"locale": "de_DE", "scope": None, "data": "Rote Tasse"},
    ],
    [{"@language": "en-US", "@value": "Red mug"}, {"@language": "de-DE", "@value": "Rote Tasse"}],
    {"en-US": "Red mug", "de-DE": "Rote Tasse"},
    {"en_US": {"value": "Red mug"}, "de_DE": {"value": "Rote Tasse"}},
]


@pytest.mark.parametrize("value", TAGGED)
def test_one_language_is_chosen_and_said(tmp_path: Path, value: Any) -> None:
    """The first, or the record's own; the other stays in `extra`."""
    product = read(tmp_path, title=value, color=value)
    assert (product.title, product.language, product.attributes) == ("Red mug", "en-US", {"color": "Red mug"})
    assert "Rote Tasse" in product.extra.values()
    german = read(tmp_path, language="de", title=value)
    assert (german.title, german.language) == ("Rote Tasse", "de")
    said = h.problems(h.write(tmp_path / "s.json", json.dumps([{"id": n, "title": value} for n in "ab"])))
    assert [problem.field for problem in said] == ["language"]  # once for the feed
    assert "is taken" in said[0].reason


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"id": 7, "name": "Acme"}, "Acme"),
        ([{"name": "Acme"}], "Acme"),
        (["Acme"], "Acme"),
        ({"rendered": "Acme"}, "Acme"),
        ("{'id': 7, 'name': 'Acme'}", "Acme"),
        ({"id": None, "name": None}, None),
        ([], None),
    ],
)
def test_names_in_mappings(tmp_path: Path, value: Any, expected: str | None) -> None:
    assert read(tmp_path, brand=value).brand == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([{"id": 9, "name": "Home"}, {"id": 14, "name": "Mugs"}], ("Home", "Mugs")),
        ({"name": "Mugs", "parent": {"name": "Home", "parent": None}}, ("Home", "Mugs")),
        ({"category": ["Home", "Mugs"]}, ("Home", "Mugs")),
        (["Home > Mugs", "Sale > Mugs"], ("Home", "Mugs")),
        ([["Home", "Mugs"], ["Sale", "Mugs"]], ("Home", "Mugs")),
        ([{"node_id": 1, "node_name": "/Home/Mugs"}], ("Home", "Mugs")),
        ({"full_path": "Home > Mugs", "name": "Mugs"}, ("Home", "Mugs")),
        (
            [{"lang": "en", "value": "Home > Mugs"}, {"lang": "de", "value": "Haus > Tassen"}],
            ("Home", "Mugs"),
        ),
    ],
)
@pytest.mark.parametrize("printed", [None, json.dumps, repr])
def test_categories_in_every_shape(tmp_path: Path, value: Any, expected: Any, printed: Any) -> None:
    product = read(tmp_path, category=printed(value) if printed else value)
    assert product.category == expected
    if "Sale" in str(value):
        assert product.extra["other_categories"] == "Sale > Mugs"


@pytest.mark.parametrize(
    "value",
    [
        {"Color": "Red", "Sizes": ["S", "M"]},
        [{"name": "Color", "value": "Red"}, {"name": "Sizes", "value": ["S", "M"]}],
        [{"id": 6, "name": "Color", "options": ["Red"]}, {"id": 7, "name": "Sizes", "options": ["S", "M"]}],
        [{"attribute_code": "Color", "value": "Red"}, {"attribute_code": "Sizes", "value": "S, M"}],
        [{"key": "Color", "value": "Red"}, {"key": "Sizes", "value": "S"}, {"key": "Sizes", "value": "M"}],
        {"attribute": [{"name": "Color", "value": "Red"}, {"name": "Sizes", "value": ["S", "M"]}]},
        [["Color", "Red"], ["Sizes", ["S", "M"]]],
        {"Color": {"value": "Red", "unit": None}, "Sizes": [{"label": "S"}, {"label": "M"}]},
    ],
)
@pytest.mark.parametrize("printed", [None, json.dumps, repr])
def test_attributes_in_every_shape(tmp_path: Path, value: Any, printed: Any) -> None:
    product = read(tmp_path, attributes=printed(value) if printed else value)
    assert product.attributes == {"Color": "Red", "Sizes": "S, M"}


@pytest.mark.parametrize("blank", ["", None, "N/A", "none"])
def test_an_id_that_is_blank_in_json_is_taken_from_the_sku_and_said(tmp_path: Path, blank: Any) -> None:
    path = h.write(tmp_path / "f.json", json.dumps([{"id": blank, "sku": "S1", "title": "Mug"}]))
    assert [product.id for product in h.products(path)] == ["S1"]
    assert [problem.field for problem in h.problems(path)] == ["id"]

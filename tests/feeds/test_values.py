"""Prices, GTINs, HTML, lists of images: the values that shops write in many ways."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshelf.feeds import values
from moonshelf.feeds.build import split_images


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12,99 EUR", (12.99, "EUR")),
        ("USD 1,299.00", (1299.0, "USD")),
        ("$5", (5.0, "USD")),
        ("1.299,00 €", (1299.0, "EUR")),
        ("1.299 EUR", (1299.0, "EUR")),
        ("1 299,00 zł", (1299.0, "PLN")),
        ("CHF 1'299.50", (1299.5, "CHF")),
        ("Rs. 1,29,900", (129900.0, "INR")),
        ("KWD 12.995", (12.995, "KWD")),
        ("1.299.000 IDR", (1299000.0, "IDR")),
        ("0.125", (0.125, None)),
        ("15.00USD", (15.0, "USD")),
        ("5,- €", (5.0, "EUR")),
        ("1 299 kr", (1299.0, None)),  # of four countries
        ("1.299 kr", (1299.0, None)),
        ("US $12.99", (12.99, "USD")),
        (".99", (0.99, None)),
        ("₱1,299.00", (1299.0, "PHP")),
        ("RM 12.90", (12.9, "MYR")),
        ("$5 CAD", (5.0, "CAD")),
        ("299 руб.", (299.0, "RUB")),
        ("12.50 د.إ.", (12.5, "AED")),
        ("٣٫٥٠ OMR", (3.5, "OMR")),
        ("１２００円", (1200.0, "JPY")),
        ("12 990 ₽=", (12990.0, "RUB")),
        ("12.99 pcs", (12.99, None)),
        ("5 EUR each", (5.0, "EUR")),
        ("12,99 € / Stück", (12.99, "EUR")),
        ("ab 12,99 €", (12.99, "EUR")),
        ("１２", (12.0, None)),
        (19.9, (19.9, None)),
        (0, (0.0, None)),
    ],
)
def test_prices(text: object, expected: tuple[float, str | None]) -> None:
    assert values.price(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "free",
        "10-20 USD",
        "1,2.3,4",
        "12.5.3",
        "12,99 €/kg",
        "3 for 5 EUR",
        "€5 USD",
        "12.99-",
        "",
        "²",
        float("nan"),
        float("inf"),
        10**400,
    ],
)
def test_prices_that_are_not_understood(text: object) -> None:
    with pytest.raises(ValueError, match="price"):
        values.price(text)


@pytest.mark.parametrize("text", ["-5", "-5.00 USD", "USD -5", "$-5", "-$5", "(5.00)", "−5", -1.5])
def test_negative_prices_are_told_apart(text: object) -> None:
    with pytest.raises(ValueError, match=r"^negative"):
        values.price(text)


@given(st.integers(0, 10**8), st.sampled_from(["EUR", "USD", ""]))
def test_every_way_to_write_an_amount_is_read_alike(cents: int, code: str) -> None:
    amount = cents / 100
    english = f"{amount:,.2f}"
    german = english.translate(str.maketrans(",.", ".,"))
    for text in (f"{amount:.2f}", english, german):
        assert values.price(f"{text} {code}".strip()) == (amount, code or None)


@pytest.mark.parametrize(
    "text", ["4006381333931", "4006381-333931", " 96385074 ", "036000291452", "'4006381333931"]
)
def test_gtins(text: str) -> None:
    assert values.gtin(text).isdigit()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4006381333932", "check digit"),
        ("4.00638E+12", "spreadsheet"),
        ("36000291452", "leading zero"),
        ("123", "digits"),
        ("n/a", "not a number"),
    ],
)
def test_bad_gtins_say_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        values.gtin(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>Soft <b>cotton</b>.</p><ul><li>A</li><li>B</li></ul>", "Soft cotton.\nA\nB"),
        ("a < b and c > d", "a < b and c > d"),
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("x<script>alert(1)</script>y<style>p{}</style>z", "xyz"),
        ("line<br/>two", "line\ntwo"),
        ("AT&T", "AT&T"),
        ("<b>Red</b> mug &amp;amp; saucer", "Red mug & saucer"),
        ("&lt;p&gt;Double &amp;amp; text&lt;/p&gt;", "Double & text"),
        ("Blue &lt;mug&gt;", "Blue <mug>"),
        ("<p>x &lt;b&gt; y</p>", "x <b> y"),
        ("Size <M", "Size <M"),
        ("x<y and y>z; a <= b", "x<y and y>z; a <= b"),
        ("a <b and c> d", "a <b and c> d"),
        ("Caf&eacute; &copy", "Café ©"),
        ("?a=1&copy=2", "?a=1&copy=2"),
        ("<!-- x --> <![CDATA[a<b]]> text <img src=x> y", "a<b text y"),
        ('cut <a href="http', "cut"),
    ],
)
def test_html_is_stripped_and_plain_text_is_not(text: str, expected: str) -> None:
    assert values.plain(text, lines=True) == expected


@pytest.mark.parametrize(
    "text", ["<a " + "= " * 40_000 + "<", "<![CDATA[" * 9_000, "<!--" * 20_000, "<" * 80_000]
)
def test_hostile_markup_costs_little_time(text: str) -> None:
    started = time.perf_counter()
    values.plain(text, lines=True)
    assert time.perf_counter() - started < 3


@given(st.text("<>/!-[]&;#x ab\"'=", max_size=60))
def test_any_markup_is_survived(text: str) -> None:
    assert isinstance(values.plain(text), str)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("a.jpg", ["a.jpg"]),
        ("a.jpg, b.png", ["a.jpg", "b.png"]),
        ("one, two.jpg", ["one, two.jpg"]),
        ("a|b", ["a", "b"]),
        ('["a.jpg", "b.jpg"]', ["a.jpg", "b.jpg"]),
        ("https://e.example/1?x=1,2", ["https://e.example/1?x=1,2"]),
        ("https://e.example/1 https://e.example/2", ["https://e.example/1", "https://e.example/2"]),
        ("", []),
    ],
)
def test_cells_with_several_images(cell: str, expected: list[str]) -> None:
    assert split_images(cell) == expected


def test_text_of_any_value() -> None:
    assert values.as_text(["L", "M"]) == "L, M"
    assert values.as_text(True) == "yes"
    assert values.as_text(899.0) == "899"
    assert values.as_text(None) == ""
    assert values.availability("https://schema.org/OutOfStock") == "out_of_stock"
    assert values.category("A > B > ") == ("A", "B")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A > B > C", [["A", "B", "C"]]),
        ("Home >> Mugs", [["Home", "Mugs"]]),
        ("Home / Mugs", [["Home", "Mugs"]]),
        ("Home | Mugs", [["Home", "Mugs"]]),
        ("Home > Mugs | Sale > Mugs", [["Home", "Mugs"], ["Sale", "Mugs"]]),
        ("Home > Mugs; Sale", [["Home", "Mugs"], ["Sale"]]),
        ("Home, Home > Mugs", [["Home"], ["Home", "Mugs"]]),
        ("Food, Beverages & Tobacco > Tea", [["Food, Beverages & Tobacco", "Tea"]]),
        ("Default Category/Men/Tops,Default Category/Men", [["Men", "Tops"], ["Men"]]),
        ("Home/Kitchen/Mugs", [["Home", "Kitchen", "Mugs"]]),
        ("/Categories/Mugs", [["Categories", "Mugs"]]),
        ("Tees/Shirts", [["Tees/Shirts"]]),
        ("Home/Tees;Home/Sale", [["Home", "Tees"], ["Home", "Sale"]]),
        ("24/7/365", [["24/7/365"]]),
        ("", []),
    ],
)
def test_paths_of_categories(text: str, expected: list[list[str]]) -> None:
    assert values.paths(text) == expected

"""Which column fills what, and what the reader says about its choice."""

from __future__ import annotations

from pathlib import Path

import helpers as h
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from moonshelf.cli import app
from moonshelf.errors import UserError
from moonshelf.feeds.check import check_feed
from moonshelf.feeds.columns import plan_columns, price_column
from moonshelf.feeds.values import iso_codes


def notes(path: Path, **options: object) -> str:
    return " ".join(check_feed(path, **options).notes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Price", (0, None)),
        ("price-EUR", (0, "EUR")),
        ("price_usd", (0, "USD")),
        ("EUR price", (0, "EUR")),
        ("Price (€)", (0, "EUR")),
        ("Regular price", (4, None)),
        ("price_all", None),  # a lek is written ALL
        ("price_min", (9, None)),
    ],
)
def test_price_columns(name: str, expected: object) -> None:
    assert price_column(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "price_max",
        "price_old",
        "old_price",
        "price_cost",
        "shipping_price",
        "unit_price",
        "price_id",
        "msrp",
        "price_new_x",
    ],
)
def test_columns_that_are_no_price(name: str) -> None:
    assert price_column(name) is None


@given(st.from_regex(r"[a-z]{3}", fullmatch=True))
def test_three_letters_are_a_currency_only_if_iso_4217_has_them(letters: str) -> None:
    found = price_column(f"price_{letters}")
    assert found is None or found[1] is None or found[1] in iso_codes()


def test_one_of_several_currencies_is_chosen_and_said(tmp_path: Path) -> None:
    path = h.write(tmp_path / "f.csv", "sku,name,price-USD,price-EUR\nA,Mug,5,4\nB,Cup,,3\n")
    assert [(p.price, p.currency) for p in h.products(path)] == [(5.0, "USD"), (None, None)]
    assert "USD is taken" in notes(path)
    assert [(p.row, p.field) for p in h.problems(path) if p.row == 2] == [(2, "price")]
    assert [(p.price, p.currency) for p in h.products(path, currency="eur")] == [(4.0, "EUR"), (3.0, "EUR")]
    with pytest.raises(UserError, match="ISO 4217"):
        h.products(path, currency="MIN")


def test_a_currency_is_given_to_prices_that_name_none(tmp_path: Path) -> None:
    path = h.write(tmp_path / "f.csv", "sku,name,price\nA,Mug,5\nB,Cup,5 USD\n")
    assert [p.currency for p in h.products(path, currency="EUR")] == ["EUR", "USD"]


def test_a_blank_cell_leaves_the_field_to_the_next_column(tmp_path: Path) -> None:
    text = (
        "id,sku,link,title,name,sale price,regular price\n"
        ",S1,https://e.example/1,,Mug,,5\n,,https://e.example/2,Cup,x,3,5\n7,S3,,Pot,,,5\n,,,Lid,,,\n"
    )
    path = h.write(tmp_path / "f.csv", text)
    assert [(p.id, p.title, p.price) for p in h.products(path)] == [
        ("S1", "Mug", 5.0),
        ("https://e.example/2", "Cup", 3.0),
        ("7", "Pot", 5.0),
    ]
    said = [(p.row, p.fatal) for p in h.problems(path) if p.field == "id"]
    assert said == [(1, False), (2, False), (4, True)]


def test_one_of_several_languages_is_chosen_and_said(tmp_path: Path) -> None:
    text = "sku;name-en_US;name-de_DE;description-de_DE-print;category_id\nA;Mug;Tasse;Rot;7\n"
    path = h.write(tmp_path / "f.csv", text)
    (product,) = h.products(path)
    assert (product.title, product.language, product.description) == ("Mug", "en-US", "")
    assert product.extra == {"name-de_DE": "Tasse", "description-de_DE-print": "Rot", "category_id": "7"}
    assert "en-US is taken" in notes(path)
    assert h.products(path, fields={"name-de_DE": "title"})[0].title == "Tasse"


def test_columns_that_fill_nothing_are_named(tmp_path: Path) -> None:
    path = h.write(tmp_path / "f.csv", "id,title,Lagerplatz\n1,Mug,B7\n")
    assert "'Lagerplatz'" in notes(path)
    assert check_feed(path).warnings == 0


def test_columns_are_mapped_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = h.write(tmp_path / "f.csv", "Nr,Wortlaut,image\n1,Mug,https://e.example/1.jpg\n")
    runner = CliRunner()
    given = ["check", str(path), "--map", "id=Nr"]
    result = runner.invoke(app, given)
    assert (result.exit_code, "--map title=" in result.output) == (2, True)
    result = runner.invoke(app, [*given, "--map", "title=wortlaut"])
    assert (result.exit_code, "Nothing is wrong" in result.output) == (0, True)
    for wrong in ("title", "wording=Wortlaut", "title=Name"):
        assert isinstance(runner.invoke(app, [*given, "--map", wrong]).exception, UserError)


def test_marks_of_exports_are_no_part_of_a_name() -> None:
    names = ["*Title", "g:description", "Product ID [Non Editable]", "Custom label (SKU)", "Product UPC/EAN"]
    fields = {column.name: column.field for column in plan_columns(names).columns}
    assert list(fields.values()).count("extra") == 0


def test_a_price_with_its_currency_goes_before_the_lowest_of_a_range(tmp_path: Path) -> None:
    path = h.write(tmp_path / "f.csv", "id,title,price_min,price_eur\n1,Mug,4,5\n")
    assert [(p.price, p.currency) for p in h.products(path)] == [(5.0, "EUR")]


def test_records_without_a_header_are_mapped_too(tmp_path: Path) -> None:
    path = h.write(tmp_path / "f.jsonl", '{"id": "1", "Wortlaut": "Mug"}\n{"id": "2", "title": "Cup"}\n')
    found = h.products(path, fields={"wortlaut": "title", "Nie": "brand"})
    assert [product.title for product in found] == ["Mug", "Cup"]
    assert "no record has the column 'Nie'" in notes(path, fields={"Nie": "brand"})


def test_what_cannot_be_mapped_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mapped"):
        h.products(h.write(tmp_path / "f.jsonld", h.JSONLD), fields={"x": "title"})


def test_a_decimal_comma_in_a_feed_tells_what_a_point_is(tmp_path: Path) -> None:
    path = h.write(tmp_path / "f.csv", "id;title;price_eur\n1;Mug;12,5\n2;Cup;1.299\n")
    assert [p.price for p in h.products(path)] == [12.5, 1299.0]


def test_a_second_column_of_one_name_serves_where_the_first_is_blank(tmp_path: Path) -> None:
    path = h.write(
        tmp_path / "f.csv",
        "id,title,price,price,image,image\n1,Mug,,5,http://e.example/1,http://e.example/2\n",
    )
    (product,) = h.products(path)
    assert (product.price, len(product.images)) == (5.0, 2)

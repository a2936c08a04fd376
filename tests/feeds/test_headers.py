"""Where the header of a table is, and what spreadsheets do to its cells."""

from __future__ import annotations

from pathlib import Path

import helpers as h
import pytest

from moonshelf.feeds.check import check_feed

TABLE = "id,title,price\n0012,Mug,9.90\n"


@pytest.mark.parametrize(
    "above",
    [
        "",
        "\n\n",
        "\t\ufeff",
        "\n\ufeff",
        "sep=,\n",
        "\ufeffsep=,\n",
        "Product export 2024-05-01\n\n",
        "Shop: Acme,,\nDate: today,2024-05-01,\n\n",
        "# made by hand\n",
    ],
)
def test_what_stands_above_the_header_is_no_product(tmp_path: Path, above: str) -> None:
    path = h.write(tmp_path / "f.csv", above + TABLE)
    assert [(p.id, p.title, p.price) for p in h.products(path)] == [("0012", "Mug", 9.9)]
    assert ("above the header" in " ".join(check_feed(path).notes)) == ("2024" in above)


def test_the_delimiter_may_be_given_by_excel(tmp_path: Path) -> None:
    path = h.write(tmp_path / "f.csv", 'sep=;\nid;title;Bild\n1;"Mug, red; big";a.jpg\n')
    assert h.products(path)[0].title == "Mug, red; big"


def test_a_header_is_found_by_the_names_that_are_given(tmp_path: Path) -> None:
    path = h.write(tmp_path / "f.csv", "Export;today\nNr;Wortlaut\n1;Mug\n")
    (product,) = h.products(path, fields={"Nr": "id", "Wortlaut": "title"})
    assert product.title == "Mug"


def test_commas_in_names_are_no_delimiter(tmp_path: Path) -> None:
    path = h.write(
        tmp_path / "f.csv", "Product ID;Name *;Image URLs (x,y,z...)\n1;Mug;https://e.example/1.jpg\n"
    )
    (product,) = h.products(path)
    assert (product.id, product.title, len(product.images)) == ("1", "Mug", 1)


@pytest.mark.parametrize("cell", ['="0012"', '"=""0012"""', '="0012" '])
def test_cells_that_keep_leading_zeros(tmp_path: Path, cell: str) -> None:
    assert h.products(h.write(tmp_path / "f.csv", f"id,title\n{cell},Mug\n"))[0].id == "0012"


def test_a_gtin_that_a_spreadsheet_took_for_a_number(tmp_path: Path) -> None:
    path = h.write(tmp_path / "f.csv", "id,title,gtin\n1,Mug,4006381333931.0\n")
    assert h.products(path)[0].gtin == "4006381333931"


def test_one_column_stays_one_column(tmp_path: Path) -> None:
    path = h.write(tmp_path / "f.csv", 'title\n"Mug, red"\nCup\n')
    assert [p.title for p in h.products(path)] == ["Mug, red", "Cup"]

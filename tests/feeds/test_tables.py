# ruff: noqa: E501
"""Tables in every encoding, dialect and shape: what was written is read back, or the reader says what it did.

Quick by default; `FUZZ_EXAMPLES=20000` makes it a long search.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import helpers as h
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_shops import CASES as EXPORTS

from moonshelf.errors import UserError
from moonshelf.feeds import DIALECTS, read_rows
from moonshelf.feeds.check import check_feed

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

# Words of each code page, so that a file looks like one.
WORDS = {
    "utf-8": "Mug Größe żółta кружка 赤い 🙂 d’été x<y A&B",
    "utf-8-sig": "Mug Größe żółta кружка 赤い 🙂",
    "utf-16": "Mug Größe żółta кружка 赤い 🙂",
    "utf-16-le": "Mug Cup Größe Shirt Plate Übergröße",
    "cp1252": "Mug Größe crème d’été weiß niño smørrebrød",
    "cp1251": "Mug красная кружка синяя чашка большая рубашка",
    "gb18030": "Mug 红色马克杯 蓝色连衣裙 白色衬衫",
    "cp932": "Mug 赤いマグカップ 青いワンピース シャツ",
}
NAMES = {
    "id": ("id", "ID", "sku", "Product ID", "item_id", "Artikelnummer", "*id", "Product ID [Non Editable]"),
    "title": ("title", "Title", "name", "Product Name", "item_name", "Bezeichnung", "Name *", "name-en_US"),
    "price": (
        "price",
        "Price",
        "price_eur",
        "price-EUR",
        "Price (EUR)",
        "regular_price",
        "Preis",
        "sale price",
    ),
    "image": (
        "image",
        "image link",
        "Image URL",
        "main_image_url",
        "image_1",
        "Product Image File - 1",
        "Bild",
    ),
}
OTHERS = (
    "Lagerplatz",
    "price_min",
    "price_old",
    "cost",
    "notes",
    "handle",
    "category",
    "column 7",
    "",
    "Tags",
)


@dataclass
class Table:
    """A table as somebody might have written it."""

    names: dict[str, str]  # field -> column
    rows: list[dict[str, str]]
    data: bytes
    encoding: str


def amounts(draw: st.DrawFn) -> tuple[str, float]:
    cents = draw(st.integers(0, 9_999_999))
    value, text = cents / 100, f"{cents / 100:,.2f}"
    german = text.translate(str.maketrans(",.", ".,"))
    forms = (
        f"{value:.2f}",
        text,
        german,
        f"{german} €",
        f"EUR {text}",
        f"{text} EUR",
        text.replace(",", " ") + " kr",
    )
    return draw(st.sampled_from(forms)), value


@st.composite
def written_tables(draw: st.DrawFn) -> Table:
    encoding = draw(st.sampled_from(list(WORDS)))
    delimiter = draw(st.sampled_from(",;\t|"))
    names = {field: draw(st.sampled_from(choices)) for field, choices in NAMES.items()}
    others = draw(st.lists(st.sampled_from(OTHERS), max_size=3, unique=True))
    header = draw(st.permutations([*names.values(), *others]))
    words = st.sampled_from(WORDS[encoding].split())
    rows = []
    for n in range(draw(st.integers(1, 40))):
        row = {name: " ".join(draw(st.lists(words, max_size=2))) for name in others}
        title = " ".join(draw(st.lists(words, min_size=1, max_size=4)))
        title += draw(st.sampled_from(("", "", "", ", x", "; y", ' 5" z', "\n2", " | w", "\tq")))
        price, _ = amounts(draw)
        if "€" in price and encoding not in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"):
            price = price.replace(" €", "")
        row |= {
            names["id"]: f"A{n}",
            names["title"]: title,
            names["price"]: price,
            names["image"]: f"https://cdn.example/{n}.jpg",
        }
        rows.append(row)
    out = io.StringIO()
    quoting = draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    end = draw(st.sampled_from(("\n", "\r\n")))
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerow(header)
    writer.writerows([row[name] for name in header] for row in rows)
    above = draw(st.sampled_from(("", "", "", f"sep={delimiter}{end}", f"Product export{end}{end}", end)))
    mark = codecs.BOM_UTF8.decode() if encoding == "utf-8" and draw(st.booleans()) else ""
    return Table(names, rows, (mark + above + out.getvalue()).encode(encoding), encoding)


@fuzz
@given(written_tables())
def test_what_was_written_is_read_back(table: Table) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = h.write(Path(folder) / "feed.csv", table.data)
        found = h.products(path, "csv")
        said = " ".join(problem.reason for problem in h.problems(path, "csv"))
        assert [product.id for product in found] == [row[table.names["id"]] for row in table.rows]
        for product, row in zip(found, table.rows, strict=True):
            title = row[table.names["title"]].replace("\r", "")
            guessed = "a guess" in said
            assert product.title == title.strip() or guessed
            assert [image.url for image in product.images] == [row[table.names["image"]]]
            assert product.price is not None and product.price == expected(row[table.names["price"]])
            for name in OTHERS:
                assert product.price is None or name not in ("price_min",) or product.price >= 0
        assert check_feed(path, "csv").rejected == 0


def expected(text: str) -> float:
    """The amount of a price whose last separator has two digits after it."""
    digits = "".join(c for c in text if c.isdigit())
    return int(digits) / 100


CELLS = st.one_of(
    st.sampled_from((
        "", " ", "-5", "$5", "12,99 €", ".99", "1 299 kr", "12.99 pcs", "1-2", '="0012"', '="', "N/A", "0", "<b>x",
        "&amp;amp;", "x<y", "<!--", "a.jpg", "../a", "/a/b.jpg", "https://e.example/1.jpg, https://e.example/2.jpg",
        "A > B, C", "A/B;C", "Default Category/A,Default Category/B", "['a']", "{'a': 1}", "[", '"', "'", "\\", "\0",
        "id:10", "variation", "variable", "Product", "Variant", "SKU", "Rule", "[S]Size=S", "Color=Red|Size=S",
        "sku=A,size=S|sku=B", "#f00:Red;#00f:Blue", "Name=Size|Value=S", "Variation", "sep=;", "\ufeff", "é" * 300,
        "a=b,c=d", "Colour:Red:0", "x" * 3000, "1e999", "٣", "²", "NaN", "=1+1",
    )),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)  # fmt: skip
HEADERS = st.lists(
    st.one_of(
        st.sampled_from([name for names in NAMES.values() for name in names]),
        st.sampled_from(OTHERS),
        st.sampled_from((
            "ID", "Type", "SKU", "Parent", "Tax status", "In stock?", "Regular price", "Categories", "Images",
            "Attribute 1 name", "Attribute 1 value(s)", "handleId", "fieldType", "ribbon", "surcharge", "collection",
            "productImageUrl", "productOptionName1", "productOptionDescription1", "Item Type", "Product Code/SKU",
            "Option Set", "Product Name", "Item", "Options", "Brand ID", "Channels", "Hosted Image URLs",
            "Variant ID", "Product Page", "Option Name 1", "Option Value 1", "Item number", "Relationship",
            "Relationship details", "Custom label (SKU)", "Start price", "store_view_code", "attribute_set_code",
            "configurable_variations", "additional_attributes", "base_image", "parent", "family", "groups",
            "enabled", "item_sku", "feed_product_type", "parent_child", "parent_sku", "CURRENCY_CODE", "MATERIALS",
            "IMAGE1", "Handle", "Option1 Value", "Variant Price", "Variant SKU", "Image Src", "price-USD", "gtin",
            "link", "description", "description-de_DE", "brand", "currency", "availability", "attributes",
        )),
    ),
    min_size=2,
    max_size=12,
    unique=True,
)  # fmt: skip


@fuzz
@given(
    HEADERS,
    st.lists(st.lists(CELLS, max_size=12), min_size=1, max_size=12),
    st.sampled_from(",;\t|"),
    st.sampled_from(("utf-8", "utf-16", "cp1252", "cp1251", "gb18030")),
    st.sampled_from((None, "csv", "shopify", "merchant", "meta")),
    st.sampled_from((None, "EUR")),
)
def test_any_table_has_an_outcome_for_each_record(
    header: list[str],
    cells: list[list[str]],
    delimiter: str,
    encoding: str,
    dialect: str | None,
    currency: str | None,
) -> None:
    cells = [(line + [""] * len(header))[: len(header)] for line in cells]
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(header)
    writer.writerows(cells)
    with tempfile.TemporaryDirectory() as folder:
        path = h.write(Path(folder) / "feed.csv", out.getvalue().encode(encoding, "replace"))
        try:
            rows = list(read_rows(path, dialect, currency=currency))
        except UserError as error:
            assert "\n" not in str(error)
            return
        for row in rows:
            fatal = [problem for problem in row.problems if problem.fatal]
            assert len(fatal) == (row.product is None and row.records > 0)
            if row.product is not None:
                row.product.content_hash()
                assert row.product.title or row.product.description or row.product.images
        assert sum(row.records for row in rows) == len(filled(cells))


def filled(cells: list[list[str]]) -> list[list[str]]:
    """Lines that are no blank ones."""
    return [line for line in cells if any(cell and not cell.isspace() for cell in line)]


@pytest.mark.parametrize("dialect", ["csv", "shopify", "merchant", "meta", "jsonl"])
@fuzz
@given(st.binary(max_size=300))
def test_any_bytes_end_in_rows_or_one_sentence(dialect: str, data: bytes) -> None:
    assert dialect in DIALECTS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feed"
        path.write_bytes(data)
        try:
            list(read_rows(path, dialect))
        except UserError as error:
            assert "\n" not in str(error)


@fuzz
@given(st.sampled_from(sorted(name for name in EXPORTS if not name.endswith("-api"))), st.data())
def test_a_damaged_export_has_an_outcome_for_each_record(name: str, data: st.DataObject) -> None:
    """Rows lost, out of order, twice; cells blank or foreign; columns gone; another delimiter and encoding."""
    lines = list(csv.reader(io.StringIO(EXPORTS[name][0]), delimiter=delimiter_of(EXPORTS[name][0])))
    header = next(
        at for at, line in enumerate(lines) if len(line) > 5 and all(line[:3]) and "=" not in line[1]
    )
    header += name in ("amazon", "amazon-new")  # the line of machine's names below
    head, rows = lines[header], [line for line in lines[header + 1 :] if line]
    rows = data.draw(st.lists(st.sampled_from(rows), min_size=1, max_size=12))
    gone = data.draw(st.sets(st.integers(0, len(head) - 1), max_size=3))
    cells = [
        [data.draw(CELLS) if data.draw(st.integers(0, 9)) == 0 else cell for cell in line] for line in rows
    ]
    table = [[cell for at, cell in enumerate(line) if at not in gone] for line in [head, *cells]]
    out = io.StringIO()
    delimiter = data.draw(st.sampled_from(",;\t"))
    csv.writer(out, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(table)
    encoding = data.draw(st.sampled_from(("utf-8", "utf-16", "cp1252")))
    with tempfile.TemporaryDirectory() as folder:
        path = h.write(Path(folder) / "feed.csv", out.getvalue().encode(encoding, "replace"))
        try:
            found = list(read_rows(path, "csv"))
        except UserError as error:
            assert "\n" not in str(error)
            return
        for row in found:
            fatal = [problem for problem in row.problems if problem.fatal]
            assert len(fatal) == (row.product is None and row.records > 0)
        assert sum(row.records for row in found) == len(filled(table[1:]))


def delimiter_of(text: str) -> str:
    return max(",;\t", key=text.count)

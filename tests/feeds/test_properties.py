"""Properties of every reader: each record has one outcome, whatever stands in its cells."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

import helpers as h
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from moonshelf.errors import UserError
from moonshelf.feeds import DIALECTS, Row, read_feed, read_rows, write_jsonl
from moonshelf.identifiers import is_placeholder
from moonshelf.product import ImageRef, Product

settings.register_profile("feeds", max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("feeds")

Cells = list[dict[str, str]]

COLUMNS = {
    "merchant": (
        "id",
        "title",
        "description",
        "image_link",
        "price",
        "gtin",
        "availability",
        "product_detail",
    ),
    "meta": ("id", "title", "description", "image[0].url", "price", "gtin", "rich_text_description"),
    "csv": ("sku", "name", "image", "category", "price", "ean", "colour", "attributes"),
    "shopify": (
        "Handle",
        "Title",
        "Body (HTML)",
        "Option1 Name",
        "Option1 Value",
        "Variant Price",
        "Image Src",
    ),
    "jsonl": ("id", "title", "description", "images", "category", "price", "attributes", "extra"),
    "json": ("id", "title", "images", "price", "attributes"),
    "jsonld": ("sku", "name", "image", "brand", "offers", "category", "hasVariant", "@id"),
    "merchant-xml": ("id", "title", "description", "image_link", "price", "gtin", "structured_title"),
    "agentic": ("item_id", "title", "image_url", "price", "variant_dict", "availability", "seller_name"),
    "parquet": ("id", "title", "images", "attributes", "price", "category_path", "variants", "main_image"),
}

# Ordinary words, numbers and hostile fragments, so that the interesting paths are taken often.
FRAGMENTS = st.sampled_from([
    "-5", "$5", "1,299.00 EUR", "4006381333931", "4006381333932", "http://[", "../../etc/passwd", "a.jpg",
    "<b>x", "<!DOCTYPE", "&amp;&#x110000;", '"', "=1+1", "\x00", "[", '[{"a": 1}]', '{"price": -1}', "\u202e",
    "\ufeff", "NaN", "1e999", "٣", "²", "<think>", "data:image/png;base64,x", "a" * 300, "default title",
    "ftp://e.example/1",
])  # fmt: skip
TEXT = st.one_of(FRAGMENTS, st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.just(""))


def tables(dialect: str) -> st.SearchStrategy[Cells]:
    row = st.fixed_dictionaries({name: TEXT for name in COLUMNS[dialect]})
    return st.lists(row, min_size=1, max_size=6)


def as_csv(cells: Cells) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(cells[0]), lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(cells)
    return out.getvalue().encode()


def as_jsonl(cells: Cells) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in cells).encode()


def as_xml(cells: Cells) -> bytes:
    def legal(text: str) -> str:
        return "".join(
            c for c in text if c in "\t\n\r" or (" " <= c <= "\ud7ff") or "\ue000" <= c <= "\ufffd"
        )

    items = "".join(
        "<item>" + "".join(f"<g:{k}>{escape(legal(v))}</g:{k}>" for k, v in row.items()) + "</item>"
        for row in cells
    )
    head = '<rss xmlns:g="http://base.google.com/ns/1.0"><channel>'
    return f"{head}{items}</channel></rss>".encode()


def as_jsonld(cells: Cells) -> bytes:
    return json.dumps({"@graph": [{"@type": "Product", **row} for row in cells]}).encode()


def as_parquet(cells: Cells) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({name: [row[name] for row in cells] for name in cells[0]}), out)
    return out.getvalue()


WRITERS: dict[str, Callable[[Cells], bytes]] = {
    "merchant": as_csv,
    "meta": as_csv,
    "csv": as_csv,
    "shopify": as_csv,
    "jsonl": as_jsonl,
    "agentic": as_jsonl,
    "json": lambda cells: json.dumps(cells).encode(),
    "jsonld": as_jsonld,
    "merchant-xml": as_xml,
    "parquet": as_parquet,
}


def read(data: bytes, dialect: str) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feed"
        path.write_bytes(data)
        return list(read_rows(path, dialect))


def count(cells: Cells) -> int:
    """Records that are not blank, as a table counts them."""
    return sum(any(cell.strip() for cell in row.values()) for row in cells)


def test_every_dialect_has_a_strategy() -> None:
    assert set(WRITERS) | {"images"} == set(DIALECTS)


@pytest.mark.parametrize("dialect", WRITERS)
@given(data=st.data())
def test_any_cells_give_one_outcome_per_record(dialect: str, data: st.DataObject) -> None:
    cells = data.draw(tables(dialect))
    if dialect in ("merchant", "meta", "csv", "shopify") and not count(cells):
        return
    rows = read(WRITERS[dialect](cells), dialect)
    for row in rows:
        fatal = [problem for problem in row.problems if problem.fatal]
        assert len(fatal) == (row.product is None and row.records > 0)
        assert all(problem.reason and problem.field for problem in row.problems)
        if row.product is not None:
            row.product.content_hash()  # the text can be encoded
            assert row.product.title or row.product.description or row.product.images
    expected = count(cells) if WRITERS[dialect] is as_csv else len(cells)
    if dialect == "csv" or dialect == "merchant":  # a row that repeats the header is rejected, and counts too
        assert len([row for row in rows if row.records]) == expected
    assert sum(row.records for row in rows) == expected


@pytest.mark.parametrize("dialect", DIALECTS)
@given(
    data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")))
)
def test_any_bytes_give_rows_or_one_clear_error(dialect: str, data: bytes) -> None:
    try:
        for row in read(data, dialect):
            assert row.product is not None or row.problems
    except UserError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 500


GOOD = st.text("abc ,;\"'\t=é", min_size=1, max_size=12).map(lambda text: "w" + text)
GARBAGE = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=30).map(str.encode),
    st.sampled_from(
        [b'"', b'x,"', b'"a","b', b"\xff\xfe\xfd", b"{", b"[1]", b"null", b"1,2,3,4,5,6,7,8", b'a,"b"c"']
    ),
)


def good_lines(dialect: str, titles: list[str]) -> list[bytes]:
    if dialect == "jsonl":
        return [json.dumps({"id": f"id{n}", "title": title}).encode() for n, title in enumerate(titles)]
    rows = [
        {"id": f"id{n}", "title": title, "image_link": f"https://e.example/{n}"}
        for n, title in enumerate(titles)
    ]
    return as_csv(rows).splitlines()


@pytest.mark.parametrize("dialect", ["csv", "merchant", "meta", "jsonl"])
@given(titles=st.lists(GOOD, min_size=2, max_size=5), garbage=GARBAGE, place=st.integers(0, 4))
@example(titles=["w;", "w;"], garbage=b"\xff\xfe\xfd", place=0)  # looks like the mark of UTF-16
def test_one_bad_line_never_changes_the_others(
    dialect: str, titles: list[str], garbage: bytes, place: int
) -> None:
    lines = good_lines(dialect, titles)
    head = 0 if dialect == "jsonl" else 1
    at = head + place % len(titles) + (1 if dialect != "jsonl" else 0)
    clean = [row.product for row in read(b"\n".join(lines), dialect)]
    assert None not in clean
    dirty = read(b"\n".join([*lines[:at], garbage, *lines[at:]]), dialect)
    found = [row.product for row in dirty if row.product is not None]
    ids = {product.id for product in clean if product}
    assert [product for product in found if product.id in ids] == clean


WORDS = st.text("aZ é<>&;\"'\\,=東🙂\u202e", max_size=12).map(str.strip)
NAMES = WORDS.filter(bool)
IDENTIFIERS = NAMES.filter(lambda text: not is_placeholder(text))  # placeholders go to `extra`
IMAGES = st.one_of(
    st.builds(
        ImageRef, url=st.just("https://cdn.example/1.jpg"), role=st.sampled_from([None, "main", "back"])
    ),
    st.builds(ImageRef, data=st.binary(min_size=1, max_size=20)),
)
PRODUCTS = st.builds(
    Product,
    id=NAMES,
    title=NAMES,
    description=WORDS,
    images=st.lists(IMAGES, max_size=3).map(tuple),
    category=st.lists(NAMES, max_size=3).map(tuple),
    attributes=st.dictionaries(NAMES, NAMES, max_size=3),
    brand=st.none() | IDENTIFIERS,
    price=st.none() | st.floats(0, 1e9),
    currency=st.none() | st.sampled_from(["EUR", "USD"]),
    language=st.none() | st.just("de"),
    group_id=st.none() | IDENTIFIERS,
    gtin=st.none() | st.just("4006381333931"),
    mpn=st.none() | IDENTIFIERS,
    link=st.none() | NAMES,
    availability=st.none() | NAMES,
    extra=st.dictionaries(NAMES, NAMES, max_size=3),
)


@given(st.lists(PRODUCTS, min_size=1, max_size=5))
def test_own_form_comes_back_as_it_was(products: list[Product]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "products.jsonl"
        assert write_jsonl(products, path) == len(products)
        back = [item for item in read_feed(path)]
        for before, after in zip(products, back, strict=True):
            assert isinstance(after, Product)
            assert after.model_dump(exclude={"images"}) == before.model_dump(exclude={"images"})
            pictures = [(ref.url, ref.role, ref.data) for ref in before.images]
            assert [
                (ref.url, ref.role, Path(ref.path).read_bytes() if ref.path else None) for ref in after.images
            ] == pictures


def test_own_form_keeps_text_that_looks_like_html(tmp_path: Path) -> None:
    product = Product(id="1", title="Tom & Jerry &amp; co", description="a <b>bold</b> claim: 1 &lt; 2")
    write_jsonl([product], tmp_path / "p.jsonl")
    assert h.products(tmp_path / "p.jsonl") == [product]

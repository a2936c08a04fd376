"""Poisoned feeds: each fault costs its own row at most, and an unusable file says so in one sentence."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import helpers as h
import pytest

from moonshelf.errors import UserError
from moonshelf.feeds import read_feed
from moonshelf.feeds.base import MAX_RECORD, MAX_TITLE

HEADER = "id,title,price,gtin\n"


def reasons(path: Path, dialect: str | None = None) -> list[tuple[int | str, str, bool]]:
    return [(p.row, p.field, p.fatal) for p in h.problems(path, dialect)]


def test_faults_of_single_rows(tmp_path: Path) -> None:
    lines = [
        b"1,Red mug,5 EUR,4006381333931",
        b"2,Negative,-5 EUR,",
        b"3,Bad digit,5 EUR,4006381333932",
        b"4,Word,soon,",
        b",No id,5 EUR,",
        b"6," + b"x" * 1_000_000 + b",5 EUR,",
        b"7,NUL\0inside,5 EUR,",
        b"8\0,NUL in the id,5 EUR,",
        b"9,Caf\xe9,5 EUR,",
        b"10,Caf\xc3\xa9,5 EUR,",
        b"11,=HYPERLINK(1),5 EUR,",
        b"12,too,many,cells,here",
        b"13,few",
        b"",
        b" , ,,",
        b"14,,,",
        b"1,Again,5 EUR,",
    ]
    path = h.write(tmp_path / "poison.csv", HEADER.encode() + b"\n".join(lines))
    found = {product.id: product for product in h.products(path)}
    assert set(found) == {"1", "3", "4", "6", "7", "9", "10", "11", "13"}
    assert found["3"].gtin is None
    assert found["3"].extra["gtin"] == "4006381333932"
    assert found["4"].price is None
    assert found["4"].extra["price"] == "soon"
    assert len(found["6"].title) == MAX_TITLE
    assert found["7"].title == "NUL inside"
    assert found["9"].title == found["10"].title == "Café"
    assert found["11"].title == "=HYPERLINK(1)"  # data, not our business until it is exported to a table
    assert reasons(path) == [
        ("poison.csv", "encoding", False),
        (2, "price", True),
        (3, "gtin", False),
        (4, "price", False),
        (5, "id", True),
        (6, "title", False),
        (7, "title", False),
        (8, "id", True),
        (9, "row", False),
        (12, "row", True),
        (13, "row", False),
        (14, "title", True),
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, end: str) -> None:
    text = "id,title\n1,Café crème\n2,Ordinary words that are long enough\n".replace("\n", end)
    path = h.write(tmp_path / "feed.csv", text, encoding)
    assert h.products(path)[0].title == "Café crème"
    assert [problem.fatal for problem in h.problems(path)] == ([False] if encoding == "cp1252" else [])


def test_quotes_that_never_close_cost_their_own_row(tmp_path: Path) -> None:
    text = 'id,title\n1,"a, b"\n2,"never closed\n3,plain\n4,"c, d"\n5,"two\nlines"\n6,5" nails\n7,"end'
    path = h.write(tmp_path / "quotes.csv", text)
    assert [(p.id, p.title) for p in h.products(path)] == [
        ("1", "a, b"),
        ("3", "plain"),
        ("4", "c, d"),
        ("5", "two\nlines"),
        ("6", '5" nails'),
    ]
    assert [(row, fatal) for row, _, fatal in reasons(path)] == [(2, True), (7, True)]


def test_records_beyond_the_cap_are_set_aside(tmp_path: Path) -> None:
    long = b"x" * (MAX_RECORD + 10)
    table = h.write(tmp_path / "long.csv", b"id,title\n1,a\n2," + long + b"\n3,c\n")
    lines = h.write(
        tmp_path / "long.jsonl", b'{"id":"1","title":"a"}\n{"t":"' + long + b'"}\n{"id":"3","title":"c"}'
    )
    for path in (table, lines):
        assert [product.id for product in h.products(path)] == ["1", "3"]
        assert [(row, fatal) for row, _, fatal in reasons(path)] == [(2, True)]


def test_json_lines_that_are_none(tmp_path: Path) -> None:
    lines = [
        '{"id": "1", "title": "a"}',
        "{",
        "[]",
        "null",
        "[" * 100_000,
        "9" * 5_000,
        '{"id": 2, "title": "\\ud800"}',
    ]
    path = h.write(tmp_path / "bad.jsonl", "\n".join(lines))
    assert [(p.id, p.title) for p in h.products(path)] == [("1", "a"), ("2", "\ufffd")]
    assert sum(problem.fatal for problem in h.problems(path)) == 5


def test_pictures_stay_in_their_folder(tmp_path: Path) -> None:
    names = [
        "../secret.jpg",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://e.example/1.jpg",
        "http://",
        "ok.jpg",
    ]
    path = h.write(tmp_path / "shop/feed.csv", "id,title,image\n" + "".join(f"{n},t,{n}\n" for n in names))
    found = {product.id: [ref.path or ref.url for ref in product.images] for product in h.products(path)}
    assert found.pop("ok.jpg") == [str(tmp_path / "shop/ok.jpg")]
    assert all(refs == [] for refs in found.values())
    assert len(h.problems(path)) == 5
    wider = {p.id: p.images for p in h.products(path, images_root=tmp_path)}
    assert wider["ok.jpg"][0].path == str(tmp_path / "ok.jpg")


BILLION_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "lol">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]><rss><channel><item><id>1</id><title>&i;</title></item></channel></rss>"
)
EXTERNAL = (
    '<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><rss><channel><item><id>1</id><title>&x;</title></item>'
    "</channel></rss>"
)


@pytest.mark.parametrize(
    "text", [BILLION_LAUGHS, EXTERNAL, "<!DOCTYPE rss SYSTEM 'http://e.example/x.dtd'><rss/>"]
)
def test_xml_entities_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="DOCTYPE"):
        list(read_feed(h.write(tmp_path / "feed.xml", text)))


def test_xml_that_ends_early_keeps_what_was_read(tmp_path: Path) -> None:
    cut = h.MERCHANT_RSS[: h.MERCHANT_RSS.index("structured_title")]
    rows = h.rows(h.write(tmp_path / "feed.xml", cut))
    assert [row.product.id for row in rows if row.product] == ["TEE-1"]
    assert rows[-1].fatal
    assert "malformed XML" in rows[-1].problems[0].reason


@pytest.mark.parametrize(
    "item",
    [
        "<a>" * 50_000,
        f"<item><id>1</id><title>{'x' * (MAX_RECORD + 100_000)}</title></item>",
        "<a/>" * 30_000,
    ],
    ids=["deep", "long", "many"],
)
def test_xml_out_of_proportion_ends(tmp_path: Path, item: str) -> None:
    text = f"<rss><channel><item><id>1</id><title>a</title></item><item>{item}"
    rows = h.rows(h.write(tmp_path / "feed.xml", text), "merchant-xml")
    assert rows[0].product is not None
    assert rows[-1].fatal


def test_compressed_feeds_that_are_cut_off_or_bombs(tmp_path: Path) -> None:
    good = "".join(json.dumps({"id": str(n), "title": os.urandom(200).hex()}) + "\n" for n in range(2_000))
    packed = gzip.compress(good.encode())
    cut = h.rows(h.write(tmp_path / "cut.jsonl.gz", packed[: len(packed) // 2]))
    assert sum(row.product is not None for row in cut) > 100
    assert cut[-1].fatal
    bomb = gzip.compress(b'{"id": "1", "title": "a"}\n' + b" " * (80 * 2**20))
    rows = h.rows(h.write(tmp_path / "bomb.jsonl.gz", bomb))
    assert rows[0].product is not None
    assert any("expands" in problem.reason for problem in rows[-1].problems)


def test_unusable_inputs_say_so_in_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "empty folder"
    folder.mkdir()
    shop = tmp_path / "shop"
    h.write(shop / "products.jsonl", '{"id": "1", "title": "a"}')
    cases: list[tuple[Path, str | None, str]] = [
        (tmp_path / "missing.csv", None, "no file"),
        (h.write(tmp_path / "empty.csv", ""), None, "empty"),
        (h.write(tmp_path / "blank.csv", "\n \n"), None, "empty"),
        (h.write(tmp_path / "header.csv", "id,title\n"), None, "no records"),
        (h.write(tmp_path / "a.csv", "id,title\n1,a\n"), "excel", "no dialect 'excel'"),
        (h.write(tmp_path / "b.csv", "x,y\n1,a\n"), None, "no column that names a product"),
        (h.write(tmp_path / "c.csv", "id,title\n1,a\n"), "parquet", "not a readable Parquet"),
        (h.write(tmp_path / "d.csv", "id,title\n1,a\n"), "merchant-xml", "not a readable XML"),
        (h.write(tmp_path / "e.csv", "id,title\n1,a\n"), "images", "is a file"),
        (h.write(tmp_path / "f.jpg", b"\xff\xd8\xff\xe0"), None, "is an image"),
        (h.write(tmp_path / "g.parquet", b"PAR1" + b"\0" * 50), None, "not a readable Parquet"),
        (h.write(tmp_path / "h.xml", "<rss><channel/></rss>"), None, "no <item>"),
        (h.write(tmp_path / "i.jsonld", "{"), None, "not valid JSON"),
        (h.write(tmp_path / "j.json", '{"@type": "Organization"}'), None, "no schema.org Product"),
        (h.write(tmp_path / "k.html", "<html></html>"), None, "no schema.org Product"),
        (h.write(tmp_path / "l.csv.gz", gzip.compress(b"id,title\n1,a\n")[:8]), None, "damaged"),
        (folder, None, "no pictures"),
        (shop, None, "products.jsonl"),
        (shop, "csv", "is a folder"),
        (Path("nul\0"), None, "nul?"),
    ]
    for path, dialect, words in cases:
        with pytest.raises(UserError) as caught:
            read_feed(path, dialect)
        assert words in str(caught.value), (path.name, str(caught.value))
        assert "\n" not in str(caught.value)

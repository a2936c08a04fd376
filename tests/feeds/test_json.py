"""JSON in any frame is read as what it is, piece by piece, and a bad record costs itself alone."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers as h
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshelf.errors import UserError
from moonshelf.feeds.base import Source
from moonshelf.feeds.dialects.json_stream import _Reader, _Text

RECORDS: list[dict[str, Any]] = [
    {"id": n, "title": f"Mug {n}", "price": 9.9, "images": ["a.jpg"]} for n in (1, 2, 3)
]


def pretty(value: Any) -> str:
    return json.dumps(value, indent=2)


FRAMES: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "lines": lambda r: "\n".join(map(json.dumps, r)),
    "lines with commas": lambda r: ",\n".join(map(json.dumps, r)),
    "lines of Python": lambda r: "\n".join(map(repr, r)),
    "array": json.dumps,
    "pretty array": pretty,
    "array by line": lambda r: "[\n" + ",\n".join(map(json.dumps, r)) + "\n]",
    "objects in a row": lambda r: "".join(map(json.dumps, r)),
    "pretty objects": lambda r: "\n".join(map(pretty, r)),
    "JSON sequence": lambda r: "".join(f"\x1e{json.dumps(one)}\n" for one in r),
    "arrays": lambda r: "\n".join(json.dumps([one]) for one in r),
    "products": lambda r: json.dumps({"products": r}),
    "pretty data": lambda r: pretty({"count": 3, "data": r, "next": None}),
    "unknown name": lambda r: pretty({"shop": {"name": "x"}, "my export": r}),
    "pages": lambda r: "\n".join(json.dumps({"items": [one], "page": 1}) for one in r),
    "pages in an array": lambda r: json.dumps([{"products": [one]} for one in r]),
    "shop's name": lambda r: pretty({"id": 7, "title": "The shop", "products": r}),
    "graphql": lambda r: pretty({"data": {"products": {"edges": [{"node": one} for one in r]}}}),
    "elastic": lambda r: json.dumps(
        {"hits": {"total": 3, "hits": [{"_id": "x", "_source": one} for one in r]}}
    ),
    "json:api": lambda r: pretty({"data": [{"type": "product", "attributes": one} for one in r]}),
    "solr": lambda r: json.dumps({"responseHeader": {"status": 0}, "response": {"numFound": 3, "docs": r}}),
    "product by product": lambda r: pretty([{"product": one} for one in r]),
    "by id": lambda r: pretty({f"sku-{one['id']}": one for one in r}),
    "from XML": lambda r: json.dumps({"rss": {"channel": {"title": "The shop", "item": r}}}),
    "pandas columns": lambda r: json.dumps({k: {str(n): one[k] for n, one in enumerate(r)} for k in r[0]}),
    "pandas split": lambda r: json.dumps({"columns": list(r[0]), "data": [list(one.values()) for one in r]}),
    "columns": lambda r: json.dumps({k: [one[k] for one in r] for k in r[0]}),
    "rows": lambda r: json.dumps([list(r[0]), *(list(one.values()) for one in r)]),
    "sheet": lambda r: pretty({"range": "A1:D4", "values": [list(r[0]), *(list(one.values()) for one in r)]}),
}


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["feed.json", "feed.jsonl", "feed.txt"])
def test_every_frame_holds_the_same_products(tmp_path: Path, frame: str, encoding: str, name: str) -> None:
    rows = h.rows(h.write(tmp_path / name, FRAMES[frame](RECORDS), encoding))
    assert [(row.product.id, row.product.title, row.product.price) for row in rows if row.product] == [
        (str(n), f"Mug {n}", 9.9) for n in (1, 2, 3)
    ]
    assert all(len(row.product.images) == 1 for row in rows if row.product)
    assert not any(row.fatal for row in rows)


@pytest.mark.parametrize(
    "record",
    [
        {"id": 1, "title": "Mug", "images": [{"src": "a.jpg", "title": "Mug", "id": 3}]},
        {"id": 1, "title": "Set", "items": [{"id": 2, "title": "Mug", "price": 3}], "price": 9},
        {"id": 1, "title": "Mug", "products": [{"id": 2, "title": "Cup"}], "price": 9, "sku": "x"},
        {"id": 1, "title": "Mug", "data": {"id": 2, "title": "Cup"}},
        {"id": 1, "name": "Mug", "variants": [{"id": 2, "title": "S", "price": 9}]},
    ],
)
def test_a_product_is_no_frame_of_what_it_holds(tmp_path: Path, record: dict[str, Any]) -> None:
    for text in (json.dumps(record), pretty(record), pretty([record])):
        (product,) = h.products(h.write(tmp_path / "feed.json", text))
        assert product.id == "1"


@pytest.mark.parametrize(
    ("text", "ids", "fatal"),
    [
        (pretty(RECORDS)[:-30], ["1", "2"], ["file"]),
        (json.dumps({"products": RECORDS})[:-30], [], []),
        ("\n".join(map(json.dumps, RECORDS))[:-10], ["1", "2"], ["file"]),
        (pretty(RECORDS).replace('"Mug 2"', '"Mug 2'), ["1", "3"], ["row"]),
        ("\n".join(map(pretty, RECORDS)).replace('"Mug 2"', "Mug"), ["1", "3"], ["row"]),
        (json.dumps(RECORDS).replace('"Mug 2"', "Mug"), ["1"], ["row", "file"]),
        ('{"id": 1, "title": "a"} trailing\n{"id": 2, "title": "b"}', ["1", "2"], ["row"]),
        ('[{"id": 1, "title": "a"}, 7, null, ["x"], {"id": 2, "title": "b"}]', ["1", "2"], ["row"] * 3),
        ('[{"id": 1, "title": "a"},]', ["1"], []),
    ],
)
def test_what_is_broken_is_said(tmp_path: Path, text: str, ids: list[str], fatal: list[str]) -> None:
    path = h.write(tmp_path / "feed.json", text)
    if not ids:
        with pytest.raises(UserError, match="not valid JSON"):
            h.rows(path)
        return
    rows = h.rows(path)
    assert [row.product.id for row in rows if row.product] == ids
    assert [row.problems[-1].field for row in rows if row.fatal] == fatal


@settings(max_examples=50, deadline=None)
@given(
    frame=st.sampled_from(sorted(FRAMES)),
    sizes=st.lists(st.integers(0, 300), min_size=3, max_size=3),
    chunk=st.integers(1, 90),
)
def test_where_pieces_end_does_not_matter(frame: str, sizes: list[int], chunk: int) -> None:
    records = [{**one, "title": 'é{"[\\n' + "x" * size} for one, size in zip(RECORDS, sizes, strict=True)]
    data = FRAMES[frame](records).encode()

    class Drops:
        def __init__(self) -> None:
            self.at = 0

        def read(self, _: int) -> bytes:
            self.at += chunk
            return data[self.at - chunk : self.at]

    source = Source(Path("feed"))
    found = list(_Reader(source, _Text(Drops(), source)).all())  # type: ignore[arg-type]
    assert [one["title"] for one in found if isinstance(one, dict)] == [one["title"] for one in records]


LARGE = """
    import resource, sys
    from moonshelf.feeds import read_rows
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = sum(row.product is not None for row in read_rows(sys.argv[1]))
    print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("around", [('{"shop": "x", "products": [', "]}"), ("[", "]"), ("", "")])
def test_a_large_file_is_read_in_little_memory(tmp_path: Path, around: tuple[str, str]) -> None:
    path = tmp_path / "large.json.gz"
    filler = "x" * 8_000
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write(around[0])
        for n in range(9_000):
            file.write(("," if n else "") + json.dumps({"id": n, "title": "Mug", "description": filler}))
        file.write(around[1])
    command = [sys.executable, "-c", textwrap.dedent(LARGE), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    count, megabytes = map(int, done.stdout.split() or [0, 0])
    assert count == 9_000, done.stderr[-500:]
    assert megabytes < 60  # of 72 MB


def test_records_that_python_printed_with_bytes_in_them_are_read(tmp_path: Path) -> None:
    path = tmp_path / "feed.jsonl"
    path.write_text(
        "{b'id': b'1', b'title': b'Mug', 'extra note': {b'x': b'y'}}\n{'id': '2', 'title': 'Cup'}\n"
    )
    assert [(p.id, p.title) for p in h.products(path)] == [("1", "Mug"), ("2", "Cup")]


def test_a_language_tag_of_broken_unicode_is_mended(tmp_path: Path) -> None:
    title = [{"language_tag": "\ud800", "value": "Mug"}, {"language_tag": "de\ud800", "value": "Becher"}]
    path = tmp_path / "feed.json"
    path.write_text(json.dumps([{"id": "1", "title": title}]))
    (product,) = h.products(path)
    assert product.title == "Mug" and len(product.content_hash()) == 64

"""Nested shapes, frames, encodings and cuts at random: an answer for every record, nothing silent or large.

`MOONSHELF_FUZZ_SECONDS=1200 pytest -m slow tests/feeds/test_fuzz.py` takes so long, otherwise 20 s.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from moonshelf.errors import UserError
from moonshelf.feeds import read_rows

FIELDS = (
    "title", "description", "images", "image", "category", "brand", "price", "attributes", "color",
    "additional_images", "group_id", "mpn", "gtin", "link", "currency", "availability", "sku", "note",
    "variants", "offers", "tags",
)  # fmt: skip
KEYS = (
    "value", "currency", "name", "language_tag", "url", "src", "id", "key", "options", "en", "de", "data",
    "node", "edges", "title", "amount", "text", "lang", "label", "parent", "0", "1", "x", "EUR", "price",
    "large", "hi_res", "@type", "@value", "cent amount", "units", "items", "role", "bytes",
)  # fmt: skip
ODD = (
    None, True, 0, -1, 1.5, 1e308, 10**30, "", " ", "-", "N/A", "[", "{}", "[]", "['a", "9.90 EUR", "EUR",
    "en_US", "de", "a > b", "../x", "http://[", "\x00", "\ud800", "é€東", "<b>x</b>", "&amp;",
    "4006381333931",
    "[1, 2]", "{'a': 'b'}", '{"value": "x"}', "a.jpg,b.jpg", "x" * 3_000, "\u202e", "\ufeff", "Decimal('1')",
    "\\u12", "'", '"', "\n", "1" * 400,
)  # fmt: skip


def words() -> st.SearchStrategy[str]:
    """Words that can be found again."""
    return st.integers(100, 999).map(lambda n: f"w{n}w")


VALUES = st.recursive(
    words() | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=10,
)
RECORDS = st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6), min_size=1, max_size=4)


def tidy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def as_xml(records: list[dict[str, Any]]) -> str:
    def legal(value: Any) -> str:
        return "".join(
            c for c in str(value) if c in "\t\n" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd"
        )

    def element(name: str, value: Any) -> str:
        tag = "n" + "".join(c for c in name if c.isalnum()) if not name.isalpha() else name
        if isinstance(value, list):
            return "".join(element(name, item) for item in value)
        if isinstance(value, dict):
            flat = {k: v for k, v in value.items() if k.isalpha() and isinstance(v, str)}
            rest = {k: v for k, v in value.items() if k not in flat}
            attributes = "".join(f" {k}={quoteattr(legal(v))}" for k, v in flat.items())
            return f"<{tag}{attributes}>{''.join(element(k, v) for k, v in rest.items())}</{tag}>"
        return f"<{tag}>{'' if value is None else escape(legal(value))}</{tag}>"

    items = "".join(f"<item>{''.join(element(k, v) for k, v in one.items())}</item>" for one in records)
    return f"<?xml version='1.0' encoding='utf-8'?><rss><channel>{items}</channel></rss>"


def as_csv(records: list[dict[str, Any]], printed: Callable[[Any], str]) -> str:
    out = io.StringIO()
    names = list(dict.fromkeys(name for one in records for name in one))
    writer = csv.DictWriter(out, names, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for one in records:
        writer.writerow(
            {k: v if isinstance(v, str) else "" if v is None else printed(v) for k, v in one.items()}
        )
    return out.getvalue()


def as_linked(records: list[dict[str, Any]]) -> str:
    nodes = [{"@type": "Product", "sku": one["id"], "name": one.pop("title", None), **one} for one in records]
    return json.dumps({"@context": "https://schema.org", "@graph": nodes})


WRITERS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "lines": lambda r: "\n".join(map(json.dumps, r)),
    "array": lambda r: json.dumps(r, indent=1),
    "wrapped": lambda r: json.dumps({"products": r}),
    "python": lambda r: "\n".join(map(repr, r)),
    "xml": as_xml,
    "csv": lambda r: as_csv(r, repr),
    "csv with JSON": lambda r: as_csv(r, json.dumps),
    "linked": as_linked,
}
DIALECT = {"xml": "merchant-xml", "csv": "csv", "csv with JSON": "csv", "linked": "jsonld"}


def outcome(data: bytes, dialect: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feed"
        path.write_bytes(data)
        started = time.process_time()
        try:
            rows = list(read_rows(path, dialect))
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
            return str(error)
        assert time.process_time() - started < 5
        for row in rows:
            fatal = [problem for problem in row.problems if problem.fatal]
            assert len(fatal) == (row.product is None and row.records > 0), row
            if row.product is not None:
                row.product.content_hash()  # the text can be encoded
        return rows


def check(records: list[dict[str, Any]], writer: str, seed: int) -> None:
    records = [{"id": f"i{n}", **tidy(one)} for n, one in enumerate(records)]
    for one in records:
        one.setdefault("title", "Mug")
    if writer == "python" and "\\ud800" in repr(records):
        return
    given = {
        one["id"]: {w for w in json.dumps(one).replace('"', " ").split() if w[0] == w[-1] == "w"}
        for one in records
    }
    text = WRITERS[writer]([dict(one) for one in records])
    dialect = DIALECT.get(writer, "json")
    data = text.encode("utf-8", "surrogatepass" if dialect == "json" else "replace")
    rows = outcome(data, dialect)
    assert not isinstance(rows, str), rows
    assert sum(row.records for row in rows) == len(records), rows
    for row in rows:
        # Of schema.org's offers and related things only what is shown is kept.
        if row.product is not None and not row.problems and writer != "linked":
            kept = row.product.model_dump_json()
            lost = {word for word in given.get(row.product.id, ()) if word not in kept}
            assert not lost, f"{lost} {text} {row}"
    chance = random.Random(seed)
    broken = bytearray(data)
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(broken))
        broken[at : at + chance.randrange(3)] = bytes(
            chance.randrange(256) for _ in range(chance.randrange(3))
        )
    outcome(bytes(broken), dialect)
    outcome(data[: chance.randrange(1, len(data))], dialect)
    outcome(gzip.compress(data)[: chance.randrange(10, len(data) + 10)], dialect)
    for encoding in ("utf-16", "cp1252", "utf-8-sig", "cp1251"):
        outcome(text.encode(encoding, "replace"), dialect)


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_fuzz(writer: str) -> None:
    seconds = float(os.environ.get("MOONSHELF_FUZZ_SECONDS", "20")) / len(WRITERS)
    until = time.monotonic() + seconds

    @settings(
        max_examples=200,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(RECORDS, st.integers(0, 1 << 30))
    def run(records: list[dict[str, Any]], seed: int) -> None:
        check(records, writer, seed)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while time.monotonic() < until:
        run()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes

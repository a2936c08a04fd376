"""Tables in text with any column names: CSV and TSV, also with semicolons or bars between the cells.

Names that are common in shops' exports are understood (`columns.NAMES`); others can be forced with
`fields`. The official dialects (`merchant`, `meta`) are tables of this kind with their own extras.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moonshelf.errors import Problem
from moonshelf.feeds import shopify
from moonshelf.feeds.base import Row, Source, notes_of, set_aside
from moonshelf.feeds.columns import simple
from moonshelf.feeds.records import RecordReader
from moonshelf.feeds.shops import by_name, recognise
from moonshelf.feeds.text import Table, find_header

_MAX_GROUPS = 500_000  # variants whose parents are kept
# A handle alone is what a knife has, too.
_SHOPIFY = frozenset((
    "body (html)", "option1 name", "option1 value", "variant sku", "variant price", "variant barcode",
    "image src", "product image url", "published on online store", "image position", "variant image",
))  # fmt: skip
_SHOPIFY_TOO = frozenset(("vendor", "tags", "published", "status", "type"))
_META = frozenset(("fb product category", "rich text description", "quantity to sell on facebook"))
_MERCHANT = frozenset((
    "link", "image link", "availability", "condition", "google product category", "product type", "gtin",
    "mpn", "item group id", "additional image link", "identifier exists", "custom label 0", "price",
))  # fmt: skip


def read(source: Source) -> Iterator[Row]:
    """Rows of a CSV or TSV file with any column names, exports of the common shops among them."""
    table = Table(source)
    shop = recognise(table.header)
    if shop is not None and shop.line is not None:
        return shopify.read_export(source, table, shop)
    reader = RecordReader(source, table.header, shop=shop)
    if shop is not None and shop.members is not None:
        reader.groups = _groups(source, shop.members)
    return rows_of(source, table, reader)


def _groups(source: Source, members: Callable[[Mapping[str, str]], list[str]]) -> dict[str, str]:
    """Parent of each variant where the parent's line names its variants; the file is read once for it."""
    again = Source(source.path, None, source.fields, source.encoding)
    groups: dict[str, str] = {}
    for record in Table(again):
        cells = by_name(record.cells)
        parent = cells.get("sku", "")
        if (ids := members(cells)) and parent and len(groups) < _MAX_GROUPS:
            groups |= {id.strip(): parent for id in (*ids, parent)}
    return groups


def rows_of(
    source: Source,
    table: Table,
    reader: RecordReader,
    prepare: Callable[[dict[str, str]], Mapping[str, Any]] | None = None,
) -> Iterator[Row]:
    """Rows of a table; `prepare` may reshape a record's cells before they are read."""
    yield from notes_of(source, reader.notes)
    for record in table:
        if record.fatal is not None:
            yield set_aside(record.number, record.field, record.fatal)
            continue
        row = reader.row(record.number, prepare(record.cells) if prepare else record.cells)
        if record.warning:
            id = row.product.id if row.product else None
            row.problems.insert(0, Problem(record.number, record.field, record.warning, id, fatal=False))
        yield row
    yield from notes_of(source)


def detect_table(text: str) -> str:
    """Dialect of a table from its first lines."""
    lines = text.splitlines()[:200]
    found = find_header(lines)
    if found is None:  # a vertical tab, say, is neither text nor an empty file
        return "csv"
    names = {simple(cell) for cell in found.cells}
    if names & {"handle", "url handle"} and (names & _SHOPIFY or len(names & _SHOPIFY_TOO) > 2):
        return "shopify"
    known = {"id", "title"} <= names and len(names & _MERCHANT) >= 2
    if known and any(line.startswith("#") for line in lines[: found.at]):
        return "meta"
    if names & _META or any(name.startswith("image[") for name in names):
        return "meta"
    return "merchant" if known and "image link" in names else "csv"

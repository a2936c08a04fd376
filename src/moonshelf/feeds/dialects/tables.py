"""Tables in text: CSV and TSV with any column names, also with semicolons or bars between the cells.

Names that are common in shops' exports are understood; others can be forced with `fields`. Catalogues for
Google Merchant and Meta are tables with extras of their own: `structured_title`, `product_detail`, columns
that are JSON paths (`image[0].url`, `image[1].tag[0]`), lines that begin with `#` before the header.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moonshelf.attributes import fold
from moonshelf.errors import Problem
from moonshelf.feeds.base import Row, Source, notes_of, rejected
from moonshelf.feeds.columns import simple
from moonshelf.feeds.dialects import variants
from moonshelf.feeds.dialects.shops import SHOPIFY, Shop, by_name, recognise
from moonshelf.feeds.records import RecordReader
from moonshelf.feeds.text import Table, find_header
from moonshelf.feeds.vocabulary import WORDS

_MAX_GROUPS = 500_000  # variants whose parents are kept
_IMAGE = re.compile(r"image\[(\d{1,3})\]\.url", re.IGNORECASE)
_IMAGES = "additional_image_link"


def read(source: Source) -> Iterator[Row]:
    """Rows of a CSV or TSV file with any column names, exports of the common shops among them."""
    table = Table(source)
    shop = recognise(table.header)
    if shop is not None and shop.lines:
        return variants.read(source, table, shop)
    reader = RecordReader(source, table.header, shop=shop)
    if shop is not None and shop.members:
        reader.groups = _groups(source, shop)
    return _rows(source, table, reader)


def _groups(source: Source, shop: Shop) -> dict[str, str]:
    """Parent of each variant where the parent's line names its variants; the file is read once for it."""
    again = Source(source.path, None, source.fields, source.encoding)
    groups: dict[str, str] = {}
    for record in Table(again):
        cells = by_name(record.cells)
        parent = cells.get("sku", "")
        if (ids := shop.members_of(cells)) and parent and len(groups) < _MAX_GROUPS:
            groups |= {id.strip(): parent for id in (*ids, parent)}
    return groups


def read_catalogue(source: Source) -> Iterator[Row]:
    """Rows of a catalogue for Google Merchant or Meta."""
    table = Table(source)
    found = {name: int(match[1]) for name in table.header if (match := _IMAGE.fullmatch(name.strip()))}
    paths = sorted(found, key=lambda name: found[name])

    def of_meta(cells: dict[str, str]) -> dict[str, Any]:
        images: list[str] = [cell for name in paths if (cell := cells.get(name, ""))]
        record: dict[str, Any] = {name: cell for name, cell in cells.items() if name not in found}
        # A list of single addresses: these cells never hold several.
        record[_IMAGES] = images + ([record[_IMAGES]] if record.get(_IMAGES) else [])
        return record

    if paths:
        header = [name for name in table.header if name not in found and name != _IMAGES]
        return _rows(source, table, RecordReader(source, [*header, _IMAGES]), of_meta)
    special = {fold(name) for name in table.header} & {"structured title", "product detail"}
    return _rows(source, table, RecordReader(source, table.header), of_merchant if special else None)


def of_merchant(cells: Mapping[str, Any]) -> dict[str, Any]:
    """A record of Google's: `structured_title` where there is no title; `product_detail` as attributes."""
    record = dict(cells)
    for name in list(record):
        folded = fold(name)
        if folded in ("structured title", "structured description"):
            if not record.get(target := folded.removeprefix("structured ")):
                record[target] = _content(record.pop(name))
        elif folded == "product detail":
            given = record.get("attributes")
            details = _details(record.pop(name))
            record["attributes"] = {**(given if isinstance(given, dict) else {}), **details}
    return record


def _content(value: Any) -> Any:
    """Of `trained_algorithmic_media:"Red shoe"`, or of its XML children, the text."""
    if isinstance(value, dict):
        return value.get("content")
    if isinstance(value, str) and value.split(":", 1)[0] in ("trained_algorithmic_media", "default"):
        return value.partition(":")[2].strip().strip('"')
    return value


def _details(value: Any) -> dict[str, Any]:
    """Attributes of `Section:Name:Value,Section:Name:Value`, or of XML children."""
    details: dict[str, Any] = {}
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):
            name = item.get("attribute_name")
            if isinstance(name, str) and name:
                details[name] = item.get("attribute_value")
        elif isinstance(item, str):
            for part in item.split(","):
                pieces = [piece.strip() for piece in part.split(":")]
                if len(pieces) == 3 and pieces[1] and pieces[2]:
                    details[pieces[1]] = pieces[2]
                elif part.strip():
                    details["product_detail"] = part.strip()
    return details


def _rows(
    source: Source,
    table: Table,
    reader: RecordReader,
    prepare: Callable[[dict[str, str]], Mapping[str, Any]] | None = None,
) -> Iterator[Row]:
    """Rows of a table; `prepare` may reshape a record's cells before they are read."""
    yield from notes_of(source, reader.notes)
    for record in table:
        if record.fatal is not None:
            yield rejected(record.number, record.field, record.fatal)
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
    words, names = WORDS["detect"], {simple(cell) for cell in found.cells}
    # A handle alone is what a knife has, too.
    shopify = names.intersection(SHOPIFY.marks) or len(names.intersection(words["shopify_too"])) > 2
    if names & {"handle", "url handle"} and shopify:
        return "shopify"
    known = {"id", "title"} <= names and len(names.intersection(words["merchant"])) >= 2
    if known and any(line.startswith("#") for line in lines[: found.at]):
        return "meta"
    if names.intersection(words["meta"]) or any(name.startswith("image[") for name in names):
        return "meta"
    return "merchant" if known and "image link" in names else "csv"

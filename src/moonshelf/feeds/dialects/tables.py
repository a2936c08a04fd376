"""Tables in text: CSV and TSV with any column names, also with semicolons or bars between the cells.

Names that are common in shops' exports are understood; others can be forced with `fields`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from moonshelf.feeds.base import Row, Source
from moonshelf.feeds.columns import simple
from moonshelf.feeds.dialects import variants
from moonshelf.feeds.dialects.shops import SHOPIFY, Shop, by_name, recognise
from moonshelf.feeds.records import RecordReader
from moonshelf.feeds.text import Table, find_header
from moonshelf.feeds.vocabulary import WORDS

_MAX_GROUPS = 500_000  # variants whose parents are kept


def read(source: Source, shop: Shop | None = None) -> Iterator[Row]:
    """Rows of a CSV or TSV file; without a `shop` its header tells whose export it is, if any."""
    table = Table(source)
    shop = shop or recognise(table.header)
    if shop.lines:
        return variants.read(source, table, shop)
    reader = RecordReader(source, table.header, shop=shop)
    if shop.members:
        reader.groups = _groups(source, shop)
    return reader.rows(table)


def _groups(source: Source, shop: Shop) -> dict[str, str]:
    """Parent of each variant where the parent's line names its variants; the file is read once for it."""
    again = Source(source.path, None, source.fields, source.encoding)
    groups: dict[str, str] = {}
    for _, record in Table(again):
        cells = {} if isinstance(record, Row) else by_name(record)
        parent = cells.get("sku", "")
        if (ids := shop.members_of(cells)) and parent and len(groups) < _MAX_GROUPS:
            groups |= {id.strip(): parent for id in (*ids, parent)}
    return groups


def is_agentic(names: Iterable[str]) -> bool:
    """Whether these are columns of an Agentic Commerce product feed."""
    have = set(map(simple, names))
    return any(have.issuperset(marks) for marks in WORDS["detect"]["agentic"])


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
    if is_agentic(found.cells):
        return "agentic"
    known = {"id", "title"} <= names and len(names.intersection(words["merchant"])) >= 2
    if known and any(line.startswith("#") for line in lines[: found.at]):
        return "meta"
    if names.intersection(words["meta"]) or any(name.startswith("image[") for name in names):
        return "meta"
    return "merchant" if known and "image link" in names else "csv"

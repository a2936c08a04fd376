"""Google Merchant Center feeds: tab- or comma-separated text, and XML (see `xml_feed`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moonshelf.attributes import fold
from moonshelf.feeds import xml_feed
from moonshelf.feeds.base import Row, Source
from moonshelf.feeds.records import RecordReader
from moonshelf.feeds.tabular import rows_of
from moonshelf.feeds.text import Table


def read_text(source: Source) -> Iterator[Row]:
    """Rows of a tab- or comma-separated Merchant feed."""
    table = Table(source)
    reader = RecordReader(source, table.header)
    special = {fold(name) for name in table.header} & {"structured title", "product detail"}
    return rows_of(source, table, reader, _prepare if special else None)


def _prepare(cells: Mapping[str, Any]) -> dict[str, Any]:
    """`structured_title` where there is no title; `product_detail` as attributes."""
    record = dict(cells)
    for name in list(record):
        folded = fold(name)
        if folded == "structured title" and not record.get("title"):
            record["title"] = _content(record.pop(name))
        elif folded == "structured description" and not record.get("description"):
            record["description"] = _content(record.pop(name))
        elif folded == "product detail":
            given = record.get("attributes")
            record["attributes"] = {
                **(given if isinstance(given, dict) else {}),
                **_details(record.pop(name)),
            }
    return record


def _content(value: Any) -> Any:
    """Of `trained_algorithmic_media:"Red shoe"`, or of its XML children, the text."""
    if isinstance(value, dict):
        return value.get("content")
    if isinstance(value, str) and value.split(":", 1)[0] in ("trained_algorithmic_media", "default"):
        return value.split(":", 1)[1].strip().strip('"') if ":" in value else ""
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


def read_xml(source: Source) -> Iterator[Row]:
    """Rows of an XML feed. Raises UserError for a document type, entities, or no readable item at all."""
    return xml_feed.read(source, _prepare)

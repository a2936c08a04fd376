"""Google Merchant Center feeds: tab- or comma-separated text, and XML (RSS 2.0 or Atom, `g:` names).

XML comes from strangers: a document type, entities and external references are refused before anything is
read (defusedxml); elements are dropped as soon as their item is done, so a feed of any length streams; one
item may hold `MAX_RECORD` bytes. A malformed tail ends the feed with one problem, what came before stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import IO, Any
from xml.etree.ElementTree import Element, ParseError

from moonshelf.attributes import fold
from moonshelf.errors import UserError
from moonshelf.feeds.base import MAX_RECORD, FeedBroken, Row, Source, broken_off, set_aside
from moonshelf.feeds.records import RecordReader
from moonshelf.feeds.tabular import rows_of
from moonshelf.feeds.text import Table

_ITEMS = frozenset(("item", "entry", "product"))
_ATOM = {"summary": "description", "content": "description"}
_MAX_DEPTH = 40
_MAX_ELEMENTS = 20_000  # of one item


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
            record["attributes"] = _details(record.pop(name))
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
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import iterparse

    reader = RecordReader(source)
    number = 0
    with source.open() as raw:
        metered = _Metered(raw)
        try:
            for record in _items(iterparse(metered, ("start", "end"), forbid_dtd=True), metered):
                number += 1
                if isinstance(record, str):
                    yield set_aside(number, "row", record)
                else:
                    yield reader.row(number, record)
        except DefusedXmlException:
            raise UserError(
                f"{source.name} declares a document type or entities, which are refused: remove the DOCTYPE."
            ) from None
        except (ParseError, FeedBroken, LookupError, ValueError) as error:
            reason = _reason(error)
            if number == 0:
                raise UserError(f"{source.name} is not a readable XML feed: {reason}.") from None
            yield broken_off(number + 1, reason)
            return
    if number == 0:
        raise UserError(f"{source.name} holds no <item> or <entry>: is it a product feed?")


def _reason(error: Exception) -> str:
    if isinstance(error, ParseError):
        line, column = error.position
        return f"malformed XML at line {line}, column {column + 1}"
    if isinstance(error, FeedBroken):
        return str(error)
    return "its encoding is not supported"


def _items(events: Any, metered: _Metered) -> Iterator[dict[str, Any] | str]:
    """Records of the outermost items, each dropped from the tree when it is done."""
    stack: list[Element] = []
    item_at, elements = 0, 0  # depth of the open item, 0 outside; how many elements it has
    for event, element in events:
        if event == "start":
            stack.append(element)
            if not item_at and _local(element.tag) in _ITEMS and len(stack) > 1:
                item_at, elements = len(stack), 0
            elements += 1
            if len(stack) > _MAX_DEPTH or elements > _MAX_ELEMENTS:
                raise FeedBroken("elements are nested too deeply or one item has too many of them")
            continue
        depth = len(stack)
        stack.pop()
        if item_at and depth == item_at:
            yield _record(element)
            item_at = 0
            metered.mark()
        if not item_at:
            elements = 0
            element.clear()
            if stack:
                stack[-1].remove(element)
                stack[-1].text = None


def _record(item: Element) -> dict[str, Any]:
    """Values by name; of an RSS or Atom element and a `g:` element of one name, `g:` wins."""
    record: dict[str, Any] = {}
    official: set[str] = set()
    for child in item:
        space, name = _split(child.tag)
        google = "base.google.com" in space
        value: Any = _value(child)
        if name == "link" and not value:
            value = child.get("href", "") if child.get("rel", "alternate") == "alternate" else ""
        if not google:
            name = _ATOM.get(name, name)
        if value in ("", None) or (name in official and not google):
            continue
        if google and name not in official:
            official.add(name)
            record[name] = value
        elif name in record:
            present = record[name]
            if name in ("additional_image_link", "product_detail", "product_highlight", "shipping"):
                record[name] = [*(present if isinstance(present, list) else [present]), value]
        else:
            record[name] = value
    return _prepare(record)


def _value(element: Element) -> Any:
    if len(element) == 0:
        return (element.text or "").strip()
    if _split(element.tag)[1] in ("content", "summary", "description", "title"):  # XHTML inside Atom
        return " ".join("".join(element.itertext()).split())
    return {_split(child.tag)[1]: "".join(child.itertext()).strip() for child in element}


def _split(tag: Any) -> tuple[str, str]:
    """Namespace and local name; comments and instructions have no name."""
    if not isinstance(tag, str):
        return "", ""
    space, _, name = tag.rpartition("}")
    return space, name


def _local(tag: Any) -> str:
    return _split(tag)[1].lower()


class _Metered:
    """A file that stops when one item grows past `MAX_RECORD` bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._since = file, 0

    def mark(self) -> None:
        self._since = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._since += len(data)
        if self._since > MAX_RECORD:
            raise FeedBroken(f"one item is longer than {MAX_RECORD // 2**20} MiB")
        return data

"""XML feeds: RSS 2.0 and Atom with `g:` names, and shops' own lists of products.

XML comes from strangers: a document type, entities and external references are refused before anything is
read (defusedxml); elements are dropped as soon as their item is done, so a feed of any length streams; one
item may hold `MAX_RECORD` bytes. A malformed tail ends the feed with one problem, what came before stays.

Elements, repeated or nested, and attributes become the lists and mappings that JSON would have, so that one
mapping (`shapes`) reads both: `<images><image url="…"/></images>` is `{"image": {"url": "…"}}`.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any
from xml.etree.ElementTree import Element, ParseError

from moonshelf.attributes import fold
from moonshelf.errors import UserError
from moonshelf.feeds import shapes
from moonshelf.feeds.base import MAX_RECORD, FeedBroken, Row, Source, broken_off
from moonshelf.feeds.columns import fields_of
from moonshelf.feeds.records import RecordReader
from moonshelf.feeds.vocabulary import WORDS

_ITEMS, _PARAMETERS, _MARKUP = (frozenset(WORDS["xml"][name]) for name in ("items", "parameters", "markup"))
_ATOM = {"summary": "description", "content": "description"}
_MAX_DEPTH = 40
_MAX_ELEMENTS = 20_000  # of one item
_HEAD = 1 << 20  # bytes in which the name of the items is looked for


def read(source: Source) -> Iterator[Row]:
    """Rows of an XML feed. Raises UserError for a document type, entities, or no readable item at all."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import iterparse

    reader = RecordReader(source)
    number = 0
    try:
        names = _item_names(source)
        with source.open() as raw:
            metered = _Metered(raw)
            for item in _items(iterparse(metered, ("start", "end"), forbid_dtd=True), metered, names):
                number += 1
                yield reader.row(number, _record(item))
    except DefusedXmlException:
        raise UserError(
            f"{source.name} declares a document type or entities, which are refused: remove the DOCTYPE."
        ) from None
    except (ParseError, FeedBroken, LookupError, ValueError) as error:
        reason = str(error) if isinstance(error, FeedBroken) else "its encoding is not supported"
        if isinstance(error, ParseError):
            reason = f"malformed XML at line {error.position[0]}, column {error.position[1] + 1}"
        if number == 0:
            raise UserError(f"{source.name} is not a readable XML feed: {reason}.") from None
        yield broken_off(number + 1, reason)
        return
    if number == 0:
        raise UserError(f"{source.name} holds no <item> or <entry>: is it a product feed?")
    yield from reader.ending()


def _item_names(source: Source) -> frozenset[str]:
    """What the elements that hold a product are called: a common name, or the one that repeats and has names
    of a product's fields in it."""
    from defusedxml.ElementTree import iterparse

    head = b""
    with source.open() as raw, suppress(FeedBroken):  # which the reader will meet again
        while len(head) < _HEAD and (chunk := raw.read(1 << 16)):
            head += chunk
    found: Counter[str] = Counter()
    depth = elements = 0
    try:
        for event, element in iterparse(io.BytesIO(head), ("start", "end"), forbid_dtd=True):
            depth += 1 if event == "start" else -1
            elements += 1
            if event == "start" and depth > 1 and _local(element.tag) in _ITEMS:
                return _ITEMS
            if depth > _MAX_DEPTH or elements > 2 * _MAX_ELEMENTS:
                break
            if event == "end" and depth:
                fields = fields_of(map(_local, (*(child.tag for child in element), *element.attrib)))
                if fields & {"title", "description"} and len(fields) > 1:
                    found[_local(element.tag)] += 1
    except ParseError:  # the head ends somewhere
        pass
    return frozenset(name for name, _ in found.most_common(1)) or _ITEMS


def _items(events: Any, metered: _Metered, names: frozenset[str]) -> Iterator[Element]:
    """The outermost items, each dropped from the tree when it is done."""
    stack: list[Element] = []
    item_at, elements = 0, 0  # depth of the open item, 0 outside; how many elements it has
    for event, element in events:
        if event == "start":
            stack.append(element)
            if not item_at and _local(element.tag) in names and len(stack) > 1:
                item_at, elements = len(stack), 0
            elements += 1
            if len(stack) > _MAX_DEPTH or elements > _MAX_ELEMENTS:
                raise FeedBroken("elements are nested too deeply or one item has too many of them")
            continue
        depth = len(stack)
        stack.pop()
        if item_at and depth == item_at:
            yield element
            item_at = 0
            metered.since = 0
        if not item_at:
            elements = 0
            element.clear()
            if stack:
                stack[-1].remove(element)
                stack[-1].text = None


def _record(item: Element) -> dict[str, Any]:
    """Values by name. Of a plain element and a `g:` element of one name, `g:` wins and the other is kept."""
    official: dict[str, Any] = {}
    plain: dict[str, Any] = {_split(name)[1]: value for name, value in item.attrib.items() if value.strip()}
    inside: set[str] = set()
    for child in item:
        space, name = _split(child.tag)
        if "base.google.com" in space:
            _add(official, name, _value(child))
        elif name and (value := _plain_value(child, space)) is not None:
            name, value = value
            if name in plain and name not in inside:  # an element outranks an attribute of the item
                plain[f"{name} (2)"] = plain.pop(name)
            inside.add(name)
            _add(plain, name, value)
    record = dict(official)
    parameters: dict[str, Any] = {}
    for name, value in plain.items():
        if fold(name) in _PARAMETERS and (pairs := shapes.attributes(value)) is not None:
            parameters |= pairs
        elif name not in record:
            record[name] = value
        elif value != record[name]:
            record[f"{name} (2)"] = value
    if parameters:
        record["attributes"] = parameters
    return record


def _plain_value(child: Element, space: str) -> tuple[str, Any] | None:
    """Name and value of an element without Google's prefix; links and media are told apart."""
    name = _split(child.tag)[1]
    url = child.get("url") or child.get("href")
    kind = child.get("medium") or child.get("type") or ""
    if name == "link" and child.get("href") and not (child.text or "").strip():
        rel = child.get("rel", "alternate")
        if rel == "alternate":
            return "link", child.get("href")
        return ("additional_image_link", url) if kind.startswith("image") else (f"link {rel}", url)
    if url and ("search.yahoo.com/mrss" in space or name == "enclosure"):
        picture = not kind or kind.startswith("image")
        return ("additional_image_link" if picture else name), url
    if "search.yahoo.com/mrss" not in space:
        name = _ATOM.get(name, name)
    return name, _value(child)


def _add(values: dict[str, Any], name: str, value: Any) -> None:
    """One more value of a name; several are a list."""
    if value in ("", None, {}):
        return
    present = values.get(name)
    several = present if isinstance(present, list) else [present]
    values[name] = [*several, value] if name in values else value


def _value(element: Element) -> Any:
    """Text; with attributes or elements inside, a mapping of them, the text under `value`."""
    text = (element.text or "").strip()
    children = [child for child in element if isinstance(child.tag, str)]
    inner = {_local(child.tag) for child in children}
    if children and inner <= _MARKUP:
        return " ".join("".join(element.itertext()).split())
    values: dict[str, Any] = {}
    for child in children:
        _add(values, _split(child.tag)[1], _value(child))
    for key, value in element.attrib.items():
        _add(values, _split(key)[1], value.strip())
    if values.get("nil") == "true":
        return None
    if text:
        if not values:
            return text
        _add(values, "value", text)
    return values


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
        self._file, self.since = file, 0  # bytes since the last item

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.since += len(data)
        if self.since > MAX_RECORD:
            raise FeedBroken(f"one item is longer than {MAX_RECORD // 2**20} MiB")
        return data

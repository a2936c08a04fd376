"""Records of a JSON file, whatever holds them: lines, an array, a wrapper such as `{"products": [...]}`, or
objects one after another, pretty-printed or not.

The file is read piece by piece, and no more than one record (or a wrapper's head) is held. A record that is
malformed costs itself: reading goes on at the next line that begins as it did. Where no line can be found
again, or the file ends within something that was opened, the feed was not read to its end, and that is said.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any

from moonshelf.attributes import fold
from moonshelf.errors import UserError
from moonshelf.feeds import shapes
from moonshelf.feeds.base import MAX_RECORD, FeedBroken, Row, Source, broken_off, rejected
from moonshelf.feeds.columns import FIELD_OF, fields_of
from moonshelf.feeds.text import Decoder
from moonshelf.feeds.vocabulary import WORDS

_CHUNK = 1 << 16
_AHEAD = 1 << 20  # characters in which an object has to end to be looked at as a whole
_SPACE = re.compile(r"[ \t\r\n\ufeff\x00\x1e]*")  # \x1e stands before each text of a JSON sequence
_DECODE = json.JSONDecoder().raw_decode
_MAX_INDENT = 1_000  # characters of a line's beginning that are kept, at least
_CUT = 16  # characters before the end where an error may come from the end itself

# Names under which exports keep their products, and under which they wrap them.
_HOLDERS, _WRAPS = sorted(WORDS["json"]["holders"]), frozenset(WORDS["json"]["wraps"])
_IDS = frozenset(name for name, (field, _) in FIELD_OF.items() if field == "id")
_TELLING = frozenset(("title", "description", "images"))


class _Malformed(Exception):
    """One value is not JSON, or too `long`, or `cut`: the file ends within it, as far as can be told."""

    def __init__(self, why: str, *, long: bool = False, cut: bool = False) -> None:
        super().__init__(why)
        self.long, self.cut = long, cut


class _Text:
    """The file as text, of which the part that is being read is held."""

    def __init__(self, file: IO[bytes], source: Source) -> None:
        self._file = file
        self.broken: FeedBroken | None = None  # why the file could not be read to its end
        chunk = file.read(_CHUNK)
        self._decoder = Decoder(chunk, source)
        self._decode = codecs.getincrementaldecoder(self._decoder.encoding)(self._decoder.errors).decode
        self.held, self.at, self.ended = self._decoded(chunk), 0, not chunk
        self.on_one_line = False  # the value read last
        self.indent: str | None = ""  # before the value at hand, or None where it begins within a line

    def _decoded(self, chunk: bytes) -> str:
        text = self._decode(chunk, not chunk)
        return text if text.isascii() else "\n".join(map(self._decoder.mend, text.split("\n")))

    def more(self, size: int = _CHUNK) -> None:
        """At least one more character, or the end."""
        parts, length = [self.held[self.at :]], len(self.held) - self.at
        self.at = 0
        wanted = length + size
        while length < wanted and not self.ended:
            try:
                chunk = self._file.read(_CHUNK)
            except FeedBroken as error:  # what came before it is read first
                chunk, self.broken = b"", error
            self.ended = not chunk
            parts.append(self._decoded(chunk))
            length += len(parts[-1])
        self.held = "".join(parts)

    def peek(self) -> str:
        """The next character that is no space, "" at the end."""
        before = "" if self.indent is None else self.indent
        fresh = self.at == 0 and not before and self.indent is not None
        while True:
            end = _SPACE.match(self.held, self.at).end()  # type: ignore[union-attr]
            space = self.held[self.at : end]
            if "\n" in space or fresh:
                before, fresh = space.rpartition("\n")[2].strip("\ufeff\0\x1e\r"), False
                self.indent = before
            elif self.indent is not None and len(self.indent) < _MAX_INDENT:
                self.indent += space
            self.at = end
            if end < len(self.held):
                return self.held[end]
            if self.ended:
                if self.broken:
                    raise self.broken
                return ""
            self.more()

    def take(self) -> None:
        """Goes past one character."""
        self.at += 1
        self.indent = None

    def value(self, limit: int = MAX_RECORD) -> Any:
        """The JSON value that begins here. Raises FeedBroken if it is cut off; _Malformed, also if it
        does not end within `limit` characters, and then stays where it is."""
        size = _CHUNK
        while True:
            try:
                found, end = _DECODE(self.held, self.at)
            except RecursionError:
                raise _Malformed("the JSON is nested too deeply") from None
            except json.JSONDecodeError as error:
                near = len(self.held.rstrip()) if self.ended else len(self.held) - _CUT
                if not error.msg.startswith("Unterminated") and error.pos < near:
                    where = error.pos - self.at + 1
                    raise _Malformed(f"not JSON: {error.msg} at character {where}") from None
                if self.ended:
                    raise _Malformed("not JSON: the file ends within a record", cut=True) from None
            except ValueError:
                raise _Malformed("not JSON: a number is too long") from None
            else:
                if end < len(self.held) or self.ended:  # a number may go on
                    if end - self.at > limit:
                        break
                    self.on_one_line = self.held.find("\n", self.at, end) < 0
                    self.at, self.indent = end, None
                    return found
            if len(self.held) - self.at > limit:
                break
            self.more(size)
            size *= 2
        raise _Malformed(f"the record is longer than {limit // 2**20} MiB", long=True)

    def line(self) -> str:
        """The line from here on, or the beginning of a very long one."""
        while self.held.find("\n", self.at) < 0 and len(self.held) - self.at < _AHEAD and not self.ended:
            self.more()
        return self.held[self.at :].split("\n", 1)[0]

    def skip(self, indent: str | None, begins: str) -> bool:
        """Goes to the next line that begins so, or further left; False, and to the end, if there is none."""
        width = len(indent or "")
        start = rf"[ \t]{{0,{width}}}{re.escape(begins)}" if begins in ("{", "[") else ""
        pattern = re.compile(rf"(\n|\r(?!\n)){start}")
        while True:
            match = pattern.search(self.held, self.at)
            if match:
                self.at, self.indent = match.start(), ""
                return True
            if self.ended:
                self.at = len(self.held)
                return False
            self.at = max(self.at, len(self.held) - width - 3)
            self.more(_AHEAD)


Item = tuple[int, Mapping[str, Any] | Row]


def records(source: Source) -> Iterator[Item]:
    """Numbers and records, or why one, or all that would follow, was not read. Raises UserError for none."""
    number = 0
    try:
        with source.open() as file:
            for found in _Reader(source, _Text(file, source)).all():
                number += 1
                yield number, rejected(number, "row", found) if isinstance(found, str) else found
    except FeedBroken as error:
        if not number:
            raise UserError(f"{source.name} is not valid JSON: {error}.") from None
        yield number + 1, broken_off(number + 1, error)


class _Reader:
    """Walks through a file; a record is a mapping, what is none is the reason as text."""

    def __init__(self, source: Source, text: _Text) -> None:
        self._source, self._text = source, text
        self._header: list[str] | None = None  # of records that are arrays
        self._lines = False  # the record before was one line

    def all(self) -> Iterator[Mapping[str, Any] | str]:
        """Records of everything that stands at the top."""
        text, first = self._text, True
        while begins := text.peek():
            if begins == ",":
                text.take()
            elif begins == "[" and first:
                yield from self._array()
            else:
                yield from self._record(top=True)
                first = False

    def _array(self) -> Iterator[Mapping[str, Any] | str]:
        text = self._text
        text.take()
        while (begins := text.peek()) != "]":
            if not begins:
                raise FeedBroken("the file ends within a list")
            if begins == ",":
                text.take()
            else:
                yield from self._record()
        text.take()

    def _record(self, top: bool = False) -> Iterator[Mapping[str, Any] | str]:
        """The record or records of the value that begins here."""
        text = self._text
        indent, begins = text.indent, text.held[text.at]
        try:
            value = text.value(_AHEAD if top and begins == "{" else MAX_RECORD)
        except _Malformed as error:
            if error.long and top and begins == "{":
                yield from self._long(indent)
                return
            if begins == "{" and isinstance(
                value := shapes.opened(text.line().rstrip(", \t\r")), dict
            ):  # as Python prints it
                text.at += len(text.line())
            else:
                found = text.skip(indent, "" if self._lines else begins)
                if not found and error.cut:
                    raise text.broken or FeedBroken("the file ends within a record") from None
                yield str(error)
                if not found and indent is None:
                    raise FeedBroken("no record can be told after one that is malformed") from None
                return
        self._lines = top and indent == "" and text.on_one_line
        yield from self._of_value(value)

    def _long(self, indent: str | None) -> Iterator[Mapping[str, Any] | str]:
        """What an object holds that is too long to be looked at as a whole."""
        found = False
        try:
            for record in self._wrapper():
                found = True
                yield record
        except _Malformed as error:
            if found or (not self._text.skip(indent, "{") and error.cut):
                raise self._text.broken or FeedBroken(f"an object is malformed ({error})") from None
            yield str(error)

    def _of_value(self, value: Any) -> Iterator[Mapping[str, Any] | str]:
        """The record that a value is, or the records that it holds."""
        inside = held_records(value) if isinstance(value, dict) else None
        for record in [value] if inside is None else inside:
            if isinstance(record, list) and (record := self._of_row(record)) is None:
                continue
            yield (
                bare(record) if isinstance(record, dict) else f"not a JSON object but {type(record).__name__}"
            )

    def _of_row(self, cells: list[Any]) -> Any:
        """The record of an array of cells; the first one that holds names of columns is the header."""
        if self._header is None:
            if (
                len(cells) > 1
                and all(isinstance(cell, str) for cell in cells)
                and _is_product(dict.fromkeys(cells))
            ):
                self._header = [str(cell) for cell in cells]
                return None
            return cells
        return dict(zip(self._header, cells, strict=False))

    def _wrapper(self) -> Iterator[Mapping[str, Any] | str]:
        """Records inside an object that is too long to be looked at as a whole, or that object."""
        text = self._text
        text.take()
        head: dict[str, Any] = {}
        size, found = 0, False
        while (begins := text.peek()) != "}":
            if not begins:
                raise FeedBroken("the file ends within an object")
            if begins == ",":
                text.take()
                continue
            key = text.value()
            if not isinstance(key, str) or text.peek() != ":":
                raise _Malformed("not JSON: an object has a name without a value")
            text.take()
            begins, holder, own = text.peek(), fold(key) in _HOLDERS, _is_product(head)
            inside: Iterator[Mapping[str, Any] | str] = iter(())
            if begins == "[" and not own:
                inside = self._array()
            elif begins == "{" and holder and not own:
                inside = self._wrapper()
            else:
                value = text.value()
                if isinstance(value, dict) and not own and _is_product(value):
                    inside = iter([{"id": key, **value}])
                else:
                    head[key] = value
                    size += len(json.dumps(value))
            for record in inside:
                if holder or (isinstance(record, dict) and _is_product(record)):
                    found = True
                    yield record
            if size > MAX_RECORD:
                raise _Malformed(f"the record is longer than {MAX_RECORD // 2**20} MiB", long=True)
        text.take()
        if not found:
            yield from self._of_value(head)


def held_records(value: Mapping[str, Any]) -> list[Any] | None:
    """The records that an object holds, or None if it is one itself."""
    if (rows := _rows_of(value)) is not None:
        return rows
    names = {fold(name): name for name in value}
    own = _is_product(value)
    for holder in ("products", "items", *_HOLDERS):
        inner = value.get(names.get(holder, ""))
        if own and not (holder == "products" and not names.keys() & {"price", "sku", "images", "image"}):
            continue
        if isinstance(inner, list) and any(isinstance(item, (dict, list)) for item in inner):
            return inner
        if isinstance(inner, dict):
            if (inside := held_records(inner)) is not None:
                return inside
            if holder in ("products", "product", "items", "item") and _is_product(inner):
                return [inner]
    if own or not value:
        return None
    if all(isinstance(item, dict) and _is_product(item) for item in value.values()):  # by id
        return [{"id": name, **item} for name, item in value.items()]
    lists = (item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict))
    return next((item for item in lists if _is_product(bare(item[0]))), None)


def _rows_of(value: Mapping[str, Any]) -> list[Any] | None:
    """The rows of an object that holds columns or a header and rows, as pandas writes tables, else None."""
    columns, rows = value.get("columns"), value.get("data")
    if isinstance(columns, list) and isinstance(rows, list):
        names = [str(name) for name in columns]
        return [dict(zip(names, row, strict=False)) if isinstance(row, list) else row for row in rows]
    held = list(value.values())
    if len(held) < 2 or not _is_product(value) or not any(fold(name) in _IDS for name in value):
        return None
    if all(isinstance(column, dict) for column in held):
        first = held[0].keys()
        numbered = bool(first) and all(key.isdigit() for key in first)
        if not numbered or not all(column.keys() == first for column in held):
            return None
        held = [list(column.values()) for column in held]
    elif not all(isinstance(column, list) and len(column) == len(held[0]) > 1 for column in held):
        return None
    return [dict(zip(value, row, strict=True)) for row in zip(*held, strict=True)]


def bare(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record without what wraps it: `{"node": {...}}`, `{"_id": 1, "_source": {...}}`."""
    for _ in range(4):
        if _is_product(record, telling=True):
            break
        wraps = (name for name, item in record.items() if fold(name) in _WRAPS and isinstance(item, dict))
        inner = next((name for name in wraps if record[name]), None)
        if inner is None or not (len(record) == 1 or _is_product(bare(record[inner]), telling=True)):
            break
        around = {name: item for name, item in record.items() if name != inner}
        if "_id" in around:  # the record's own id is the better one
            around["document id" if "id" in record[inner] else "id"] = around.pop("_id")
        record = {**around, **record[inner]}
    return record


def _is_product(value: Mapping[str, Any], *, telling: bool = False) -> bool:
    """Whether an object has names of a product's fields: of a text or picture, and of something beside it."""
    found = fields_of(value)
    return bool(found & _TELLING) and (telling or len(found) > 1)

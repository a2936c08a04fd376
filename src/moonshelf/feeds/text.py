"""Bytes of a text feed to lines and to table records, so that one bad line costs one row.

Encodings: a byte order mark decides; without one, UTF-16 is recognised by its zero bytes, and everything
else is UTF-8 whose wrong bytes become lone surrogates (`values.clean` reads those as Windows-1252 and says
so for the row). A quote that is opened and never closed must not swallow the rows after it, which is why
records are put together here and not by `csv.reader` over the file.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from moonshelf.attributes import fold
from moonshelf.errors import UserError
from moonshelf.feeds import values
from moonshelf.feeds.base import END, MAX_RECORD, FeedBroken, Source
from moonshelf.feeds.columns import FIELD_OF

MAX_COLUMNS = 2_000
_CHUNK = 1 << 16


def encoding_of(head: bytes) -> str:
    """Encoding of a text that begins with `head`: utf-8-sig, utf-16, utf-16-le, utf-16-be or utf-8."""
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and (len(head) < 8 or b"\0" in head):
        return "utf-16"  # text with ASCII in it has zero bytes; without, two stray bytes lead it
    pairs = head[: len(head) // 2 * 2][:4096]
    if len(pairs) >= 8:
        even, odd = pairs[::2].count(0), pairs[1::2].count(0)
        half = len(pairs) // 2
        if odd > 0.4 * half and even < 0.05 * half:
            return "utf-16-le"
        if even > 0.4 * half and odd < 0.05 * half:
            return "utf-16-be"
    return "utf-8"


def lines(file: IO[bytes], limit: int) -> Iterator[str | None]:
    """Lines with their ends (`\\n`, `\\r\\n` or `\\r`), never more than `limit` characters held.

    A line that is longer is given as None and skipped to its end.
    """
    chunk = file.read(_CHUNK)
    encoding = encoding_of(chunk)
    errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
    decoder = codecs.getincrementaldecoder(encoding)(errors=errors)
    parts: list[str] = []  # of the line that has not ended yet
    size, held, skipping = 0, "", False
    while True:
        text = held + decoder.decode(chunk, final=not chunk)
        # A \r at the end may be the first half of \r\n: wait for the next chunk.
        held = "\r" if chunk and text.endswith("\r") else ""
        text = text[: len(text) - len(held)]
        *ended, tail = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for piece in ended:
            line = "".join(parts) + piece if parts else piece
            if not skipping:
                yield line + "\n" if len(line) <= limit else None
            parts, size, skipping = [], 0, False
        if tail and not skipping:
            parts.append(tail)
            size += len(tail)
            if size > limit:
                yield None
                parts, size, skipping = [], 0, True
        if not chunk:
            if parts:
                yield "".join(parts)
            return
        chunk = file.read(_CHUNK)


MAX_LINES = 500  # lines that one quoted cell may span
_DELIMITERS = "\t,;|"


@dataclass(slots=True)
class Record:
    """One record of a table: its cells by column name, or the reason why it has none."""

    number: int
    cells: dict[str, str]
    fatal: str | None = None
    warning: str | None = None
    field: str = "row"  # what either is about


class Table:
    """A table with a header, read record by record; `header` is known after construction.

    Lines that begin with `#` before the header are skipped, as are empty records. A record with more cells
    than the header is set aside, for nobody can say which cell is whose; one with fewer is padded with a
    warning. Raises UserError if there is no header.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._file = source.open()
        self._lines = lines(self._file, MAX_RECORD)
        self._pending: deque[str | None] = deque()
        self._whole = True  # the line read last has an end
        try:
            self.comments, self.delimiter, cells = _find_header(self._lines, source.name)
        except FeedBroken as error:
            raise UserError(f"{source.name} cannot be read: {error}.") from None
        self.header = _unique(cells)
        self._written = cells

    def __iter__(self) -> Iterator[Record]:
        number, width = 0, len(self.header)
        with self._file:
            try:
                for cells in self._records():
                    if isinstance(cells, str):
                        number += 1
                        yield Record(number, {}, fatal=cells)
                        continue
                    if not any(cell and not cell.isspace() for cell in cells):
                        continue
                    number += 1
                    while len(cells) > width and not cells[-1].strip():
                        cells.pop()
                    if len(cells) > width:
                        yield Record(number, {}, f"the row has {len(cells)} cells, the header {width}")
                    elif cells == self._written:
                        yield Record(number, {}, "the header is repeated")
                    else:
                        short = len(cells) < width
                        warning = f"the row has {len(cells)} cells, the header {width}" if short else None
                        field = "row"
                        if short and not self._whole:
                            warning, field = f"{warning}, and no line end: the file may be cut off", END
                        named = dict(zip(self.header, cells, strict=False))
                        yield Record(number, named, warning=warning, field=field)
            except FeedBroken as error:
                yield Record(number + 1, {}, f"{error}: the rest was not read", field=END)

    def _records(self) -> Iterator[list[str] | str]:
        """Cells of every record, or why a line has none."""
        while True:
            line = self._next()
            if line is _END:
                return
            if line is None:
                yield f"the line is longer than {MAX_RECORD // 2**20} MiB"
            elif '"' not in line:
                yield line.rstrip("\n").split(self.delimiter)
            else:
                yield self._quoted(line)

    def _next(self) -> str | None:
        line = self._pending.popleft() if self._pending else next(self._lines, _END)
        self._whole = line is None or line.endswith("\n")
        return line

    def _quoted(self, first: str) -> list[str] | str:
        """One record that holds quotes, over as many lines as its quotes need."""
        buffer, size = [first], len(first)
        line: str | None = first
        state = _scan(first, self.delimiter, inside=False)
        while state == "open" and len(buffer) < MAX_LINES and size < MAX_RECORD:
            line = self._next()
            if line is _END:
                break
            if line is None:
                self._pending.appendleft(None)
                break
            buffer.append(line)
            size += len(line)
            state = _scan(line, self.delimiter, inside=True)
        if state == "closed" or (len(buffer) == 1 and state == "junk"):
            cells = _parse(buffer, self.delimiter)
            if cells is not None and (len(buffer) == 1 or len(cells) == len(self.header)):
                return cells
            if cells is not None and not any(self._fits(line) for line in buffer[1:]):
                return cells  # ragged, but one record
        if line is _END and not (buffer[-1].endswith("\n") or any(map(self._fits, buffer[1:]))):
            raise FeedBroken("the file ends inside a quoted cell")
        # The quote was never meant to open: give back what it swallowed.
        self._pending.extendleft(reversed(buffer[1:]))
        return "a quote is opened and not closed"

    def _fits(self, line: str) -> bool:
        """Whether a line is a whole record on its own."""
        if _scan(line, self.delimiter, inside=False) != "closed":
            return False
        return len(_parse([line], self.delimiter) or ()) == len(self.header)


_END = "\0end"  # cannot be a line: every line but the last ends with \n, and NUL is kept in lines


def _scan(line: str, delimiter: str, *, inside: bool) -> str:
    """State at the end of a line: `open` in a quoted cell, `closed`, or `junk` after a closing quote."""
    at, end, junk = 0, len(line.rstrip("\n")), False
    while True:
        if not inside:
            if at < end and line[at] == '"':
                at, inside = at + 1, True
            else:
                at = line.find(delimiter, at, end) + 1
                if at == 0:
                    return "junk" if junk else "closed"
                continue
        while True:  # in a quoted cell: find the quote that closes it
            at = line.find('"', at, end)
            if at < 0:
                return "open"
            if line.startswith('"', at + 1):
                at += 2
            else:
                break
        inside, at = False, at + 1
        if at >= end:
            return "junk" if junk else "closed"
        if line[at] != delimiter:
            junk = True
            at = line.find(delimiter, at, end)
            if at < 0:
                return "junk"
        at += 1


def _parse(buffer: list[str], delimiter: str) -> list[str] | None:
    if csv.field_size_limit() < 2 * MAX_RECORD:  # the standard limit is below a long description in HTML
        csv.field_size_limit(2 * MAX_RECORD)
    try:
        return next(csv.reader(buffer, delimiter=delimiter), [])
    except csv.Error:
        return None


def _find_header(all_lines: Iterator[str | None], name: str) -> tuple[int, str, list[str]]:
    """Number of comment lines, delimiter and cells of the first line that can be a header."""
    comments = 0
    for line in all_lines:
        if line is None:
            break
        if not line.strip(" \t\n,;|\0"):
            continue
        delimiter, cells = split_header(line)
        if line.startswith("#") and not any(fold(cell) in FIELD_OF for cell in cells):
            comments += 1
            continue
        if len(cells) > MAX_COLUMNS:
            raise UserError(f"{name} has {len(cells)} columns, at most {MAX_COLUMNS} are read.")
        return comments, delimiter, cells
    raise UserError(f"{name} has no line that could be a header.")


def split_header(line: str) -> tuple[str, list[str]]:
    """Delimiter and cells of a header line."""
    outside = re.sub(r'"[^"]*"', "", line)
    delimiter = max(_DELIMITERS, key=outside.count) if any(d in outside for d in _DELIMITERS) else ","
    cells = _parse([line], delimiter) or line.split(delimiter)
    return delimiter, [values.clean(cell)[0] for cell in cells]


def _unique(cells: list[str]) -> list[str]:
    """Column names; empty and repeated ones get a number."""
    names: list[str] = []
    seen: set[str] = set()
    for position, cell in enumerate(cells, 1):
        name = cell[:200] or f"column {position}"
        if name in seen:
            name = f"{name} ({position})"
        while name in seen:
            name += "'"
        seen.add(name)
        names.append(name)
    return names

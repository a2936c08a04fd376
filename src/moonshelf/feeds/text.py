"""Bytes of a text feed to lines and to table records, so that one bad line costs one row.

The encoding is told from the first bytes (`encodings`), single lines of a UTF-8 text that are in another one
are mended by themselves, and all is decoded before values are read. A quote that is opened and never closed
must not swallow the rows after it, which is why records are put together here and not by `csv.reader`.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader, TextIOWrapper
from itertools import islice

from moonshelf.attributes import fold
from moonshelf.errors import Problem, UserError
from moonshelf.feeds import values
from moonshelf.feeds.base import END, MAX_RECORD, FeedBroken, Row, Source, broken_off, rejected
from moonshelf.feeds.columns import is_known
from moonshelf.feeds.encodings import code_page, encoding_of

MAX_COLUMNS = 2_000
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_GUESS = "a guess; --encoding names another"
_SEP = re.compile(r'\s*"?sep=(.)"?\s*', re.IGNORECASE)  # Excel's own line
_FORMULA = re.compile(r'="([^"]*)"')  # a spreadsheet's way to keep leading zeros
_MACHINE = re.compile(r"[a-z][a-z0-9]*([_:.#\[\]=-]+[A-Za-z0-9]*)*")
_TO_QUOTE = re.compile(r'[^"]*+(?:""[^"]*+)*+"')  # that closes a cell
_HEADER_WITHIN = 30  # lines at the top among which the header is looked for


class Mended(str):
    """A line that was not in the text's encoding."""


class Decoder:
    """How the bytes of a text are read; what is guessed is said by the source. Wrong bytes of UTF-8 are
    lone surrogates until `mend` has seen them."""

    def __init__(self, head: bytes, source: Source) -> None:
        self._source = source
        self._page: str | None = None  # in which lines that are not UTF-8 are read
        self.encoding = source.encoding or encoding_of(head)
        if source.encoding is None and not self.encoding.startswith("utf"):
            shown = _shown(self.encoding)
            source.say("encoding", f"the text is not UTF-8: it is read as {shown}, {_GUESS}")
        strict = self.encoding.startswith("utf-8") and source.encoding is None
        self.errors = "surrogateescape" if strict else "replace"

    def text(self, file: BufferedReader) -> TextIOWrapper:
        return TextIOWrapper(file, self.encoding, self.errors)

    def mend(self, line: str) -> str:
        """A line whose bytes are not all UTF-8 in the code page that they are likeliest of."""
        if line.isascii() or not _ESCAPED_BYTE.search(line):
            return line
        data = line.encode("utf-8", "surrogateescape")
        if self._page is None:
            self._page = code_page(data)
            self._source.say("encoding", f"some lines are not UTF-8: they are read as {self.page}, {_GUESS}")
        return Mended(data.decode(self._page, "replace"))

    @property
    def page(self) -> str:
        return _shown(self._page or "utf-8")


def _shown(encoding: str) -> str:
    return encoding.replace("cp125", "windows-125")


def lines_of(text: TextIOWrapper, decoder: Decoder) -> Iterator[str | None]:
    """Lines of a text with their ends (`\\n`, `\\r\\n` or `\\r`, all given as `\\n`).

    A line longer than `MAX_RECORD` characters is given as None and skipped to its end; no more is held.
    """
    while line := text.readline(MAX_RECORD + 1):
        if len(line) <= MAX_RECORD or line.endswith("\n"):
            yield decoder.mend(line)
            continue
        while line and not line.endswith("\n"):
            line = text.readline(MAX_RECORD)
        yield None


MAX_LINES = 500  # lines that one quoted cell may span
_DELIMITERS = "\t,;|"


class Cells(dict[str, str]):
    """Cells of one record of a table by the names of their columns, and what is odd about them."""

    warning: Problem | None = None


class Table:
    """A table with a header, read record by record; `header` is known after construction.

    What stands above the header is skipped, as are empty records. A record with more cells
    than the header is rejected, for nobody can say which cell is whose; one with fewer is padded with a
    warning. Raises UserError if there is no header.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        file = source.open()
        self._pending: deque[str | None] = deque()
        self._whole = True  # the line read last has an end
        self._mended = False  # a line of the record was
        try:
            self._decoder = Decoder(file.peek(), source)
            self._text = self._decoder.text(file)
            self._lines = lines_of(self._text, self._decoder)
            head = list(islice(self._lines, _HEADER_WITHIN))
            found = find_header([line or "" for line in head], source.fields)
        except FeedBroken as error:
            raise UserError(f"{source.name} cannot be read: {error}.") from None
        if found is None:
            raise UserError(f"{source.name} has no line that could be a header.")
        if len(found.cells) > MAX_COLUMNS:
            raise UserError(f"{source.name} has {len(found.cells)} columns, at most {MAX_COLUMNS} are read.")
        if found.above:
            source.say("header", f"skipped above the header: {found.above[:200]!r}")
        # Amazon's newer templates say in their first line where the data begins, below an example.
        data = re.search(r"&dataRow=(\d{1,2})(?!\d)", found.above)
        self._pending.extend(head[max(found.at + 1, int(data[1]) - 1 if data else 0) :])
        self.delimiter = found.delimiter
        self.header = _unique(found.cells)
        self._written = found.cells

    def __iter__(self) -> Iterator[tuple[int, Cells | Row]]:
        """Numbers and cells of the records, or the row that says why one, or all to come, is not read."""
        number = 0
        with self._text:
            try:
                for cells in self._records():
                    if isinstance(cells, str):
                        number += 1
                        yield number, rejected(number, "row", cells)
                    elif any(cell and not cell.isspace() for cell in cells):
                        number += 1
                        yield number, self._named(number, cells)
            except FeedBroken as error:
                yield number + 1, broken_off(number + 1, error)

    def _named(self, number: int, cells: list[str]) -> Cells | Row:
        width = len(self.header)
        if any('="' in cell for cell in cells):
            cells = [m[1] if (m := _FORMULA.fullmatch(cell.strip())) else cell for cell in cells]
        while len(cells) > width and not cells[-1].strip():
            cells.pop()
        if len(cells) > width:
            return rejected(number, "row", f"the row has {len(cells)} cells, the header {width}")
        if cells == self._written:
            return rejected(number, "row", "the header is repeated")
        named = Cells(zip(self.header, cells, strict=False))
        if len(cells) < width:
            warning, field = f"the row has {len(cells)} cells, the header {width}", "row"
            if not self._whole:
                warning, field = f"{warning}, and no line end: the file may be cut off", END
            named.warning = Problem(number, field, warning, fatal=False)
        elif self._mended:
            warning = f"bytes that are not UTF-8 were read as {self._decoder.page}"
            named.warning = Problem(number, "row", warning, fatal=False)
        return named

    def _records(self) -> Iterator[list[str] | str]:
        """Cells of every record, or why a line has none."""
        while True:
            self._mended = False
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
        self._mended = self._mended or isinstance(line, Mended)
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
    at, junk = 0, False
    while True:
        if inside or line.startswith('"', at):
            closed = _TO_QUOTE.match(line, at if inside else at + 1)
            if closed is None:
                return "open"
            at, inside = closed.end(), False
            junk = junk or line[at : at + 1] not in (delimiter, "\n", "")
        at = line.find(delimiter, at) + 1
        if at == 0:
            return "junk" if junk else "closed"


def _parse(buffer: list[str], delimiter: str) -> list[str] | None:
    if csv.field_size_limit() < 2 * MAX_RECORD:  # the standard limit is below a long description in HTML
        csv.field_size_limit(2 * MAX_RECORD)
    try:
        return next(csv.reader(buffer, delimiter=delimiter), [])
    except csv.Error:
        return None


@dataclass(slots=True)
class Header:
    """The header among the first lines: its place, its cells, and what stands above it."""

    at: int
    delimiter: str
    cells: list[str]
    above: str = ""


def find_header(lines: list[str], fields: Iterable[str] = ()) -> Header | None:
    """The header of a table, which need not be its first line: titles, `sep=;` and comments may stand above.

    The first line with two names that are known is the header; without one, the first line, or the next if
    the first has but one cell. A line of a machine's names below it (Amazon's templates) takes its place.
    """
    delimiter: str | None = None
    found: list[Header] = []
    known: list[int] = []
    wanted = {fold(name) for name in fields}
    for at, line in enumerate(lines):
        if not line.strip(" \t\n,;|\0\ufeff"):
            continue
        if not found and (match := _SEP.fullmatch(line.strip("\ufeff"))):
            delimiter = match[1]
            continue
        header = Header(at, *split_header(line, delimiter))
        names = {fold(cell) for cell in header.cells if is_known(cell) or fold(cell) in wanted}
        if line.startswith("#") and not names:
            continue
        found.append(header)
        known.append(len(names))
    if not found:
        return None
    chosen = next((i for i, number in enumerate(known) if number > 1), 0)
    if known[chosen] < 2 and known[0] == 0 and sum(map(bool, found[0].cells)) == 1:
        chosen = next((i for i, header in enumerate(found) if len(header.cells) > 1), 0)
    for below in range(chosen + 1, min(chosen + 4, len(found))):
        cells = [cell for cell in found[below].cells if cell]
        machine = sum(bool(_MACHINE.fullmatch(cell)) and "_" in cell for cell in cells)
        if known[below] > 1 and machine > len(cells) / 2 and found[below].cells != found[chosen].cells:
            chosen = below
    above = [cell for header in found[:chosen] for cell in header.cells if cell]
    found[chosen].above = " ".join(above)
    return found[chosen]


def split_header(line: str, delimiter: str | None = None) -> tuple[str, list[str]]:
    """Delimiter and cells of a header line: the delimiter that gives the most names that are known."""
    outside = re.sub(r'"[^"]*"', "", line)
    tried = [delimiter] if delimiter else [d for d in _DELIMITERS if d in outside] or [","]
    split = {d: [_name(cell) for cell in _parse([line], d) or line.split(d)] for d in tried}
    best = max(tried, key=lambda d: (sum(map(is_known, split[d][:MAX_COLUMNS])), len(split[d])))
    return best, split[best]


def _name(cell: str) -> str:
    return values.clean(_FORMULA.sub(r"\1", cell))[0].strip("\ufeff\u200b ")


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

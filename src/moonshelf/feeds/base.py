"""What every feed reader rests on: the source on disk, the outcome of one row, and the caps.

A reader is a function from a `Source` to an iterator of `Row`. A row has either a product or exactly one
fatal problem; rows that are only a note about the file (say, a column that is missing) have neither. Rows
are counted from 1, the first record after the header. Readers stream: nothing here grows with the feed.

Feeds are untrusted. Paths of pictures may not leave the pictures' folder, addresses are kept but never
called, cells and records are capped, compressed feeds may not expand without bound.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias
from urllib.parse import urlsplit

from moonshelf.errors import Problem, UserError
from moonshelf.feeds.prices import currency as currency_of
from moonshelf.product import ImageRef, Product

MAX_TITLE = 2_000  # characters; longer titles are cut with a warning
MAX_TEXT = 50_000  # characters of a description, the same
MAX_CELL = 10_000  # characters of any other value
MAX_RECORD = 8 * 2**20  # characters or bytes of one record; longer ones are rejected
MAX_DOCUMENT = 64 * 2**20  # bytes of a file that has to be read whole (JSON-LD, HTML, a JSON array)
MAX_IMAGES = 100  # references kept per product
MAX_RATIO = 300  # expansion of a compressed feed, beyond the first MAX_DOCUMENT bytes
MAX_URL = 2_000


END = "file"  # field of the problem that says that the feed was not, or may not be, read to its end


class FeedBroken(Exception):
    """The rest of the file cannot be read (cut off, malformed, a bomb); what came before stays."""


@dataclass(slots=True)
class Row:
    """Outcome of one record: a product with its warnings, or warnings and one fatal problem."""

    number: int | str
    product: Product | None = None
    problems: list[Problem] = field(default_factory=list)
    records: int = 1  # of the feed that this outcome covers; a Shopify product has several, a note none

    @property
    def fatal(self) -> bool:
        return any(problem.fatal for problem in self.problems)


def rejected(number: int | str, name: str, reason: str, id: str | None = None) -> Row:
    """A row that does not become a product."""
    return Row(number, None, [Problem(number, name, reason, id, fatal=True)])


def broken_off(number: int | str, reason: object) -> Row:
    """The last row of a feed that cannot be read to its end: what it would have listed is not known."""
    return rejected(number, END, f"{reason}: the rest was not read")


def note(number: int | str, name: str, reason: str) -> Row:
    """A remark about the file that costs no row."""
    return Row(number, None, [Problem(number, name, reason, fatal=False)], records=0)


class Source:
    """One feed on disk: where it is, where its pictures are, and how far it has been read.

    `fields` (column -> field of `Product`), `encoding` and `currency` are what the caller knows better than
    the file tells. Raises UserError for an encoding or a currency that does not exist.
    """

    def __init__(
        self,
        path: Path,
        images_root: Path | None = None,
        fields: Mapping[str, str] | None = None,
        encoding: str | None = None,
        currency: str | None = None,
    ) -> None:
        # Absolute, so that a picture found below it is not looked for below it once more.
        self.path = path = Path(os.path.abspath(path))
        self.name = path.name
        self.images_root = os.path.abspath(images_root or (path if path.is_dir() else path.parent))
        self.fields = dict(fields or {})
        # Decimal signs of prices: where all are commas, `1.299` is 1299.
        self.decimals: set[str] = set()
        self.said: set[str] = set()  # remarks on the whole feed
        self.notes: list[tuple[str, str]] = []  # (field, remark) of those that a reader has not given yet
        self.encoding = _encoding(encoding) if encoding else None
        self.currency = _currency(currency) if currency else None
        self._raw: IO[bytes] | None = None
        self._size = path.stat().st_size if path.is_file() else 0
        self.share_read: float | None = None  # set by readers that do not go through `open`

    def is_new(self, remark: str) -> bool:
        """Whether a remark on the whole feed was not made yet; from now on it was."""
        new = remark not in self.said and len(self.said) < 1_000
        if new:
            self.said.add(remark)
        return new

    def say(self, field: str, remark: str) -> None:
        """A remark on the whole feed, for the reader to give once."""
        if self.is_new(remark):
            self.notes.append((field, remark))

    def take_notes(self) -> list[tuple[str, str]]:
        """The remarks that have not been given yet."""
        notes, self.notes = self.notes, []
        return notes

    def open(self) -> io.BufferedReader:
        """The file's bytes, unpacked if it is gzip. Reading raises `FeedBroken` where the disk or the archive
        gives no more."""
        self._raw = open(self.path, "rb")  # noqa: SIM115 - closed by the reader
        return io.BufferedReader(Bytes(self._raw, self._size), 1 << 16)

    def read_document(self) -> bytes:
        """The whole file, for dialects that cannot be streamed."""
        with self.open() as file:
            data = file.read(MAX_DOCUMENT + 1)
        if len(data) > MAX_DOCUMENT:
            raise UserError(
                f"{self.name} is larger than {MAX_DOCUMENT // 2**20} MiB and this dialect is "
                "not streamed: convert it to JSONL, one product a line."
            )
        return data

    def progress(self) -> float | None:
        """Share of the file that has been read, between 0 and 1, or None where unknown."""
        if self.share_read is not None:
            return self.share_read
        if self._raw is None or not self._size:
            return None
        try:
            return min(1.0, self._raw.tell() / self._size)
        except (OSError, ValueError):  # closed
            return 1.0

    def image(self, value: str, role: str | None = None) -> ImageRef:
        """Reference from what a feed wrote. Raises ValueError with the reason if it may not be followed."""
        value = value.strip()
        if "\0" in value or any(ord(c) < 32 for c in value):
            raise ValueError("an image reference holds control characters")
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError("an image reference is not valid text")
        head = value.split(":", 1)[0].lower() if ":" in value else ""
        if value.startswith("//"):
            value, head = "https:" + value, "https"
        if head in ("http", "https"):
            if len(value) > MAX_URL:
                raise ValueError(f"an image address is longer than {MAX_URL} characters")
            with suppress(ValueError):
                if urlsplit(value).hostname:
                    return ImageRef(url=value, role=role)
            raise ValueError("an image address has no host")
        if head == "data" or (len(head) > 1 and "//" in value and not {"/", "\\"} & set(head)):
            raise ValueError(f"images of scheme '{head[:20]}' are not read, only http(s) addresses and files")
        if os.sep == "/":
            value = value.replace("\\", "/")  # exports from Windows
        path = os.path.normpath(os.path.join(self.images_root, value))
        if path != self.images_root and not path.startswith(self.images_root.rstrip(os.sep) + os.sep):
            raise ValueError("an image lies outside the feed's folder: name the folder with images_root")
        return ImageRef(path=path, role=role)


def _encoding(name: str) -> str:
    try:
        b"text".decode(name, "replace")  # some codecs, such as base64, are of no text
        codecs.getincrementaldecoder(name)("replace").decode(b"text\n", final=True)
        return codecs.lookup(name).name
    except (LookupError, ValueError, TypeError):
        raise UserError(
            f"there is no encoding {name[:40]!r} of text: try utf-8, windows-1252 or utf-16."
        ) from None


def _currency(code: str) -> str:
    if (known := currency_of(code)) is None:
        raise UserError(f"the currency {code[:40]!r} is not an ISO 4217 code, such as EUR.")
    return known


def notes_of(source: Source, more: Iterable[tuple[str, str]] = ()) -> Iterator[Row]:
    """Remarks on the file that have not been given yet."""
    for name, text in [*source.take_notes(), *more]:
        yield note(source.name, name, text)


Reader: TypeAlias = Callable[[Source], Iterator[Row]]


class Bytes(io.RawIOBase):
    """A file's bytes, unpacked if it is gzip, with a cap on how far that expands. What the disk refuses, and
    what is damaged, becomes `FeedBroken`."""

    def __init__(self, raw: IO[bytes], size: int) -> None:
        super().__init__()
        self._packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        self._raw, self._file = raw, gzip.GzipFile(fileobj=raw) if self._packed else raw
        self._left = max(MAX_DOCUMENT, size * MAX_RATIO)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except (EOFError, OSError, zlib.error) as error:
            if self._packed:
                raise FeedBroken("the compressed file is damaged or cut off") from None
            why = error.strerror if isinstance(error, OSError) else type(error).__name__
            raise FeedBroken(f"the file cannot be read ({why})") from None
        self._left -= len(data) if self._packed else 0
        if self._left < 0:
            raise FeedBroken(f"the compressed file expands more than {MAX_RATIO} times")
        buffer[: len(data)] = data
        return len(data)

"""What every feed reader rests on: the source on disk, the outcome of one row, and the caps.

A reader is a function from a `Source` to an iterator of `Row`. A row has either a product or exactly one
fatal problem; rows that are only a note about the file (say, a column that is missing) have neither. Rows
are counted from 1, the first record after the header. Readers stream: nothing here grows with the feed.

Feeds are untrusted. Paths of pictures may not leave the pictures' folder, addresses are kept but never
called, cells and records are capped. What is compressed (gzip, bzip2, Zstandard, or the one feed inside a
zip) is unpacked in small pieces and may not grow past `MAX_RATIO` times its size, so that a bomb costs
little; of a zip no more is read than its directory and the one member, by the methods whose output can be
bounded (stored, deflate).
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeAlias
from urllib.parse import urlsplit

from moonshelf.errors import Problem, UserError
from moonshelf.feeds.values import currency as currency_of
from moonshelf.product import ImageRef, Product

MAX_TITLE = 2_000  # characters; longer titles are cut with a warning
MAX_TEXT = 50_000  # characters of a description, the same
MAX_CELL = 10_000  # characters of any other value
MAX_RECORD = 8 * 2**20  # characters or bytes of one record; longer ones are rejected
MAX_DOCUMENT = 64 * 2**20  # bytes of a file that has to be read whole (JSON-LD, HTML, a JSON array)
MAX_RATIO = 300  # expansion of a compressed feed, beyond the first MAX_DOCUMENT bytes
MAX_DIRECTORY = 2**20  # bytes of a zip's directory: some 10,000 members
MAX_IMAGES = 100  # references kept per product
MAX_URL = 2_000
_FEEDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".xml", ".jsonld", ".html")
_MAGIC = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip", b"PK\5\6": "zip",
}  # fmt: skip
_SUFFIXES = (".gz", ".gzip", ".bz2", ".zst", ".zstd")

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
    raw: Sequence[Mapping[str, Any]] = ()  # those records as they were written, where a reader has them

    @property
    def fatal(self) -> bool:
        return any(problem.fatal for problem in self.problems)


def rejected(number: int | str, name: str, reason: str, id: str | None = None) -> Row:
    """A row that does not become a product."""
    return Row(number, None, [Problem(number, name, reason, id, fatal=True)])


def broken_off(number: int | str, reason: object) -> Row:
    """The last row of a feed that cannot be read to its end: what it would have listed is not known."""
    return rejected(number, END, f"{reason}: the rest was not read")


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
        self.name = self.inner_name = path.name  # the inner one is of what a zip holds, or without `.gz`
        self.images_root = os.path.abspath(images_root or (path if path.is_dir() else path.parent))
        self.fields = dict(fields or {})
        # Decimal signs of prices: where all are commas, `1.299` is 1299.
        self.decimals: set[str] = set()
        self.said: set[str] = set()  # remarks on the whole feed
        self._notes: list[Row] = []  # those that a reader has not given yet
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
            self._notes.append(
                Row(self.name, None, [Problem(self.name, field, remark, fatal=False)], records=0)
            )

    def take_notes(self) -> list[Row]:
        """The remarks that have not been given yet; they cost no row."""
        notes, self._notes = self._notes, []
        return notes

    def open(self) -> io.BufferedReader:
        """The file's bytes, unpacked. Reading raises `FeedBroken` where disk or archive give no more."""
        self._raw = open(self.path, "rb")  # noqa: SIM115 - closed by the reader
        unpacked = Unpacked(self._raw, self._size, self.name)
        self.inner_name = unpacked.name
        return io.BufferedReader(unpacked, 1 << 16)

    @cached_property
    def packed(self) -> bool:
        """The file is compressed."""
        if not self.path.is_file():
            return False
        with open(self.path, "rb") as file:
            return packing(file.read(4)) is not None

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
        if self.share_read is not None or self._raw is None or not self._size:
            return self.share_read
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


Reader: TypeAlias = Callable[[Source], Iterator[Row]]


# ---- compressed feeds ------------------------------------------------------------------------------------


def packing(head: bytes) -> str | None:
    """How bytes that begin so are packed: gzip, bzip2, zstd, zip, or not at all."""
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


class Unpacked(io.RawIOBase):
    """A file's bytes, unpacked, with a cap on how far they expand; `name` is without the packing's suffix.

    What the disk refuses, and what is damaged, becomes `FeedBroken`. Raises UserError for a zip that does not
    hold exactly one feed that can be read.
    """

    def __init__(self, raw: IO[bytes], size: int, name: str) -> None:
        super().__init__()
        self._file: Any = raw
        self._raw, self.name = raw, name
        self.kind = packing(raw.read(4))
        raw.seek(0)
        self._left = max(MAX_DOCUMENT, size * MAX_RATIO)
        if name.lower().endswith(_SUFFIXES):
            self.name = name.rpartition(".")[0]
        if self.kind == "gzip":
            self._file = gzip.GzipFile(fileobj=raw)
        elif self.kind == "bzip2":
            self._file = bz2.BZ2File(raw)
        elif self.kind == "zstd":
            import pyarrow as pa

            self._file = pa.CompressedInputStream(raw, "zstd")
        elif self.kind == "zip":
            self._file, self.name = _member(raw, name)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except (EOFError, OSError, ValueError, zlib.error, zipfile.BadZipFile) as error:
            if self.kind:
                raise FeedBroken("the compressed file is damaged or cut off") from None
            why = error.strerror if isinstance(error, OSError) else type(error).__name__
            raise FeedBroken(f"the file cannot be read ({why})") from None
        self._left -= len(data) if self.kind else 0
        if self._left < 0:
            raise FeedBroken(f"the compressed file expands more than {MAX_RATIO} times")
        buffer[: len(data)] = data
        return len(data)


class _Portions:
    """A file of which at most `MAX_DIRECTORY` bytes are read at once, as `zipfile` reads a directory."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self.seek, self.tell, self.seekable = raw, raw.seek, raw.tell, raw.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(MAX_DIRECTORY + 1 if size < 0 else min(size, MAX_DIRECTORY + 1))
        if len(data) > MAX_DIRECTORY:
            raise zipfile.BadZipFile
        return data


def _member(raw: IO[bytes], name: str) -> tuple[IO[bytes], str]:
    """The one feed of a zip, and its name."""
    try:
        archive = zipfile.ZipFile(_Portions(raw))
        found = [one for one in archive.infolist() if not one.is_dir() and not _is_aside(one.filename)]
        if any(one.filename == "[Content_Types].xml" for one in found):
            raise UserError(f"{name} is a spreadsheet, not a feed: export it as CSV, JSONL or Parquet.")
        feeds = [one for one in found if one.filename.lower().endswith(_FEEDS)]
        feeds = feeds or (found if len(found) == 1 else [])
        if len(feeds) != 1:
            shown = ", ".join(repr(one.filename[:60]) for one in feeds[:3]) + (
                ", …" if len(feeds) > 3 else ""
            )
            held = f"{len(feeds)} feeds ({shown})" if feeds else "no feed"
            raise UserError(f"{name} holds {held}: unpack it and name one.")
        one = feeds[0]
        if one.flag_bits & 1:
            raise UserError(f"{name} needs a password: unpack it and name the feed.")
        if one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{name} is packed in a way that is not read: use deflate, gzip, zst or bz2.")
        return archive.open(one), one.filename
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError):
        raise UserError(
            f"{name} cannot be read: the zip is damaged, cut off or holds too many files."
        ) from None


def _is_aside(name: str) -> bool:
    """What an operating system puts beside files."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith(".")

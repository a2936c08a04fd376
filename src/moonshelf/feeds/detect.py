"""Which dialect a feed is written in, from its first bytes."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from moonshelf.errors import UserError
from moonshelf.feeds.base import FeedBroken, Source, packing
from moonshelf.feeds.encodings import encoding_of

_HEAD = 1 << 16
# Not every `@type`: a shop's own record may hold a brand or an offer in schema.org's words.
_LINKED = re.compile(
    r"""^[\s\[{]*"@|"@(context|graph)"|"@type"\s*:\s*\[?\s*"[^"]*(Product|ItemList|OfferCatalog|Page)"""
)
_FEEDS = frozenset((".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".xml", ".jsonld"))


def check_path(path: str | os.PathLike[str]) -> Path:
    """The path of a feed that exists and is not empty. Raises UserError with what to do."""
    path = Path(path)
    shown = "".join(c if c.isprintable() else "?" for c in str(path)[:200])
    try:
        if not path.exists():
            raise UserError(f"there is no file or folder {shown}.")
        if path.is_file():
            if path.stat().st_size == 0:
                raise UserError(f"{path.name} is empty.")
        elif not path.is_dir():
            raise UserError(f"{shown} is neither a file nor a folder.")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{shown} cannot be opened: {why}.") from None
    return path


def detect(path: str | os.PathLike[str], encoding: str | None = None) -> str:
    """Name of the dialect, a key of `DIALECTS`; `encoding` is the text's, if known.

    Raises UserError if the file is missing, empty or unknown.
    """
    path = check_path(path)
    if path.is_dir():
        feeds = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in _FEEDS)
        if feeds:
            raise UserError(
                f"{path} is a folder that holds feeds: name one, such as {feeds[0]}, or force the dialect "
                "'images' to take each picture as a product."
            )
        return "images"
    try:
        source = Source(path)
        with source.open() as file:
            head = file.read(_HEAD)
    except FeedBroken as error:
        raise UserError(f"{path.name} cannot be read: {error}.") from None
    except OSError as error:
        raise UserError(f"{path.name} cannot be opened: {error.strerror}.") from None
    if not head.strip(b"\0 \t\r\n"):
        raise UserError(f"{path.name} is empty.")
    if head.startswith(b"PAR1"):
        return "parquet"
    for magic, kind in (
        (b"\xff\xd8\xff", "an image"), (b"\x89PNG", "an image"), (b"GIF8", "an image"), (b"%PDF", "a PDF"),
        (b"\xd0\xcf\x11\xe0", "a spreadsheet"), (b"SQLite format", "a database"),
        (b"ARROW1", "an Arrow file"),
    ):  # fmt: skip
        if head.startswith(magic):
            raise UserError(f"{path.name} is {kind}, not a feed: export it as CSV, JSONL or Parquet.")
    if packing(head) or head[257:262] == b"ustar" or head.startswith((b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")):
        raise UserError(f"{path.name} is an archive that is not read, or packed twice: unpack it first.")
    return _detect_text(source.inner_name, head, encoding)


def _detect_text(name: str, head: bytes, encoding: str | None) -> str:
    text = head.decode(encoding or encoding_of(head), "replace").lstrip("\ufeff\x1e \t\r\n")
    suffix = Path(name).suffix.lower()
    if text.startswith("<"):
        start = text[:4096].lower()
        if suffix in (".html", ".htm") or "<html" in start or "<!doctype html" in start or "<script" in start:
            return "jsonld"
        return "merchant-xml"
    from moonshelf.feeds.dialects.tables import detect_table, is_agentic

    if text.startswith(("{", "[")) and suffix not in (".csv", ".tsv"):
        first = text.split("\n", 1)[0]
        record: Any = None
        with suppress(ValueError, RecursionError):
            record = json.loads(first)
        lines = isinstance(record, dict)
        if lines and is_agentic(record):
            return "agentic"
        if suffix in (".jsonl", ".ndjson"):
            return "jsonl"
        if suffix == ".jsonld":
            return "jsonld"
        return "jsonld" if _LINKED.search(first if lines else text) else "jsonl" if lines else "json"
    return detect_table(text)

"""Feeds of products in the dialects that shops use, read row by row.

`read_feed` streams a feed of any dialect: a bad row becomes a `Problem` and never stops the rest.
`detect` names the dialect, `DIALECTS` lists the readers, `write_jsonl` writes our own form. Importing this
package costs little; pyarrow loads when a Parquet file is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

from moonshelf.errors import Problem, UserError
from moonshelf.feeds.base import Reader, Row, Source
from moonshelf.feeds.detect import check_path, detect
from moonshelf.feeds.dialects import folder, jsonl, jsonld, parquet, tables, xml_feed
from moonshelf.feeds.dialects.jsonl import write_jsonl
from moonshelf.feeds.dialects.shops import NO_SHOP, SHOPIFY
from moonshelf.product import Product

__all__ = ["DIALECTS", "Row", "detect", "open_feed", "read_feed", "read_rows", "write_jsonl"]


def _read_agentic(source: Source) -> Iterator[Row]:
    """Rows of an Agentic Commerce feed, which is JSON lines or a table with columns of the same names."""
    with source.open() as file:
        begins = file.read(64).lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")
    return (jsonl if begins.startswith((b"{", b"[")) else tables).read(source)


DIALECTS: dict[str, Reader] = {
    "merchant": partial(tables.read, shop=NO_SHOP),
    "merchant-xml": xml_feed.read,
    "shopify": partial(tables.read, shop=SHOPIFY),
    "meta": partial(tables.read, shop=NO_SHOP),
    "agentic": _read_agentic,
    "jsonld": jsonld.read,
    "jsonl": jsonl.read,
    "json": jsonl.read,
    "csv": tables.read,
    "parquet": parquet.read,
    "images": folder.read,
}


def open_feed(
    path: str | os.PathLike[str],
    dialect: str | None = None,
    *,
    images_root: str | os.PathLike[str] | None = None,
    fields: Mapping[str, str] | None = None,
    encoding: str | None = None,
    currency: str | None = None,
) -> tuple[str, Source]:
    """The dialect's name and the source of a feed, checked but not yet read. Raises UserError."""
    path = check_path(path)
    if dialect is not None and dialect not in DIALECTS:
        raise UserError(f"there is no dialect '{dialect}': choose one of {', '.join(DIALECTS)}.")
    root = check_path(images_root) if images_root is not None else None
    source = Source(path, root, fields, encoding, currency)
    dialect = dialect or detect(path, source.encoding)
    if fields and dialect in ("images", "jsonld"):
        raise UserError(f"the dialect '{dialect}' has no columns that could be mapped.")
    if encoding and dialect in ("images", "parquet", "merchant-xml"):
        raise UserError(f"the dialect '{dialect}' says its own encoding: leave it out.")
    if path.is_dir() != (dialect == "images"):
        kind = "a folder" if path.is_dir() else "a file"
        raise UserError(f"{path.name} is {kind}, which the dialect '{dialect}' does not read.")
    return dialect, source


def read_rows(path: str | os.PathLike[str], dialect: str | None = None, **reading: Any) -> Iterator[Row]:
    """Outcome of every record in file order, with its number. Arguments and errors as in `read_feed`."""
    return started(*open_feed(path, dialect, **reading))


def started(dialect: str, source: Source) -> Iterator[Row]:
    """Rows of a source; an unusable file raises UserError here and not in the caller's loop."""
    rows = DIALECTS[dialect](source)
    head = []
    for row in rows:
        head.append(row)
        if row.records:
            return chain(head, rows)
    raise UserError(f"{source.name} holds no records.")  # remarks on the file are none


def read_feed(
    path: str | os.PathLike[str],
    dialect: str | None = None,
    *,
    images_root: str | os.PathLike[str] | None = None,
    fields: Mapping[str, str] | None = None,
    encoding: str | None = None,
    currency: str | None = None,
) -> Iterator[Product | Problem]:
    """Products of a feed in file order, streamed; a problem stands where its row would.

    A fatal `Problem` is a row that was rejected; others come just before the product that they are about.
    `dialect` is a key of `DIALECTS`, detected if None. Relative paths of pictures are resolved against
    `images_root`, by default the feed's folder, and may not leave it. `fields` maps columns of a table to
    fields of `Product` where their names do not tell; `encoding` is that of a text that does not tell;
    `currency` is taken where a price names none, and of several price columns.

    Raises UserError, before the first row, if the file is missing, empty, or not of the dialect.

    Examples:
        >>> from moonshelf.feeds import read_feed
        >>> for item in read_feed("shop.csv", fields={"Nr": "id"}):  # doctest: +SKIP
        ...     print(item)
    """
    rows = read_rows(
        path, dialect, images_root=images_root, fields=fields, encoding=encoding, currency=currency
    )
    return (item for row in rows for item in (*row.problems, row.product) if item is not None)

"""Bytes of a text feed to lines and to table records, so that one bad line costs one row.

Encodings: a byte order mark decides; without one, UTF-16 is recognised by its zero bytes, and everything
else is UTF-8 whose wrong bytes become lone surrogates (`values.clean` reads those as Windows-1252 and says
so for the row). A quote that is opened and never closed must not swallow the rows after it, which is why
records are put together here and not by `csv.reader` over the file.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import IO

_CHUNK = 1 << 16


def encoding_of(head: bytes) -> str:
    """Encoding of a text that begins with `head`: utf-8-sig, utf-16, utf-16-le, utf-16-be or utf-8."""
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
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
    rest = ""
    skipping = False
    while True:
        text = rest + decoder.decode(chunk, final=not chunk)
        # A lone \r at the end may be the first half of \r\n: wait for the next chunk.
        held = "\r" if chunk and text.endswith("\r") else ""
        text = text[: len(text) - len(held)]
        pieces = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        rest = pieces.pop() + held
        for piece in pieces:
            if skipping:
                skipping = False
            elif len(piece) > limit:
                yield None
            else:
                yield piece + "\n"
        if len(rest) > limit:
            if not skipping:
                yield None
            skipping, rest = True, held
        if not chunk:
            if rest and not skipping:
                yield rest
            return
        chunk = file.read(_CHUNK)

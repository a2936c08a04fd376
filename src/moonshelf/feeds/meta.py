"""Meta (Facebook, Instagram) catalogue files: CSV or TSV.

They look like Merchant files with three differences: lines that begin with `#` stand before the header,
columns may be JSON paths (`image[0].url`, `image[1].tag[0]`), and `rich_text_description` may replace the
description.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from moonshelf.feeds.base import Row, Source
from moonshelf.feeds.records import RecordReader
from moonshelf.feeds.tabular import rows_of
from moonshelf.feeds.text import Table

_IMAGE = re.compile(r"image\[(\d{1,3})\]\.url", re.IGNORECASE)


def read(source: Source) -> Iterator[Row]:
    """Rows of a Meta catalogue."""
    table = Table(source)
    found = {name: int(match[1]) for name in table.header if (match := _IMAGE.fullmatch(name.strip()))}
    paths = sorted(found, key=lambda name: found[name])
    joined = "additional_image_link"

    def prepare(cells: dict[str, str]) -> dict[str, Any]:
        images: list[str] = [cell for name in paths if (cell := cells.get(name, ""))]
        record: dict[str, Any] = {name: cell for name, cell in cells.items() if name not in found}
        # A list of single addresses: these cells never hold several.
        record[joined] = images + ([record[joined]] if record.get(joined) else [])
        return record

    if not paths:
        return rows_of(source, table, RecordReader(source, table.header))
    header = [name for name in table.header if name not in found and name != joined]
    return rows_of(source, table, RecordReader(source, [*header, joined]), prepare)

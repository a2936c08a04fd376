"""Parquet tables of products, pictures inside or beside.

Rows are read in small batches through a buffered stream, so that a table whose cells are pictures needs
little more memory than one batch.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonshelf.errors import UserError
from moonshelf.feeds.base import FeedBroken, Row, Source, broken_off
from moonshelf.feeds.records import RecordReader

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile


def read(source: Source) -> Iterator[Row]:
    """Rows of a Parquet file. Raises UserError if the file is not Parquet."""
    with opened(source) as file:
        schema = file.schema_arrow
        reader = RecordReader(source, unique(source, schema.names))
        yield from reader.rows(numbered(source, file, batch_rows(schema)))


def unique(source: Source, names: list[str]) -> list[str]:
    """Names of columns. Raises UserError if two are alike."""
    if len(set(names)) != len(names):
        raise UserError(f"{source.name} has two columns of one name: rename one of them.")
    return names


def batch_rows(schema: Any) -> int:
    """Rows to hold at once, with pictures in them or without."""
    return 32 if any("binary" in str(field.type) for field in schema) else 1024


def opened(source: Source) -> ParquetFile:
    """The file of a source. Raises UserError if it is not Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without pre-buffering and with a bounded buffer, a row group of large pictures is read page by page.
        with _whole(source) as path:
            return pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20, memory_map=False)
    except (pa.ArrowException, OSError, ValueError, FeedBroken):
        raise UserError(f"{source.name} is not a readable Parquet file.") from None


@contextmanager
def _whole(source: Source) -> Iterator[str | Path]:
    """A file in which any place can be read, since a table's end comes first; it needs its name no longer."""
    if not source.packed:
        yield source.path
        return
    with tempfile.NamedTemporaryFile() as file, source.open() as packed:
        shutil.copyfileobj(packed, file, 1 << 20)
        file.flush()
        yield file.name


def numbered(
    source: Source, file: ParquetFile, batch: int, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, Any] | Row]]:
    """Records of a file with their numbers, `batch` held at once; else as `counted`."""
    batches = file.iter_batches(batch_size=batch, columns=columns, use_threads=False)
    total = file.metadata.num_rows
    for number, record in counted(found.to_pylist() for found in batches):
        source.share_read = number / max(1, total)
        yield number, record


def counted(
    batches: Iterator[list[dict[str, Any]]], first: int = 0
) -> Iterator[tuple[int, dict[str, Any] | Row]]:
    """Records with their numbers, or why all that would follow was not read."""
    number = first
    try:
        for records in batches:
            for record in records:
                number += 1
                yield number, record
    except UserError:
        raise
    except Exception as error:  # of the format's library, or of the storage
        why = f"the table cannot be read further ({type(error).__name__})"
        yield number + 1, broken_off(number + 1, why)

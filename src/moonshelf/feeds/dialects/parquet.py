"""Parquet tables of products, pictures inside or beside.

Rows are read in small batches through a buffered stream, so that a table whose cells are pictures needs
little more memory than one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from moonshelf.errors import UserError
from moonshelf.feeds.base import Row, Source, broken_off, note
from moonshelf.feeds.records import RecordReader

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile


def read(source: Source) -> Iterator[Row]:
    """Rows of a Parquet file. Raises UserError if the file is not Parquet."""
    with opened(source) as file:
        schema = file.schema_arrow
        reader = RecordReader(source, unique(source, schema.names))
        for field, text in reader.notes:
            yield note(source.name, field, text)
        for number, record in numbered(source, file, batch_rows(schema)):
            yield record if isinstance(record, Row) else reader.row(number, record)


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
        return pq.ParquetFile(source.path, pre_buffer=False, buffer_size=1 << 20, memory_map=False)
    except (pa.ArrowException, OSError, ValueError):
        raise UserError(f"{source.name} is not a readable Parquet file.") from None


def numbered(
    source: Source, file: ParquetFile, batch: int, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, Any] | Row]]:
    """Records with their numbers, `batch` held at once, or why all that would follow was not read."""
    import pyarrow as pa

    total, number = file.metadata.num_rows, 0
    batches = file.iter_batches(batch_size=batch, columns=columns, use_threads=False)
    while True:
        try:
            records = next(batches).to_pylist()
        except StopIteration:
            return
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            why = f"the table cannot be read further ({type(error).__name__})"
            yield number + 1, broken_off(number + 1, why)
            return
        for record in records:
            number += 1
            yield number, record
        source.share_read = number / max(1, total)

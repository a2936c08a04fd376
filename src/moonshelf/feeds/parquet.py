"""Parquet tables of products, pictures inside or beside.

Rows are read in small batches through a buffered stream, so that a table whose cells are pictures needs
little more memory than one batch.
"""

from __future__ import annotations

from collections.abc import Iterator

from moonshelf.errors import UserError
from moonshelf.feeds.base import Row, Source, note, set_aside
from moonshelf.feeds.records import RecordReader


def read(source: Source) -> Iterator[Row]:
    """Rows of a Parquet file. Raises UserError if the file is not Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without pre-buffering and with a bounded buffer, a row group of large pictures is read page by page.
        file = pq.ParquetFile(source.path, pre_buffer=False, buffer_size=1 << 20, memory_map=False)
    except (pa.ArrowException, OSError, ValueError):
        raise UserError(f"{source.name} is not a readable Parquet file.") from None
    with file:
        schema = file.schema_arrow
        if len(set(schema.names)) != len(schema.names):
            raise UserError(f"{source.name} has two columns of one name: rename one of them.")
        reader = RecordReader(source, schema.names)
        if reader.numbered:
            yield note(source.name, "id", "there is no id column: rows are numbered")
        binary = any("binary" in str(field.type) for field in schema)
        total = file.metadata.num_rows
        batches = file.iter_batches(batch_size=32 if binary else 1024, use_threads=False)
        number = 0
        while True:
            try:
                records = next(batches).to_pylist()
            except StopIteration:
                return
            except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
                kind = type(error).__name__
                yield set_aside(number + 1, "file", f"the rest of the table cannot be read ({kind})")
                return
            for record in records:
                number += 1
                yield reader.row(number, record)
            source.share_read = number / max(1, total)

"""A feed in parts that can be read apart, on other machines too.

A Parquet table falls into its row groups, a Lance table into ranges of rows; a folder of Parquet files, or
either kind on object storage (`s3://…`, whatever pyarrow or Lance can open), is taken as well. Every other
dialect is a stream that has to be read from its beginning: one part. Rows keep the numbers that a reader
of the whole feed would give them; of several files, a row is named by its file and its number there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from moonshelf.errors import Problem, UserError
from moonshelf.feeds import DIALECTS, Row, open_feed, read_rows
from moonshelf.feeds.base import Source
from moonshelf.feeds.dialects.parquet import batch_rows, counted, unique
from moonshelf.feeds.records import RecordReader
from moonshelf.product import Product

LANCE_ROWS = 8192  # of one part; they are read a few at a time

Batches = Iterator[list[dict[str, Any]]]  # records, a few at a time
Item = tuple[int | str, float | None, Product | Problem]  # number, share of the feed read so far


@dataclass(frozen=True)
class Part:
    """Rows of a feed that can be read without those before them, by whoever can reach the feed."""

    read: Callable[[], Iterator[Item]]  # its rows, in their order
    everywhere: bool = False  # other machines can read it too
    root: str | None = None  # pictures outside this folder are refused; None: they may be anywhere


def cut(
    feed: str | Path | Iterable[Product | Problem],
    dialect: str | None = None,
    images_root: str | None = None,
    **reading: Any,
) -> list[Part]:
    """The parts of a feed, in order. `reading` is `fields`, `encoding` and `currency` of `read_feed`.

    Raises UserError, before anything is read, if the feed is unusable.
    """
    if not isinstance(feed, str | Path):
        return [Part(partial(_held, list(feed)), everywhere=True)]  # pictures are the program's own
    address = str(feed).rstrip("/")
    if address.endswith(".lance"):
        return _lance(address, images_root, reading)
    if "://" in address or _is_parquet_folder(Path(address), dialect):
        return _parquet(address, images_root, reading)
    name, source = open_feed(feed, dialect, images_root=images_root, **reading)
    if name == "parquet" and not source.packed:
        return _parquet(str(source.path), images_root, reading)
    read_rows(feed, name, images_root=images_root, **reading)  # an unusable feed raises here
    stream = partial(_stream, str(source.path), name, images_root, reading)
    return [Part(stream, root=source.images_root)]


def _is_parquet_folder(path: Path, dialect: str | None) -> bool:
    return dialect in (None, "parquet") and path.is_dir() and any(path.glob("*.parquet"))


def _held(items: Sequence[Product | Problem]) -> Iterator[Item]:
    for number, item in enumerate(items, 1):
        yield number, number / len(items), item


def _stream(path: str, dialect: str, images_root: str | None, reading: dict[str, Any]) -> Iterator[Item]:
    """A feed of a dialect that is read from its beginning."""
    _, source = open_feed(path, dialect, images_root=images_root, **reading)
    for row in DIALECTS[dialect](source):
        yield from _items(row, source.progress())


@dataclass(frozen=True)
class _Table:
    """A table whose rows are read in ranges. `label` names the file where the feed has several."""

    address: str
    images_root: str | None
    reading: dict[str, Any]
    names: list[str]  # of its columns
    total: int  # rows of the feed
    label: str | None = None

    def source(self) -> Source:
        # A remote feed has no folder: relative paths then start where nothing is, and are refused by row.
        root = Path(self.images_root) if self.images_root else None
        return Source(Path(self.address), root, **self.reading)

    def part(self, batches: Callable[[], Batches], first: int, before: int) -> Part:
        """A range with `first` rows of the file and `before` rows of the feed before it."""
        rows = partial(self._rows, batches, first, before)
        return Part(rows, "://" in self.address, self.source().images_root)

    def _rows(self, batches: Callable[[], Batches], first: int, before: int) -> Iterator[Item]:
        source = self.source()
        reader = RecordReader(source, unique(source, self.names))
        if self.label is not None and (reader.numbered or reader.photos):
            raise UserError(
                f"{source.name} is one of several files and has no column with an id of its own for each "
                "row: add one, since numbers would name two products alike."
            )
        for said in source.take_notes() if not first else ():
            yield from _items(said, 0.0)
        for number, record in counted(batches(), first):
            row = record if isinstance(record, Row) else reader.row(number, record)
            share = (before + number - first) / max(1, self.total)
            name = number if self.label is None else f"{self.label}:{number}"
            for _, _, item in _items(row, share):
                if isinstance(item, Problem) and item.row != name:
                    item = replace(item, row=name)
                yield name, share, item


def _of_fragment(fragment: Any) -> Batches:
    """Rows of one row group; `fragment` is pyarrow's."""
    schema = fragment.physical_schema
    for batch in fragment.to_batches(schema=schema, batch_size=batch_rows(schema), use_threads=False):
        yield batch.to_pylist()


def _of_lance(address: str, version: int, first: int, end: int) -> Batches:
    """Rows of one version of a Lance table."""
    table = _open_lance(address)
    table.checkout(version)
    names, few = table.schema.names, batch_rows(table.schema)
    for start in range(first, end, few):
        rows = table.take_offsets(list(range(start, min(start + few, end)))).to_arrow()
        yield rows.select(names).to_pylist()


def _parquet(address: str, images_root: str | None, reading: dict[str, Any]) -> list[Part]:
    import pyarrow as pa
    import pyarrow.dataset as ds

    shown = address.rsplit("/", 1)[-1]
    try:
        fragments = list(ds.dataset(address, format="parquet").get_fragments())
        counts = [[group.num_rows for group in fragment.row_groups] for fragment in fragments]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(shown, "Parquet", error) from None
    total = sum(map(sum, counts))
    if not total:
        raise UserError(f"{shown} holds no records.")
    parts: list[Part] = []
    before = 0
    for fragment, rows_of in zip(fragments, counts, strict=True):
        first = 0
        label = fragment.path.rsplit("/", 1)[-1] if len(fragments) > 1 else None
        table = _Table(address, images_root, reading, fragment.physical_schema.names, total, label)
        for group, rows in enumerate(rows_of):
            batches = partial(_of_fragment, fragment.subset(row_group_ids=[group]))
            parts.append(table.part(batches, first, before))
            first, before = first + rows, before + rows
    return parts


def _lance(address: str, images_root: str | None, reading: dict[str, Any]) -> list[Part]:
    shown = address.rsplit("/", 1)[-1]
    try:
        table = _open_lance(address)
        total, version = table.count_rows(), table.version
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(shown, "a Lance table", error) from None
    if not total:
        raise UserError(f"{shown} holds no records.")
    whole = _Table(address, images_root, reading, table.schema.names, total)
    ranges = ((first, min(first + LANCE_ROWS, total)) for first in range(0, total, LANCE_ROWS))
    return [whole.part(partial(_of_lance, address, version, *rows), rows[0], rows[0]) for rows in ranges]


def _unreadable(name: str, kind: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return UserError(f"{name} cannot be read as {kind}: {reason}")


def _open_lance(address: str) -> Any:
    import lancedb

    folder, _, name = address.rpartition("/")
    return lancedb.connect(folder or ".").open_table(name.removesuffix(".lance"))


def _items(row: Row, share: float | None) -> Iterator[Item]:
    for problem in row.problems:
        yield row.number, share, problem
    if row.product is not None:
        yield row.number, share, row.product

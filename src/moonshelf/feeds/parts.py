"""A feed in parts that can be read apart, on other machines too.

A Parquet table falls into its row groups, a Lance table into ranges of rows; a folder of Parquet files, or
either kind on object storage (`s3://…`, whatever pyarrow or Lance can open), is taken as well. Every other
dialect is a stream that has to be read from its beginning: one part. Rows keep the numbers that a reader
of the whole feed would give them; of several files, a row is named by its file and its number there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from moonshelf.errors import Problem, UserError
from moonshelf.feeds import DIALECTS, Row, open_feed, read_rows
from moonshelf.feeds.base import FeedBroken, Source, broken_off, note
from moonshelf.feeds.dialects.parquet import batch_rows, unique
from moonshelf.feeds.records import RecordReader
from moonshelf.product import Product

LANCE_ROWS = 8192  # of one part; they are read a few at a time

Item = tuple[int | str, float | None, Product | Problem]  # number, share of the feed read so far


class Part(Protocol):
    """Rows of a feed that can be read without those before them, by whoever can reach the feed."""

    @property
    def everywhere(self) -> bool:
        """Other machines can read it too."""

    @property
    def root(self) -> str | None:
        """Pictures outside this folder are refused; None: they may be anywhere."""

    def read(self) -> Iterator[Item]: ...


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
        return [Held(list(feed))]
    address = str(feed).rstrip("/")
    if address.endswith(".lance"):
        return _lance(address, images_root, reading)
    if "://" in address or _is_parquet_folder(Path(address), dialect):
        return _parquet(address, images_root, reading)
    name, source = open_feed(feed, dialect, images_root=images_root, **reading)
    if name == "parquet":
        return _parquet(str(source.path), images_root, reading)
    read_rows(feed, name, images_root=images_root, **reading)  # an unusable feed raises here
    return [Stream(str(source.path), name, images_root, source.images_root, reading)]


def _is_parquet_folder(path: Path, dialect: str | None) -> bool:
    return dialect in (None, "parquet") and path.is_dir() and any(path.glob("*.parquet"))


@dataclass(frozen=True)
class Held:
    """Products that a program holds; their pictures may be anywhere, since they are its own."""

    items: Sequence[Product | Problem]
    everywhere = True
    root = None

    def read(self) -> Iterator[Item]:
        for number, item in enumerate(self.items, 1):
            yield number, number / len(self.items), item


@dataclass(frozen=True)
class Stream:
    """A feed of a dialect that is read from its beginning."""

    path: str
    dialect: str
    images_root: str | None
    root: str | None
    reading: dict[str, Any]
    everywhere = False

    def read(self) -> Iterator[Item]:
        _, source = open_feed(self.path, self.dialect, images_root=self.images_root, **self.reading)
        for row in DIALECTS[self.dialect](source):
            yield from _items(row, source.progress())


@dataclass(frozen=True)
class Table:
    """A range of a table's rows. `label` names the file where the feed has several."""

    address: str
    images_root: str | None
    reading: dict[str, Any]
    label: str | None
    first: int  # rows of the file before it
    before: int  # rows of the feed before it
    total: int  # rows of the feed
    everywhere: bool

    def _records(self) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
        """Column names, and records a few at a time."""
        raise NotImplementedError

    @property
    def _source(self) -> Source:
        # A remote feed has no folder: relative paths then start where nothing is, and are refused by row.
        root = Path(self.images_root) if self.images_root else None
        return Source(Path(self.address), root, **self.reading)

    @property
    def root(self) -> str | None:
        return self._source.images_root

    def read(self) -> Iterator[Item]:
        source = self._source
        reader: RecordReader | None = None
        number = self.first
        try:
            for names, records in self._batches():
                if reader is None:
                    reader = self._reader(source, names)
                    for field, text in reader.notes if not self.first else ():
                        yield from _items(note(source.name, field, text), 0.0)
                for record in records:
                    number += 1
                    row = reader.row(number, record)
                    share = (self.before + number - self.first) / max(1, self.total)
                    name = self._name(number)
                    for _, _, item in _items(row, share):
                        if isinstance(item, Problem) and item.row != name:
                            item = replace(item, row=name)
                        yield name, share, item
        except FeedBroken as error:
            yield from _items(broken_off(self._name(number + 1), error), None)

    def _batches(self) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
        try:
            yield from self._records()
        except UserError:
            raise
        except Exception as error:  # of the format's library, or of the storage
            raise FeedBroken(f"the table cannot be read further ({type(error).__name__})") from None

    def _name(self, number: int) -> int | str:
        return number if self.label is None else f"{self.label}:{number}"

    def _reader(self, source: Source, names: list[str]) -> RecordReader:
        reader = RecordReader(source, unique(source, names))
        if self.label is not None and (reader.numbered or reader.photos):
            raise UserError(
                f"{source.name} is one of several files and has no column with an id of its own for each "
                "row: add one, since numbers would name two products alike."
            )
        return reader


@dataclass(frozen=True)
class ParquetGroup(Table):
    """One row group of a Parquet file; `fragment` is pyarrow's."""

    fragment: Any

    def _records(self) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
        schema = self.fragment.physical_schema
        rows = batch_rows(schema)
        for batch in self.fragment.to_batches(schema=schema, batch_size=rows, use_threads=False):
            yield schema.names, batch.to_pylist()


@dataclass(frozen=True)
class LanceRange(Table):
    """Rows of one version of a Lance table."""

    rows: int
    version: int

    def _records(self) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
        table = _open_lance(self.address)
        table.checkout(self.version)
        names = table.schema.names
        few = batch_rows(table.schema)
        for start in range(self.first, self.first + self.rows, few):
            end = min(start + few, self.first + self.rows)
            yield names, table.take_offsets(list(range(start, end))).to_arrow().select(names).to_pylist()


def _parquet(address: str, images_root: str | None, reading: dict[str, Any]) -> list[Part]:
    import pyarrow as pa
    import pyarrow.dataset as ds

    shown = address.rsplit("/", 1)[-1]
    try:
        fragments = list(ds.dataset(address, format="parquet").get_fragments())
        groups = [[group.num_rows for group in fragment.row_groups] for fragment in fragments]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(shown, "Parquet", error) from None
    total = sum(map(sum, groups))
    if not total:
        raise UserError(f"{shown} holds no records.")
    parts: list[Part] = []
    before = 0
    for fragment, counts in zip(fragments, groups, strict=True):
        first = 0
        label = fragment.path.rsplit("/", 1)[-1] if len(fragments) > 1 else None
        for group, rows in enumerate(counts):
            parts.append(
                ParquetGroup(
                    address, images_root, reading, label, first, before, total, "://" in address,
                    fragment.subset(row_group_ids=[group]),
                )
            )  # fmt: skip
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
    return [
        LanceRange(
            address, images_root, reading, None, first, first, total, "://" in address,
            min(LANCE_ROWS, total - first), version,
        )
        for first in range(0, total, LANCE_ROWS)
    ]  # fmt: skip


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

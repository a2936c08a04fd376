"""The durable truth of a catalogue: one LanceDB table, a row a product.

LanceDB and not sharded Parquet, because a catalogue changes: prices move and products leave daily. Lance
commits each change as one new version (a kill -9 leaves the old one or the new one), updates and deletes
single rows, filters with SQL and searches full text; over Parquet shards we would have to write the
tombstones, the compaction and the text index ourselves. A commit survives the death of the process; after
a power cut it is as durable as the file system makes files that were closed and renamed.

Every row has a `key`, 63 bits of the id's hash, which the vector index uses: it belongs to the product for
good and is never a position. Two hashes decide what a later run has to do: `content_hash` covers what the
model reads, `record_hash` the whole record.
"""

from __future__ import annotations

import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lancedb.index import FTS
from lancedb.query import FullTextQuery, MatchQuery, MultiMatchQuery

from moonshelf import memory
from moonshelf.catalogue.filters import Condition
from moonshelf.catalogue.manifest import NAME as MANIFEST_NAME
from moonshelf.catalogue.manifest import Manifest
from moonshelf.catalogue.rows import codes_text, full_text, key_of, schema, written_columns
from moonshelf.errors import UserError, system_error

TABLE = "products"
# Of Lance, in bytes. Its own defaults of 1 GB and 2 GB are filled by the many small files of a long run.
_CACHE, _READ_AHEAD = 16 << 20, 64 << 20
os.environ.setdefault("LANCE_DEFAULT_IO_BUFFER_SIZE", str(_READ_AHEAD))  # its only way in
_IN = 512  # keys in one IN list
_UPGRADED = 4_096  # rows at once
_FEW = 20_000  # rows that are looked up by key rather than by reading all

WRITTEN_WEIGHT = 0.3  # of what the model wrote in search by words; the record weighs 1
KEEP_DAYS = 7.0  # versions of the rows, where nobody has said how long
_MOST_SIZE, _LITTLE, _MOST_VERSIONS = 5, 64 << 20, 5_000  # times the rows' bytes; bytes that are always taken

_OF_LANCE = re.compile(r"^lance error|Lance file|^Invalid input|protobuf|encoding|Arrow error", re.IGNORECASE)

T = TypeVar("T")


def connect(place: str) -> Any:
    """LanceDB at a folder or at an address (s3://, gs://, az://, file://); credentials are those of the
    environment. An interval of zero: a long-lived reader sees what another process has committed."""
    session = lancedb.Session(metadata_cache_size_bytes=_CACHE)
    return lancedb.connect(place, session=session, read_consistency_interval=timedelta(0))


@dataclass(frozen=True)
class Version:
    """A state of the rows that can still be gone back to."""

    number: int
    time: datetime
    rows: int

    def as_dict(self) -> dict[str, Any]:
        return {"version": self.number, "time": self.time.isoformat(timespec="seconds"), "rows": self.rows}


class Store:
    """The table of one catalogue folder. Readers see the newest version at each call."""

    def __init__(self, folder: Path, manifest: Manifest, table: Any) -> None:
        self.folder, self.manifest = folder, manifest
        self._table = table
        self._schema = schema(manifest.dim)
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: str | Path, *, create: Manifest | None = None) -> Store:
        """Open an existing catalogue; with `create`, make what is missing (the caller holds the lock).

        Raises UserError if the folder is no catalogue.
        """
        folder = Path(folder)
        here = (folder / f"{TABLE}.lance").exists()
        if create is not None and not (folder / MANIFEST_NAME).exists():
            if here:
                raise UserError(
                    f"{folder} holds products but no manifest.json, so nobody can say which model made "
                    "their vectors: embed the feed into an empty folder."
                )
            create.write(folder)
        manifest = Manifest.read(folder)
        manifest.check_allowed(folder)
        place = manifest.place or str(folder)
        db = connect(place)
        try:
            table = db.open_table(TABLE)
        except Exception as error:  # of an object store, with classes of its own
            if manifest.place:  # never made anew: it may only be out of reach
                reason = _short_reason(str(error))
                raise UserError(
                    f"{folder} keeps its products in {place}, which cannot be read: {reason}."
                ) from None
            if not isinstance(error, ValueError | FileNotFoundError):
                raise _damaged(str(folder / f"{TABLE}.lance"), error) from error
            # Rows without a version that names them are not ours to overwrite.
            if here and next((folder / f"{TABLE}.lance" / "data").glob("*"), None):
                why = ValueError("it holds rows but no version of them")
                raise _damaged(f"{folder / TABLE}.lance", why) from None
            if create is None:
                raise UserError(
                    f"{folder} holds no products yet: run `moonshelf embed FEED -o {folder}`."
                ) from None
            # The manifest comes first, so this is a first run, or one killed between the two.
            mode = "overwrite" if here else "create"
            table = db.create_table(TABLE, schema=schema(manifest.dim), mode=mode)
        fresh = create is not None and not manifest.place and table.version == 1  # it never held a row
        if create is not None and fresh and create.fingerprint != manifest.fingerprint:
            manifest = create.write(folder)
            table = db.create_table(TABLE, schema=schema(manifest.dim), mode="overwrite")
        if "vector" not in table.schema.names:
            raise _damaged(manifest.place or f"{folder / TABLE}.lance", ValueError("it has no vectors"))
        if table.schema.field("vector").type != pa.list_(pa.float32(), manifest.dim):
            raise UserError(
                f"{folder}: the vectors of the store do not have the {manifest.dim} dimensions that its "
                "manifest.json states: embed the feed again into an empty folder."
            )
        return cls(folder, manifest, table)

    # ------------------------------------------------------------------------------------ reading

    def __len__(self) -> int:
        return int(self._table.count_rows())

    def count(self, where: Condition) -> int:
        """Rows that pass."""
        return int(self._read(lambda: self._table.count_rows(where.sql)))

    @property
    def columns(self) -> list[str]:
        return list(self._table.schema.names)

    @property
    def place(self) -> str:
        """Where the rows are kept: an address, or a folder."""
        return self.manifest.place or str(self.folder / f"{TABLE}.lance")

    @property
    def version(self) -> int:
        return int(self._table.version)

    def _read(self, query: Callable[[], T]) -> T:
        """Run a read; once more if a writer cleaned away the version it had started on."""
        with self._told():
            try:
                return query()
            except RuntimeError as error:
                if "not found" not in str(error).lower():
                    raise
                self._table.checkout_latest()
                return query()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the table's files as UserErrors."""
        try:
            yield
        except BaseException as error:
            # A panic of Lance's is no `Exception`, and its other errors have no class of their own.
            panic = "Panic" in type(error).__name__
            if not (panic or (isinstance(error, RuntimeError | ValueError) and _OF_LANCE.search(str(error)))):
                raise
            known = error if isinstance(error, Exception) else RuntimeError(str(error))
            raise _damaged(self.place, known) from error

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock, self._told():
            yield

    def scan(self, columns: Sequence[str], where: Condition | None = None) -> pa.Table:
        """Chosen columns of all rows, or of those that pass `where`."""

        def query() -> pa.Table:
            search = self._table.search().select(list(columns))
            return (search.where(where.sql) if where else search).limit(None).to_arrow()

        return self._read(query)

    def batches(self, columns: Sequence[str], rows: int) -> pa.RecordBatchReader:
        """Chosen columns of all rows of the newest version, at most `rows` at a time."""
        return self._table.search().select(list(columns)).to_batches(rows)

    def rows(self, keys: Iterable[int], columns: Sequence[str] | None = None) -> pa.Table:
        """Rows with these keys, in no particular order; unknown keys are left out."""
        wanted, names = list(keys), list(columns or self.columns)
        parts = [
            self.scan(names, Condition(f"key IN ({','.join(map(str, wanted[i : i + _IN]))})"))
            for i in range(0, len(wanted), _IN)
        ]
        return pa.concat_tables(parts) if parts else self._table.schema.empty_table().select(names)

    def hashes(self, ids: Iterable[str]) -> dict[str, tuple[str, str]]:
        """id -> (content hash, record hash) of those of the ids that are there; for all rows see `known`."""
        names = ["id", "content_hash", "record_hash"]
        table = self.rows(map(key_of, ids), names)
        columns = (table[name].to_pylist() for name in names)
        return {id: (content, record) for id, content, record in zip(*columns, strict=True)}

    def vectors(self, keys: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(keys (n,) int64, vectors (n, dim) float32), sorted by key; `keys` (m,) int64 asks for some
        only."""
        # One pass over everything is faster than very many lookups.
        all_of_them = keys is None or len(keys) > _FEW
        columns = ["key", "vector"]
        table = self.scan(columns) if all_of_them else self.rows(keys.tolist(), columns)  # type: ignore[union-attr]
        flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        held, vectors = table["key"].to_numpy(), flat.reshape(-1, self.manifest.dim)
        order = np.argsort(held)
        if all_of_them and keys is not None:
            order = order[np.isin(held[order], keys)]
        return held[order], vectors[order].astype(np.float32, copy=False)

    def contents(self) -> np.ndarray:
        """(n, 2) int64, sorted: the key of each row, and 64 bits of its content hash. Tells which vectors are
        no longer those that an index holds."""
        table = self.scan(["key", "content_hash"]).sort_by("key")
        digits = "".join(pc.utf8_slice_codeunits(table["content_hash"], 0, 16).to_pylist())
        hashes = np.frombuffer(bytes.fromhex(digits), "<i8")
        return np.stack([table["key"].to_numpy(), hashes], axis=1)

    def nearest(self, vector: np.ndarray, k: int, where: Condition | None = None) -> list[tuple[int, float]]:
        """Exact search: (key, cosine) of the k nearest rows, best first."""

        def search() -> Any:
            found = self._table.search(vector.astype(np.float32), vector_column_name="vector")
            return found.distance_type("dot")

        # Lance's dot distance is 1 - <a, b>
        return _ordered((key, 1.0 - far) for key, far in self._best(search, "_distance", k, where))

    def full_text(
        self, text: str, k: int, where: Condition | None = None, written: float = WRITTEN_WEIGHT
    ) -> list[tuple[int, float]] | None:
        """(key, BM25) of the k best rows for the words of `text`; None if there is no full-text index.

        A row has the better of its two fields: the record's words count once, the model's `written` times.
        """
        weights = {"text": 1.0, "written": written}
        indexed = self._indexed()
        if "text" not in indexed:
            return None
        names = [name for name, weight in weights.items() if name in indexed and weight > 0]
        # As words and nothing else: a plain string in quotes would be read as a phrase, and refused.
        query = MultiMatchQuery(text, names, boosts=[weights[n] for n in names])  # type: ignore[call-arg]
        return self._words(query, k, where)

    def with_code(
        self, codes: Sequence[str], k: int, where: Condition | None = None
    ) -> list[tuple[int, float]]:
        """(key, BM25) of rows that have one of these identifiers, as `rows.code` writes them."""
        if not codes or "codes" not in self._indexed():
            return []
        query = MatchQuery(" ".join(codes), "codes")  # type: ignore[call-arg]  # mypy does not see its defaults
        return self._words(query, k, where)

    def _words(self, query: FullTextQuery, k: int, where: Condition | None) -> list[tuple[int, float]]:
        return _ordered(self._best(lambda: self._table.search(query, query_type="fts"), "_score", k, where))

    def _best(
        self, search: Callable[[], Any], column: str, k: int, where: Condition | None
    ) -> list[tuple[int, float]]:
        def run() -> pa.Table:
            found = search().select(["key", column]).limit(k)
            return (found.where(where.sql, prefilter=True) if where else found).to_arrow()

        table = self._read(run)
        return list(zip(table["key"].to_pylist(), table[column].to_pylist(), strict=True))

    def _indexed(self) -> set[str]:
        """Columns with a full-text index."""
        return {index.columns[0] for index in self._table.list_indices()}

    @property
    def has_full_text(self) -> bool:
        return "text" in self._indexed()

    def keys_where(self, where: Condition) -> np.ndarray:
        """Keys (m,) int64 of the rows that pass. Raises UserError where the folder lacks a column."""
        try:
            return self.scan(["key"], where)["key"].to_numpy()
        except (ValueError, UserError) as error:
            if not (found := re.search(r"No field named (\w+)", str(error.__cause__ or error))):
                raise
            raise UserError(
                f"this catalogue has no column {found[1]} yet: embed its feed once more to get it."
            ) from None

    # ------------------------------------------------------------------------------------ writing

    def write(self, added: Sequence[Mapping[str, Any]], updated: Sequence[Mapping[str, Any]]) -> None:
        """Commit rows: `added` must be new ids, `updated` existing ones. Each is one atomic version.

        The split is for speed only: an append does not look at the table, an update joins with it.
        """
        new, old = (pa.Table.from_pylist(list(rows), self._schema) for rows in (added, updated))
        with self._changing():
            if added:
                self._table.add(new)
            if updated:
                merge = self._table.merge_insert("id").when_matched_update_all()
                merge.when_not_matched_insert_all().execute(old)

    def remove(self, keys: Sequence[int]) -> None:
        """Take the rows with these keys out; unknown ones do no harm."""
        with self._changing():
            for i in range(0, len(keys), _IN):
                self._table.delete(f"key IN ({','.join(map(str, keys[i : i + _IN]))})")

    def index_text(self) -> None:
        """(Re)build the full-text indexes. The ICU tokenizer splits words of every script."""
        words = FTS(base_tokenizer="icu")
        whole = FTS(
            base_tokenizer="whitespace", stem=False, remove_stop_words=False, ascii_folding=False,
            max_token_length=None,
        )  # fmt: skip
        with self._changing():
            for name, config in (("text", words), ("written", words), ("codes", whole)):
                self._table.create_index(name, config=config, replace=True)

    def upgrade(self) -> None:
        """Give a table of an earlier version the columns that it lacks (the caller holds the writer lock).

        They are made of what its rows hold; a killed upgrade goes on where it was. The record's hash is
        forgotten, so that the next feed brings what only the feed has, such as SKUs, without the model.
        """
        missing = [name for name in schema(self.manifest.dim).names if name not in self.columns]
        if missing:
            self._table.add_columns(dict.fromkeys(missing, "cast(null as string)"))
            if self.manifest.keep_days == 0:  # what was written where nobody had said how long
                self.manifest = self.manifest.write(self.folder, keep_days=None)
        while self.count(Condition("codes IS NULL")):
            search = self._table.search().where("codes IS NULL").select(self.columns).limit(_UPGRADED)
            rows = search.to_arrow().to_pylist()
            for row in rows:
                row |= {"text": full_text(row), **written_columns(row["rationale"] or "")}
                row |= {
                    "codes": codes_text([row["id"], row["gtin"], row["mpn"]]),
                    "record_hash": "0" * 64,
                }
            self.write([], rows)

    def compact(self) -> None:
        """Join small files, bring the text index up to date, drop versions that are too old to keep.

        The manifest's `keep_days` says how old. Where nobody has said, it is a week, as long as rows and
        versions together stay within a few times the rows; rows at another place then keep none. Files
        without a version (left by a killed process) go too: the caller holds the writer lock, so nobody is
        writing them. A reader whose version goes reads again from the newest (`_read`).
        """
        days, here = self.manifest.keep_days, not self.manifest.place
        with self._changing():
            kept = self._since(KEEP_DAYS if days is None else days) if here and days != 0 else []
            # A version's own time lies a little before that of its file.
            self._optimize(kept[0] + timedelta(seconds=1) if kept else timedelta(days=days or 0))
            while days is None and len(kept) > 1 and self._is_large(len(kept)):
                kept = kept[(len(kept) + 1) // 2 :]
                self._optimize(kept[0])
        memory.give_back()  # joining files has freed much of it, in pieces

    def _optimize(self, keep: timedelta) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # its warning about `keep` of zero: see above
            self._table.optimize(cleanup_older_than=keep, delete_unverified=True)

    def _since(self, days: float) -> list[timedelta]:
        """Ages of the versions that tell how the rows were at any time of the last days, the oldest first:
        those of the days, and the one that the days began with."""
        now = time.time()
        ages = sorted((now - file.stat().st_mtime for file in self._files("_versions")), reverse=True)
        old = sum(age > days * 86_400 for age in ages)
        return [timedelta(seconds=age) for age in ages[max(0, old - 1) :]]

    def _is_large(self, versions: int) -> bool:
        size = sum(file.stat().st_size for file in self._files())
        rows = int(self._table.stats()["total_bytes"])
        return versions > _MOST_VERSIONS or size > max(_LITTLE, _MOST_SIZE * rows)

    def _files(self, below: str = "") -> Iterator[Path]:
        return (file for file in Path(self.place, below).rglob("*") if file.is_file())

    # ----------------------------------------------------------------------------------- versions

    def versions(self) -> list[Version]:
        """States that compaction has not dropped, the newest first."""
        found = []
        for one in self._read(self._table.list_versions):
            rows = int(one["metadata"].get("total_rows", -1))
            found.append(Version(int(one["version"]), one["timestamp"], rows))
        return sorted(found, key=lambda one: -one.number)

    def rollback(self, number: int) -> None:
        """Make the rows of an earlier version the newest, in one commit; the versions between stay.

        The folder takes the reasoning mode of these rows, so that the next feed does not drop what they hold.
        The caller holds the writer lock. The full-text index goes back too; the vector index catches up when
        it is next loaded. Raises UserError if there is no such version any more.
        """
        known = [one.number for one in self.versions()]
        if number not in known:
            raise UserError(
                f"{self.folder} has no version {number}: it has {', '.join(map(str, known))}. Older ones "
                f"went at compaction; `moonshelf store keep {self.folder} --days 30` keeps them longer."
            )
        with self._changing():
            self._table.restore(number)
            self._table.checkout_latest()
        modes = set(pc.unique(self.scan(["reason"])["reason"]).to_pylist())
        mode = next((mode for mode in ("on", "auto", "off") if mode in modes), self.manifest.reason)
        if mode != self.manifest.reason:
            self.manifest = self.manifest.write(self.folder, reason=mode)

    def copy_to(self, place: str, rows: int = 8_192) -> None:
        """Write all rows as a table of another place, which must not hold one. Its indexes are not copied.

        Raises UserError if the place cannot be written to, or holds products.
        """
        try:
            db = connect(place)
            with suppress(ValueError, FileNotFoundError):  # no table, or no place: writing tells
                db.open_table(TABLE)
                raise UserError(f"{place} already holds products: name an empty place.")
            db.create_table(TABLE, self.batches(self.columns, rows), schema=self._table.schema)
            copied = int(db.open_table(TABLE).count_rows())
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{place} cannot be written to: {_short_reason(str(error))}.") from None
        if copied != len(self):
            raise UserError(
                f"{copied:,} of {len(self):,} products arrived in {place}: empty it and try again."
            )


def _ordered(hits: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    return sorted(hits, key=lambda hit: (-hit[1], hit[0]))


def _damaged(place: str, error: Exception) -> UserError:
    """What to do about files of the table that cannot be read or written."""
    if sentence := system_error(error):
        return UserError(f"{place}: {sentence}")
    return UserError(
        f"{place} is damaged ({_short_reason(str(error).removeprefix('lance error: '))}): take it from a "
        "copy, go back with `moonshelf store rollback`, or embed the feed into an empty folder."
    )


def _short_reason(error: str) -> str:
    """The engine's complaint without the places in its own source."""
    line = re.sub(r",? ?/\S+\.rs:\d+(:\d+)?", "", error.split("\n")[0])
    return line.strip().rstrip(".")[:200]

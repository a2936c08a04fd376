"""Who commits rows: a run over a feed, wherever its products are computed, and writers of single products.

Rows are committed in shards of about 512, or each minute: what a kill -9 can cost is the shard in hand.
Memory does not grow with the feed but for flat arrays: 72 bytes for a row of the store, 8 for one of the
feed. Dictionaries and sets of Python's would hold the same in five to ten times the memory.

Single products go in and out by commits that outlive the process once `Writer.commit` has returned. Between
the making of a row and its commit another writer may have been at work; so the commit looks again, under the
folder's writer lock, which ids the store holds. No id is ever stored twice, and a new price is never put
beside a vector of another title: such products come back as stale, to be prepared again.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moonshelf.catalogue.manifest import Manifest, writing
from moonshelf.catalogue.rows import Hashes, PreparedRow, key_of, with_record
from moonshelf.catalogue.store import Store
from moonshelf.errors import Problem, UserError
from moonshelf.feeds.base import END

SHARD_ROWS, SHARD_SECONDS = 512, 60.0
COMPACT_AFTER = 64  # commits at least; each leaves a version and small files
_ROWS_PER_COMMIT = 1_000  # joining copies the table, so a larger one is joined more rarely
_COMPACT_AFTER = 64  # commits before files are joined during a run, doubled each time
MIN_REMOVED = 10  # products that may go whatever their share, unless they are half of the catalogue
_SHOWN = 20  # problems kept in the report; all of them are in rejects.jsonl
_BATCH = 65_536  # rows of the store that are read together, and new keys that are sorted together


@dataclass
class EmbedReport:
    """What one run did. `unchanged`, `metadata_only` and the rest count rows of the feed."""

    read: int = 0
    new: int = 0
    changed: int = 0
    metadata_only: int = 0
    unchanged: int = 0
    removed: int = 0
    rejected: int = 0
    warnings: int = 0
    unlisted: int = 0  # products that the feed does not list, kept because it may not be whole
    rows: int = 0  # in the store at the end
    before: int = 0  # version of the store that the run began with: what to go back to
    rationales: int = 0
    rationales_valid: int = 0
    seconds: float = 0.0
    complete: bool = False  # the feed was read to its end
    problems: list[Problem] = field(default_factory=list)  # the first few that differ
    note: str = ""  # what of the products the model does not read

    @property
    def reasoning_valid_rate(self) -> float | None:
        """Share of the rationales written in this run that kept their format; None if none was written."""
        return self.rationales_valid / self.rationales if self.rationales else None

    @property
    def items_per_s(self) -> float | None:
        """Products embedded a second, reading and storing included; None if none was embedded."""
        embedded = self.new + self.changed
        return embedded / self.seconds if embedded and self.seconds else None

    def as_dict(self) -> dict[str, Any]:
        counts = {k: v for k, v in vars(self).items() if k not in ("problems", "rationales_valid", "seconds")}
        return {
            **counts,
            "reasoning_valid_rate": self.reasoning_valid_rate,
            "items_per_s": self.items_per_s and round(self.items_per_s, 2),
            "seconds": round(self.seconds, 2),
            "problems": [problem.as_dict() for problem in self.problems],
        }


@dataclass(slots=True)
class RowResult:
    """What became of one row of a feed. `state` is new or changed (`row` is to be stored), metadata (`row`
    holds the record's columns), unchanged, or rejected."""

    number: int | str
    state: str
    id: str
    problems: list[Problem]
    row: dict[str, Any] | None = None


class EmbedRun:
    """One pass over a feed. `fresh`, `note` and `take` may be called by two threads."""

    def __init__(
        self,
        store: Store,
        rejects: Any,
        shard_rows: int,
        on_commit: Callable[[list[str]], None] | None = None,
    ) -> None:
        self.store, self.rejects, self.shard_rows, self.on_commit = store, rejects, shard_rows, on_commit
        self.report = EmbedReport(before=store.version)
        self.known = Known.of(store)
        self.seen = Seen()
        self.taken = 0  # rows whose fate is known
        self.failure: BaseException | None = None  # raised once what is finished is stored
        self.stopped = threading.Event()  # by Ctrl-C or SIGTERM: no more rows are read
        self._unread = False  # a row of which nobody can say which product it was
        self._done: list[RowResult] = []  # new and changed
        self._renewed: list[RowResult] = []  # of which only the record changed
        self._commits, self._compact_at = 0, _COMPACT_AFTER
        self._lock = threading.RLock()

    # ----------------------------------------------------------------------------- of each row

    def fresh(self, number: int | str, id: str) -> bool:
        """Count a product; False, and rejected, if its id came before."""
        with self._lock:
            self.report.read += 1
            if self.seen.add(id):
                return True
            self.note(Problem(number, "id", "the id came before: the first row stays", id))
            return False

    def note(self, problem: Problem) -> None:
        """Count and write down what is wrong with a row."""
        with self._lock:
            self._unread |= problem.field == END or (
                problem.fatal and not problem.id and problem.field != "id"
            )
            if problem.fatal:
                self.report.rejected += 1
                if problem.id:
                    self.seen.add(problem.id)  # the feed lists it, so it does not leave the store
                if problem.field == END:
                    self.failure = UserError(
                        f"the feed was read only up to row {problem.row} ({problem.reason}): the rows before "
                        "it are stored and none was removed; mend the feed and run again."
                    )
            else:
                self.report.warnings += 1
            shown = self.report.problems
            if len(shown) < _SHOWN and all(one.reason != problem.reason for one in shown):
                shown.append(problem)
            self.rejects.write(json.dumps(problem.as_dict(), ensure_ascii=True) + "\n")

    def take(self, result: RowResult) -> None:
        """What became of a fresh product."""
        self.taken += 1
        if result.state == "unchanged":  # most rows of most runs, and only the reader's: no lock
            self.report.unchanged += 1
            return
        with self._lock:
            for problem in result.problems:
                self.note(problem)
            if result.row is not None:
                (self._renewed if result.state == "metadata" else self._done).append(result)
            if len(self._renewed) >= self.shard_rows:  # the model, which makes the steps, may have no work
                self._commit(renewed=True)

    # ----------------------------------------------------------------------------- committing

    def follow(self, steps: Iterator[None], share: Callable[[], float | None] | None = None) -> None:
        """Go through the steps of the work and commit what they finish, to the last row that is done, however
        they end; with `share`, the share of the feed that was read, progress is shown on stderr."""
        started = last = time.perf_counter()
        with self._stoppable(), nullcontext() if share is None else self._shown(share):
            try:
                for _ in steps:
                    now = time.perf_counter()
                    if len(self._done) >= self.shard_rows or now - last > SHARD_SECONDS:
                        self._commit()
                        last = now
                    if self.stopped.is_set():
                        break
            finally:  # of a failing model too what is finished is kept
                self._commit()
                self._commit(renewed=True)
                self.report.seconds = time.perf_counter() - started
        if self.stopped.is_set():
            raise KeyboardInterrupt
        if self.failure is not None:
            raise self.failure

    def _commit(self, renewed: bool = False) -> None:
        """Store what is finished: products that the model has read or, `renewed`, those with a new record."""
        with self._lock:
            results = self._renewed if renewed else self._done
            self._renewed, self._done = ([], self._done) if renewed else (self._renewed, [])
        if not results:
            return
        new, changed, records = (
            [one.row for one in results if one.row is not None and one.state == state]
            for state in ("new", "changed", "metadata")
        )
        self.store.write(new, [*changed, *renewed_rows(self.store, records)])
        written = [row for row in (*new, *changed) if row["rationale"]]
        self.report.rationales += len(written)
        self.report.rationales_valid += sum(row["rationale_valid"] for row in written)
        self.report.new += len(new)
        self.report.changed += len(changed)
        self.report.metadata_only += len(records)
        self._committed([one.id for one in results])

    def _committed(self, ids: list[str]) -> None:
        with self._lock:
            self.rejects.flush()
            self._commits += 1
            if self.on_commit:
                self.on_commit(ids)
            if self._commits >= self._compact_at:  # rarer and rarer: each joining rewrites what is there
                self._compact_at *= 2
                self.store.compact()

    def finish(self, max_removed: float | None) -> None:
        """Remove what the feed, read to its end, no longer lists: at most `max_removed` of all products, None
        any number. Raises UserError where so many look like a mistake in the feed and not a day's change."""
        started, there = time.perf_counter(), len(self.known.keys)
        gone = np.setdiff1d(self.known.keys, self.seen.keys, assume_unique=True).tolist()
        if gone and not self.report.read:
            raise UserError(
                f"the feed holds no usable product, so none of the {len(gone)} products in "
                f"{self.store.folder} was removed; see rejects.jsonl there."
            )
        if gone and self._unread and max_removed is not None:
            self.report.unlisted, gone = len(gone), []
        some = len(gone) >= MIN_REMOVED or 2 * len(gone) >= there
        if max_removed is not None and some and len(gone) > max_removed * there:
            self.report.unlisted = len(gone)
            raise UserError(
                f"the feed no longer lists {len(gone):,} of the {there:,} products in {self.store.folder}; "
                "none was removed, all else is stored: if they are to go, run it again with --allow-removals."
            )
        self.store.remove(gone)
        self.report.removed = len(gone)
        if self._commits or gone:
            self.store.compact()
        self.report.rows = len(self.store)
        self.report.seconds += time.perf_counter() - started

    # ----------------------------------------------------------------------------- signals, progress

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Within it the first Ctrl-C or SIGTERM ends the run after the products in hand, a second at once."""
        signals = (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's
            return

        def stop(*_: object) -> None:
            if self.stopped.is_set():
                raise KeyboardInterrupt
            self.stopped.set()
            print("stopping after the products in hand; once more stops at once", file=sys.stderr)

        before = [signal.signal(one, stop) for one in signals]
        try:
            yield
        finally:
            for one, handler in zip(signals, before, strict=True):
                signal.signal(one, handler)

    @contextmanager
    def _shown(self, share: Callable[[], float | None]) -> Iterator[None]:
        """Rows, rows a second, and time left where the feed's length is known, on stderr."""
        from rich import progress
        from rich.console import Console, RenderableType

        run, started = self, time.perf_counter()

        class Bar(progress.Progress):
            def get_renderables(self) -> Iterator[RenderableType]:
                for task in self.task_ids:  # as often as it is drawn
                    rows, read = run.taken, share()
                    rate = rows / max(1e-9, time.perf_counter() - started)
                    said = f"{rows:,} rows, {rate:.1f}/s"
                    # The reader is ahead of the model by what is pending: that part is not yet done.
                    done = read * rows / max(1, run.report.read) if read is not None else 0.0
                    self.update(task, completed=done, total=None if read is None else 1.0, said=said)
                yield from super().get_renderables()

        columns = ("embed", progress.BarColumn(), "{task.fields[said]}", progress.TimeElapsedColumn(), "left")
        with Bar(*columns, progress.TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            bar.add_task("embed", total=None, said="")
            yield


# ---- what a run remembers of every row -------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """The hashes of all rows of a store, by the keys of the ids. Ray's workers on one machine share its
    arrays."""

    keys: np.ndarray  # (n,) int64, sorted
    hashes: np.ndarray  # (n, 64) uint8: content hash, record hash

    @classmethod
    def of(cls, store: Store) -> Known:
        n = len(store)
        keys, hashes, start = np.empty(n, np.int64), np.empty((n, 64), np.uint8), 0
        for batch in store.batches(["key", "content_hash", "record_hash"], _BATCH):
            stop = start + batch.num_rows
            keys[start:stop] = batch["key"].to_numpy()
            for place, name in enumerate(("content_hash", "record_hash")):
                digests = bytes.fromhex("".join(batch[name].to_pylist()))
                hashes[start:stop, 32 * place :][:, :32] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
            start = stop
        order = np.argsort(keys)
        return cls(keys[order], hashes[order])

    def get(self, id: str) -> Hashes | None:
        """The hashes of a product's row, None if the store does not hold it."""
        place = _place(self.keys, key_of(id))
        if place is None:
            return None
        digest = self.hashes[place].tobytes()
        return digest[:32].hex(), digest[32:].hex()


def _place(keys: np.ndarray, key: int) -> int | None:
    """Where a key stands among sorted ones (n,) int64, None if it does not."""
    place = int(np.searchsorted(keys, key))
    return place if place < len(keys) and keys[place] == key else None


class Seen:
    """A growing set of ids. The newest are in a set, the others in a sorted array."""

    def __init__(self) -> None:
        self._old = np.empty(0, np.int64)
        self._new: set[int] = set()

    def add(self, id: str) -> bool:
        """Remember an id; False if it was there."""
        key = key_of(id)
        if key in self._new or _place(self._old, key) is not None:
            return False
        self._new.add(key)
        if len(self._new) >= _BATCH:
            self._old, self._new = self.keys, set()
        return True

    @property
    def keys(self) -> np.ndarray:
        """(n,) int64, sorted."""
        new = np.fromiter(self._new, np.int64, len(self._new))
        new.sort()
        return np.insert(self._old, np.searchsorted(self._old, new), new)


# ---- single products -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Committed:
    """What one commit did. Ids in `stale` were prepared against a version that is gone: not stored."""

    new: int = 0
    changed: int = 0
    metadata: int = 0
    removed: tuple[str, ...] = ()  # ids that were there
    stale: tuple[str, ...] = ()


def renewed_rows(store: Store, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The stored vector and rationale under each new record; of a product that the store holds with another
    content, or not at all, nothing."""
    stored = {row["id"]: row for row in store.rows(key_of(row["id"]) for row in records).to_pylist()}
    return [
        with_record(stored[row["id"]], row)
        for row in records
        if row["content_hash"] == stored.get(row["id"], {}).get("content_hash")
    ]


class Writer:
    """Commits single products. Safe in several threads and beside other processes: one writes at a time.

    Every `compact_after` commits (in large tables one for each 1,000 rows) files are joined and old versions
    dropped within `commit`. With 0 that is left to a caller that does not want an answer to wait for it: it
    calls `compact` when `due`.
    """

    def __init__(self, store: Store, compact_after: int = COMPACT_AFTER) -> None:
        self.store, self.compact_after = store, compact_after
        self.commits = 0  # since files were joined

    def commit(
        self,
        rows: Iterable[Mapping[str, Any]] = (),
        metadata: Iterable[PreparedRow] = (),
        removed: Iterable[str] = (),
        wait: float = 0.0,
    ) -> Committed:
        """Store finished rows, new records, and removals; when it returns they outlive the process.

        Of one id in `rows` twice, or in `metadata` twice, the last counts; an id in several of the arguments
        is taken from the first of them. New rows are one atomic version of the table, other rows another,
        removals a third. Waits up to `wait` seconds for another writer, then raises `manifest.Locked`
        (a UserError); raises UserError if the folder now belongs to another model.
        """
        whole = {row["id"]: row for row in rows}
        drafts = {d.row["id"]: d for d in metadata if d.row["id"] not in whole}
        leaving = [id for id in dict.fromkeys(removed) if id not in whole and id not in drafts]
        if not whole and not drafts and not leaving:
            return Committed()
        with writing(self.store.folder, wait):
            self._check()
            current = renewed_rows(self.store, [one.row for one in drafts.values()])
            fresh = {row["id"] for row in current}
            stale = tuple(id for id in drafts if id not in fresh)
            there = self.store.hashes([*whole, *leaving])
            added = [row for id, row in whole.items() if id not in there]
            changed = [row for id, row in whole.items() if id in there]
            self.store.write(added, [*changed, *current])
            gone = tuple(id for id in leaving if id in there)
            self.store.remove([key_of(id) for id in gone])
            self.commits += bool(added) + bool(changed or current) + bool(gone)
            if self.compact_after and self.due:
                self.store.compact()
                self.commits = 0
        return Committed(len(added), len(changed), len(current), gone, stale)

    @property
    def due(self) -> bool:
        """Files should be joined."""
        enough = self.commits >= (self.compact_after or COMPACT_AFTER)
        return enough and self.commits >= len(self.store) // _ROWS_PER_COMMIT

    def compact(self, wait: float = 0.0) -> None:
        """Join small files, drop old versions, bring the full-text index up to date. It copies the table."""
        with writing(self.store.folder, wait):
            self.store.compact()
            self.commits = 0

    def _check(self) -> None:
        """The folder still holds vectors of the model that made these, and at the same place."""
        now, ours = Manifest.read(self.store.folder), self.store.manifest
        for names, what in (
            (("fingerprint", "dim", "preprocessing"), "was embedded anew with another model"),
            # Rows of the mode that was would drop what the other has written.
            (("reason",), f"is in reasoning mode {now.reason} now"),
            (("place",), "keeps its products elsewhere now"),
        ):
            if any(getattr(now, name) != getattr(ours, name) for name in names):
                raise UserError(f"{self.store.folder} {what}: restart what writes to it.")
        self.store.upgrade()

"""One pass over a feed: what is counted, set aside, committed, and shown while it runs.

Where the products are read and computed is for subclasses to say: `embed` does it in this process and
`ray_embed` on Ray's workers. Only the process of the pass writes, so both give the same rows.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from moonshelf.catalogue.known import Known, Seen
from moonshelf.catalogue.manifest import Encoder
from moonshelf.catalogue.rows import schema
from moonshelf.catalogue.store import Store, key_of
from moonshelf.catalogue.upsert import with_record
from moonshelf.errors import Problem, UserError
from moonshelf.feeds.base import END

SHARD_ROWS, SHARD_SECONDS = 512, 60.0
_COMPACT_AFTER = 64  # commits before files are joined during a run, doubled each time
MIN_REMOVED = 10  # products that may go whatever their share, unless they are half of the catalogue
_SHOWN = 20  # problems kept in the report; all of them are in rejects.jsonl


@dataclass
class EmbedReport:
    """What one run did. `unchanged`, `metadata_only` and the rest count rows of the feed."""

    read: int = 0
    new: int = 0
    changed: int = 0
    metadata_only: int = 0
    unchanged: int = 0
    removed: int = 0
    set_aside: int = 0
    warnings: int = 0
    unlisted: int = 0  # products that the feed does not list, kept because it may not be whole
    rows: int = 0  # in the store at the end
    before: int = 0  # version of the store that the run began with: what to go back to
    rationales: int = 0
    rationales_valid: int = 0
    seconds: float = 0.0
    complete: bool = False  # the feed was read to its end
    problems: list[Problem] = field(default_factory=list)  # the first few

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


@dataclass(frozen=True)
class Options:
    """How to embed; recorded in run.json."""

    reason: str | None = None  # None: the mode that the folder has, off for a new one
    batch_tokens: int = 8192
    dialect: str | None = None
    images_root: str | None = None
    fields: Mapping[str, str] | None = None  # columns of the feed, see `feeds.read_feed`
    encoding: str | None = None
    currency: str | None = None
    allow_text_only: bool = False
    shard_rows: int = SHARD_ROWS
    writer: str | None = None  # what writes the rationales: a URL or an export, see `model.writers`
    precision: str | None = None  # what the model computes in; None: as it does already
    device: str | None = None  # where; None: where it is
    max_removed: float = 0.1  # share of the products that may go because a feed no longer lists them
    allow_removals: bool = False  # any number may go

    @property
    def mode(self) -> str:
        """The reasoning mode of a run, once `embed.checked` has filled in the folder's."""
        return self.reason or "off"

    @property
    def reading(self) -> dict[str, Any]:
        """How the feed is read, as `feeds.read_feed` takes it."""
        return {"fields": self.fields, "encoding": self.encoding, "currency": self.currency}


class Run:
    """One pass over a feed: what is counted, set aside, stored. Where the products are computed is its
    subclasses' to say, in `work`."""

    def __init__(
        self,
        store: Store,
        model: Encoder,
        options: Options,
        rejects: Any,
        on_commit: Callable[[list[str]], None] | None,
    ) -> None:
        self.store, self.model, self.options = store, model, options
        self.rejects, self.on_commit = rejects, on_commit
        self.report = EmbedReport(before=store.version)
        self.known = Known.of(store)
        self.schema = schema(store.manifest.dim)
        self.seen = Seen()
        self.unread: Problem | None = None  # the first row of which nobody can say which product it was
        self.metadata: list[dict[str, Any]] = []
        self.done: list[tuple[dict[str, Any], bool]] = []  # finished rows, and whether the store has them
        self.failure: BaseException | None = None
        self.stopped = threading.Event()  # by Ctrl-C or SIGTERM: no more rows are read
        self.commits, self.compact_at = 0, _COMPACT_AFTER
        self.lock = threading.Lock()

    def work(self) -> Iterator[None]:
        """Read and compute, a part of the feed a step, filling `done` and `metadata`."""
        raise NotImplementedError

    def share(self) -> float | None:
        """Share of the feed that was read, None where its length is not known."""
        return None

    @property
    def waiting(self) -> int:
        """Rows that were read and are neither done nor set aside."""
        return len(self.metadata)

    def go(self) -> None:
        started = last = time.perf_counter()
        with self._stoppable():
            try:
                for _ in self.work():
                    now = time.perf_counter()
                    if len(self.done) >= self.options.shard_rows or now - last > SHARD_SECONDS:
                        self._commit()
                        last = now
                    if self.stopped.is_set():
                        break
            finally:  # of a failing model too what is finished is kept
                self._commit()
                self.update_metadata()
                self.report.seconds = time.perf_counter() - started
        if self.stopped.is_set():
            raise KeyboardInterrupt
        if self.failure is not None:
            raise self.failure
        self._finish()
        self.report.seconds = time.perf_counter() - started

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

    def first(self, number: int | str, id: str) -> bool:
        """Count a product; False, and set aside, if its id came before."""
        self.report.read += 1
        with self.lock:  # as in `note`
            fresh = self.seen.add(id)
        if fresh:
            return True
        self.note(Problem(number, "id", "the id came before: the first row stays", id))
        return False

    def note(self, problem: Problem) -> None:
        with self.lock:  # both threads of `_Here` come here
            if problem.field == END or (problem.fatal and not problem.id and problem.field != "id"):
                self.unread = self.unread or problem
            if problem.fatal:
                self.report.set_aside += 1
                if problem.id:
                    self.seen.add(problem.id)  # the feed lists it, so it does not leave the store
                if problem.field == END:
                    self.failure = UserError(
                        f"the feed was read only up to row {problem.row} ({problem.reason}): the rows before "
                        "it are stored and none was removed; mend the feed and run again."
                    )
            else:
                self.report.warnings += 1
            if len(self.report.problems) < _SHOWN:
                self.report.problems.append(problem)
            self.rejects.write(json.dumps(problem.as_dict(), ensure_ascii=True) + "\n")

    # ----------------------------------------------------------------------------- committing

    def _commit(self) -> None:
        if not self.done:
            return
        rows, self.done = self.done, []
        self.store.write(
            pa.Table.from_pylist([row for row, known in rows if not known], self.schema),
            pa.Table.from_pylist([row for row, known in rows if known], self.schema),
        )
        written = [row for row, _ in rows if row["rationale"]]
        self.report.rationales += len(written)
        self.report.rationales_valid += sum(row["rationale_valid"] for row in written)
        self.report.changed += sum(known for _, known in rows)
        self.report.new += sum(not known for _, known in rows)
        self._committed([row["id"] for row, _ in rows])

    def update_metadata(self) -> None:
        """Rows whose picture and text stayed: the stored vector and rationale with the new record."""
        with self.lock:
            rows, self.metadata = self.metadata, []
        if not rows:
            return
        stored = {row["id"]: row for row in self.store.rows(key_of(row["id"]) for row in rows).to_pylist()}
        merged = [with_record(stored[row["id"]], row) for row in rows]
        self.store.write(self.schema.empty_table(), pa.Table.from_pylist(merged, self.schema))
        self.report.metadata_only += len(rows)
        self._committed([row["id"] for row in rows])

    def _committed(self, ids: list[str]) -> None:
        self.rejects.flush()
        self.commits += 1
        if self.on_commit:
            self.on_commit(ids)
        if self.commits >= self.compact_at:  # rarer and rarer: each joining rewrites what is there
            self.compact_at *= 2
            self.store.compact()

    def _finish(self) -> None:
        gone = np.setdiff1d(self.known.keys, self.seen.keys, assume_unique=True).tolist()
        if gone and not self.report.read:
            raise UserError(
                f"the feed holds no usable product, so none of the {len(gone)} products in "
                f"{self.store.folder} was removed; see rejects.jsonl there."
            )
        if gone and self.unread is not None and not self.options.allow_removals:
            self.report.unlisted, gone = len(gone), []
        if self._too_many(len(gone)):
            self.report.unlisted = len(gone)
            raise UserError(
                f"the feed no longer lists {len(gone):,} of the {len(self.known.keys):,} products in "
                f"{self.store.folder}; none was removed, all else is stored: if they are to go, run it again "
                "with --allow-removals."
            )
        self.store.remove(gone)
        self.report.removed = len(gone)
        if self.commits or gone:
            self.store.compact()
        self.report.rows = len(self.store)

    def _too_many(self, gone: int) -> bool:
        """Whether so many removals look like a mistake in the feed rather than a day's change."""
        there = len(self.known.keys)
        some = gone >= MIN_REMOVED or 2 * gone >= there
        return gone > self.options.max_removed * there and some and not self.options.allow_removals


class Progress:
    """Progress on stderr: rows read, rows a second, time left where the feed's length is known."""

    def __init__(self, on: bool, run: Run) -> None:
        self.on, self.run = on, run

    def __enter__(self) -> None:
        if not self.on:
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("embed"),
            BarColumn(),
            TextColumn("{task.fields[rows]:,} rows, {task.fields[rate]:.1f}/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task("embed", total=None, rows=0, rate=0.0)
        self.started, self.ended = time.perf_counter(), threading.Event()
        self.bar.start()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.ended.wait(0.5):
            self._update()

    def _update(self) -> None:
        report = self.run.report
        rows = max(0, report.read - self.run.waiting)
        share = self.run.share()
        # The reader is ahead of the model by what is pending: count that part as not yet done.
        done = share * rows / max(1, report.read) if share is not None else 0.0
        rate = rows / max(1e-9, time.perf_counter() - self.started)
        total = 1.0 if share is not None else None
        self.bar.update(self.task, completed=done, total=total, rows=rows, rate=rate)

    def __exit__(self, *_: object) -> None:
        if self.on:
            self.ended.set()
            self.thread.join()
            self._update()
            self.bar.stop()

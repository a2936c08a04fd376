"""From a feed to the store: only what changed is read by the model, and a killed run goes on.

Each product has two hashes. `content_hash` covers what the model reads: the prompt's text, the bytes of
the pictures, the reasoning mode; if it changes the row is embedded again. `record_hash` covers the whole
record; if only that changes (a price, an availability) the row is updated and the model is not called.
Pictures are read once, and the bytes that were hashed are the bytes that are embedded.

Rows are committed in shards of about 512, or each minute: what a kill -9 can cost is the shard in hand.
Products that left the feed leave the store, but only after the feed was read to its end. A row that is set
aside (broken picture, no text) keeps the version that an earlier run stored, if there is one, because the
feed still lists the product. Memory does not grow with the feed except for the hashes (300 bytes a row).

With a `cluster` the products are read and computed by Ray's workers (`ray_embed`). What is counted, set aside
and committed is the same code, and this process is the only one that writes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from moonshelf import images
from moonshelf.catalogue.manifest import Encoder, Manifest, versions, write_json, writing
from moonshelf.catalogue.store import Store, key_of, schema
from moonshelf.catalogue.upsert import Draft, Refused, draft, finished, kept, with_record
from moonshelf.errors import Problem, UserError
from moonshelf.product import Product

if TYPE_CHECKING:
    from moonshelf.catalogue.ray_embed import Cluster

SHARD_ROWS, SHARD_SECONDS = 512, 60.0
REASONS = ("off", "on", "auto")
_COMPACT_AFTER = 64  # commits before files are joined during a run, doubled each time
_SHOWN = 20  # problems kept in the report; all of them are in rejects.jsonl

Feed = str | Path | Iterable[Product | Problem]


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
    rows: int = 0  # in the store at the end
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

    reason: str = "off"
    batch_tokens: int = 8192
    dialect: str | None = None
    images_root: str | None = None
    allow_text_only: bool = False
    shard_rows: int = SHARD_ROWS
    writer: str | None = None  # the server that writes the rationales, see `model.writers`


def embed_feed(
    feed: Feed,
    out: str | Path,
    model: Encoder,
    *,
    model_name: str = "",
    options: Options | None = None,
    fetcher: images.Fetcher | None = None,
    progress: bool = False,
    on_commit: Callable[[list[str]], None] | None = None,
    cluster: Cluster | None = None,
) -> EmbedReport:
    """Bring the catalogue folder `out` up to date with a feed (a path, or products and problems).

    `on_commit` is called with the ids of each shard once they are durable. With a `cluster` Ray's workers
    compute, and the feed may also be Parquet or Lance in many files or on object storage. Raises UserError if
    the feed or the folder cannot be used, or if the folder holds vectors of another model.
    """
    options = options or Options()
    if options.reason not in REASONS:
        raise UserError(f"reason must be one of {', '.join(REASONS)}, not '{options.reason}'.")
    if options.batch_tokens < 1 or options.shard_rows < 1:
        raise UserError("batch tokens and shard rows must be at least 1.")
    if options.writer:
        model = with_writer(model, options)
    out, name = Path(out), model_name or "the model passed"
    make: Callable[..., Run]
    if cluster is None:
        make = partial(_Here, *_rows(feed, options), fetcher)
    else:
        from moonshelf.catalogue.ray_embed import Away
        from moonshelf.feeds.parts import cut

        parts = cut(feed, options.dialect, options.images_root)
        make = partial(Away, cluster, parts, fetcher)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder for the catalogue.")
    out.mkdir(parents=True, exist_ok=True)
    with writing(out):
        manifest = Manifest.of(model, name, options.reason)
        store = Store.open(out, create=manifest)
        store.manifest.check(model, name, out)
        if store.manifest.reason != options.reason:
            store.manifest = replace(store.manifest, reason=options.reason)
            store.manifest.write(out)
        with open(out / "rejects.jsonl", "w", encoding="utf-8") as rejects:
            run = make(store, model, options, rejects, on_commit)
            try:
                with _Progress(progress, run):
                    run.go()
            finally:  # an interrupted run is on record too, with `complete` false
                _write_run(out, feed, model, name, options, run.report)
    return run.report


def with_writer(model: Any, options: Options) -> Encoder:
    """The model with its rationales written where the options say."""
    from moonshelf.model.writers import opened

    if options.reason != "on":
        raise UserError("a writer writes for every product: set reason to on.")
    apart: Any = opened(model, options.writer or "")
    return apart


def _write_run(
    out: Path, feed: Feed, model: Encoder, name: str, options: Options, report: EmbedReport
) -> None:
    source = str(feed) if isinstance(feed, str | Path) else None
    record = {
        "command": "embed",
        "feed": source,
        "data_sha256": _file_hash(source),
        "config": vars(options),
        "model": name,
        "fingerprint": model.fingerprint,
        "seed": None,  # nothing here is random
        "versions": versions(),
        "report": report.as_dict(),
    }
    write_json(out / "run.json", record)


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
        self.report = EmbedReport()
        self.hashes = store.hashes()
        self.schema = schema(store.manifest.dim)
        self.seen: set[str] = set()
        self.metadata: list[dict[str, Any]] = []
        self.done: list[tuple[dict[str, Any], bool]] = []  # finished rows, and whether the store has them
        self.failure: BaseException | None = None
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
        try:
            for _ in self.work():
                now = time.perf_counter()
                if len(self.done) >= self.options.shard_rows or now - last > SHARD_SECONDS:
                    self._commit()
                    last = now
        finally:  # on Ctrl-C or a failing model too: what is finished is kept
            self._commit()
            self.update_metadata()
            self.report.seconds = time.perf_counter() - started
        if self.failure is not None:
            raise self.failure
        self._finish()
        self.report.seconds = time.perf_counter() - started

    def first(self, number: int | str, id: str) -> bool:
        """Count a product; False, and set aside, if its id came before."""
        self.report.read += 1
        if id in self.seen:
            self.note(Problem(number, "id", "the id came before: the first row stays", id))
            return False
        self.seen.add(id)
        return True

    def note(self, problem: Problem) -> None:
        with self.lock:  # both threads of `_Here` report
            if problem.fatal:
                self.report.set_aside += 1
                if problem.id:
                    self.seen.add(problem.id)  # the feed lists it, so it does not leave the store
                if problem.field == "file":  # how readers say that the rest of the feed was not read
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
        gone = [id for id in self.hashes if id not in self.seen]
        if gone and not self.report.read:
            raise UserError(
                f"the feed holds no usable product, so none of the {len(gone)} products in "
                f"{self.store.folder} was removed; see rejects.jsonl there."
            )
        self.store.remove(gone)
        self.report.removed = len(gone)
        if self.commits or gone:
            self.store.compact()
        self.report.rows = len(self.store)


@dataclass
class _Pending:
    """A product that the model is reading."""

    row: int | str
    draft: Draft


class _Here(Run):
    """A pass in this process. `_changed` runs in the engine's reading thread, the rest in the caller's."""

    def __init__(
        self,
        rows: Iterator[tuple[int | str, Product | Problem]],
        share: Callable[[], float | None],
        root: str | None,
        fetcher: images.Fetcher | None,
        *shared: Any,
    ) -> None:
        super().__init__(*shared)
        self.source, self._share, self.fetcher = rows, share, fetcher
        self.root = root  # pictures outside it are refused, through links too
        self.pending: dict[str, _Pending] = {}

    def share(self) -> float | None:
        return self._share()

    @property
    def waiting(self) -> int:
        return len(self.pending) + len(self.metadata)

    def work(self) -> Iterator[None]:
        stream = self.model.encode_iter(
            self._changed(),
            reason=self.options.reason,
            batch_tokens=self.options.batch_tokens,
            on_error="report",
        )
        for part in stream:
            self._take(part)
            yield
        if self.pending and self.failure is None:
            raise RuntimeError(f"the model gave no result for {len(self.pending)} products")

    def _changed(self) -> Iterator[Product]:
        """Products that the model has to read, with the pictures' bytes inside."""
        while True:
            try:
                number, item = next(self.source)
            except StopIteration:
                self.report.complete = self.failure is None
                return
            except Exception as error:  # raised again by `go`, after the finished rows are stored
                self.failure = error
                return
            if isinstance(item, Problem):
                self.note(item)
                continue
            product = self._classify(number, item) if self.first(number, item.id) else None
            if product is not None:
                yield product
            if len(self.metadata) >= self.options.shard_rows:
                self.update_metadata()

    def _classify(self, number: int | str, product: Product) -> Product | None:
        """Decide what a product needs; the product to embed, or None."""
        try:
            one = draft(
                product,
                self.model.prompt,
                self.options.reason,
                self.hashes.get(product.id),
                fetcher=self.fetcher,
                root=self.root,
                allow_text_only=self.options.allow_text_only,
            )
        except Refused as error:
            self.note(Problem(number, error.field, error.reason, product.id))
            return None
        if one.state == "unchanged":
            self.report.unchanged += 1
            return None
        if one.state == "metadata":
            with self.lock:
                self.metadata.append(one.row)
            return None
        for warning in one.warnings:
            self.note(Problem(number, "images", warning, product.id, fatal=False))
        # The pictures' bytes go to the model only: they are not kept until the row is finished.
        bare = product.model_copy(update={"images": ()})
        self.pending[product.id] = _Pending(number, replace(one, product=bare))
        return one.product

    def _take(self, part: Any) -> None:
        """Rows from a part of the model's output; a vector that is not a unit vector is set aside."""
        for problem in part.problems:
            waiting = self.pending.pop(problem.id)
            reason = problem.reason + kept(waiting.draft.known)
            self.note(replace(problem, row=waiting.row, reason=reason))
        for i, id in enumerate(part.ids):
            waiting = self.pending.pop(id)
            try:
                row = finished(
                    waiting.draft,
                    part.vectors[i],
                    part.weights[i],
                    str(part.rationales[i]),
                    part.valid[i],
                    part.tokens[i],
                )
            except Refused as error:
                self.note(Problem(waiting.row, error.field, error.reason, id))
                continue
            self.done.append((row, waiting.draft.known))


# --------------------------------------------------------------------------------------------- feed


def _rows(
    feed: Feed, options: Options
) -> tuple[Iterator[tuple[int | str, Product | Problem]], Callable[[], float | None], str | None]:
    """(number, product or problem) of each row, the share read so far, and the folder of the pictures.

    Products that a program passes may have their pictures anywhere: they are its own.
    """
    if not isinstance(feed, str | Path):
        return ((number, item) for number, item in enumerate(feed, 1)), lambda: None, None
    from moonshelf.feeds import DIALECTS, open_feed

    dialect, source = open_feed(feed, options.dialect, images_root=options.images_root)
    rows = DIALECTS[dialect](source)
    first = next(rows, None)  # an unusable feed raises here, before anything is written
    if first is None:
        raise UserError(f"{source.name} holds no records.")

    def flat() -> Iterator[tuple[int | str, Product | Problem]]:
        for row in itertools.chain((first,), rows):
            for problem in row.problems:
                yield row.number, problem
            if row.product is not None:
                yield row.number, row.product

    return flat(), source.progress, source.images_root


def _file_hash(path: str | None) -> str | None:
    if path is None or not Path(path).is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Progress:
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

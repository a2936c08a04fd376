"""From a feed to the store: only what changed is read by the model, and a killed run goes on.

Each product has two hashes. `content_hash` covers what the model reads: the prompt's text, the bytes of
the pictures, the reasoning mode; if it changes the row is embedded again. `record_hash` covers the whole
record; if only that changes (a price, an availability) the row is updated and the model is not called.
Pictures are read once, and the bytes that were hashed are the bytes that are embedded.

Rows are committed in shards of about 512, or each minute: what a kill -9 can cost is the shard in hand.
Products that left the feed leave the store, but only after the feed was read to its end, with every row's id,
and not if they are more than a share of the catalogue: that asks. A row that is set aside (broken picture, no
text) keeps the version that an earlier run stored, if there is one, because the feed still lists the product.
A folder keeps its reasoning mode until somebody names another, which is what drops rationales.
Memory does not grow with the feed but for keys and hashes (`known`).

With a `cluster` the products are read and computed by Ray's workers (`ray_embed`). What is counted, set aside
and committed is the same code, and this process is the only one that writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonshelf import images
from moonshelf.catalogue.manifest import NAME as MANIFEST
from moonshelf.catalogue.manifest import Encoder, Manifest, check_place, versions, write_json, writing
from moonshelf.catalogue.run import EmbedReport, Options, Progress, Run
from moonshelf.catalogue.store import Store
from moonshelf.catalogue.upsert import Draft, Refused, draft, finished, kept
from moonshelf.errors import Problem, UserError
from moonshelf.product import Product

if TYPE_CHECKING:
    from moonshelf.catalogue.ray_embed import Cluster

REASONS = ("off", "on", "auto")

Feed = str | Path | Iterable[Product | Problem]


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
    out, name = Path(out), model_name or "the model passed"
    options = checked(options or Options(), out)
    model = prepared(model, options)
    make: Callable[..., Run]
    if cluster is None:
        make = partial(_Here, *_rows(feed, options), fetcher)
    else:
        from moonshelf.catalogue.ray_embed import Away
        from moonshelf.feeds.parts import cut

        parts = cut(feed, options.dialect, options.images_root, **options.reading)
        make = partial(Away, cluster, parts, fetcher)
    check_place(out)
    out.mkdir(parents=True, exist_ok=True)
    with writing(out):
        manifest = Manifest.of(model, name, options.mode)
        store = Store.open(out, create=manifest)
        store.manifest.check(model, name, out)
        store.upgrade()
        if store.manifest.reason != options.reason:
            store.manifest = replace(store.manifest, reason=options.mode)
            store.manifest.write(out)
        with open(out / "rejects.jsonl", "w", encoding="utf-8") as rejects:
            run = make(store, model, options, rejects, on_commit)
            try:
                with Progress(progress, run):
                    run.go()
            finally:  # an interrupted run is on record too, with `complete` false
                _write_run(out, feed, model, name, options, run.report)
    return run.report


def ready(feed: Feed, out: Path, options: Options, cluster: Cluster | None = None) -> None:
    """Raises UserError for what is wrong with a call and can be known without the model."""
    check_place(out)
    checked(options, out)
    if isinstance(feed, str | Path) and cluster is None:
        _rows(feed, options)


def checked(options: Options, out: Path) -> Options:
    """The options with the reasoning mode of the folder where they name none. Raises UserError."""
    if options.reason is None:
        there = (out / MANIFEST).exists()
        options = replace(options, reason=Manifest.read(out).reason if there else "off")
    if options.reason not in REASONS:
        raise UserError(f"reason must be one of {', '.join(REASONS)}, not '{options.reason}'.")
    if options.batch_tokens < 1 or options.shard_rows < 1:
        raise UserError("batch tokens and shard rows must be at least 1.")
    if not 0 <= options.max_removed <= 1:
        raise UserError("the share that may be removed lies between 0 and 1.")
    return options


def prepared(model: Any, options: Options) -> Encoder:
    """The model as the options want it: precision, device, and who writes its rationales."""
    if options.precision is not None:
        from moonshelf.model.precision import PRECISIONS

        if options.precision not in PRECISIONS:
            raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, not '{options.precision}'.")
        model.precision = options.precision
    if options.device is not None:
        from moonshelf.model.precision import put_on

        put_on(model, options.device)
    if options.writer:
        from moonshelf.model.writers import opened

        if options.reason != "on":
            raise UserError("a writer writes for every product: set reason to on.")
        model = opened(model, options.writer)
    encoder: Encoder = model
    return encoder


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
            reason=self.options.mode,
            batch_tokens=self.options.batch_tokens,
            on_error="report",
        )
        for part in stream:
            self._take(part)
            yield
        if self.pending and self.failure is None and not self.stopped.is_set():
            raise RuntimeError(f"the model gave no result for {len(self.pending)} products")

    def _changed(self) -> Iterator[Product]:
        """Products that the model has to read, with the pictures' bytes inside."""
        while not self.stopped.is_set():
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
                self.options.mode,
                self.known.get(product.id),
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
    from moonshelf.feeds import open_feed, started

    dialect, source = open_feed(feed, options.dialect, images_root=options.images_root, **options.reading)
    rows = started(dialect, source)  # an unusable feed raises here, before anything is written

    def flat() -> Iterator[tuple[int | str, Product | Problem]]:
        for row in rows:
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

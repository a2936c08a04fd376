"""From a feed to the store: only what changed is read by the model, and a killed run goes on.

Read downwards: `embed_feed` opens the feed and the store, `embed_rows` prepares products, has the engine read
those that are new or changed, and gives every row's fate to `EmbedRun.take`, which commits it (`commits`).

Products that left the feed leave the store, but only after the feed was read to its end, with every row's id,
and not if they are more than a share of the catalogue: that asks. A row that is rejected (broken picture, no
text) keeps the version that an earlier run stored, if there is one, because the feed still lists the product.
A folder keeps its reasoning mode until somebody names another, which is what drops rationales.

With a cluster (`scale.ray`) workers read and compute by the same `embed_rows`, and this process alone writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

from moonshelf import images
from moonshelf.catalogue import manifest
from moonshelf.catalogue.commits import SHARD_ROWS, EmbedReport, EmbedRun, RowResult
from moonshelf.catalogue.manifest import NAME, Manifest, check_place, versions, writing
from moonshelf.catalogue.rows import Hashes, PreparedRow, RowRejected, build_row, kept, prepare_row
from moonshelf.catalogue.store import Store
from moonshelf.errors import Problem, UserError
from moonshelf.files import write_json
from moonshelf.model.encoders.base import IMAGE, TEXT, Encoder, Reason, check_mode
from moonshelf.model.encoders.stock import short_name
from moonshelf.product import Product

REASONS = ("off", "on", "auto")

Feed = str | Path | Iterable[Product | Problem]
Numbered = tuple[Any, Product]  # a row's number or name in the feed


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
    writer_keys: str | None = None  # file of the attributes that it is asked for, by category
    precision: str | None = None  # what the model computes in; None: as it does already
    device: str | None = None  # where; None: where it is
    max_removed: float = 0.1  # share of the products that may go because a feed no longer lists them
    allow_removals: bool = False  # any number may go

    @property
    def mode(self) -> Reason:
        """The reasoning mode of a run, once `checked` has filled in the folder's."""
        return cast(Reason, self.reason or "off")

    @property
    def reading(self) -> dict[str, Any]:
        """How the feed is read, as `feeds.read_feed` takes it."""
        return {"fields": self.fields, "encoding": self.encoding, "currency": self.currency}


class Work(Protocol):
    """The reading and computing of a run: in this process, or on Ray's workers."""

    def share(self) -> float | None:
        """Share of the feed that was read, None where its length is not known."""

    def steps(self, run: EmbedRun, model: Encoder, options: Options) -> Iterator[None]:
        """Give `run.take` what became of each row, a part of the feed a step."""


class Cluster(Protocol):
    """Workers that compute instead of this process: `scale.ray.Cluster`."""

    def work(self, feed: Feed, options: Options, fetcher: images.Fetcher | None) -> Work: ...


def embed_feed(
    feed: Feed,
    out: str | Path,
    model: Encoder | str,
    *,
    model_name: str = "",
    options: Options | None = None,
    fetcher: images.Fetcher | None = None,
    progress: bool = False,
    on_commit: Callable[[list[str]], None] | None = None,
    cluster: Cluster | None = None,
    load: Callable[[str], Encoder] | None = None,
) -> EmbedReport:
    """Bring the catalogue folder `out` up to date with a feed (a path, or products and problems).

    `on_commit` is called with the ids of each shard once they are durable. With a `cluster` its workers
    compute, and the feed may also be Parquet or Lance in many files or on object storage. `load` gets the
    model of a name, by default `from_pretrained`. Raises UserError if the feed or the folder cannot be used,
    which is found out before a model is loaded, or if the folder holds vectors of another model.
    """
    out, name = Path(out), model_name or manifest.name_of(model)
    check_place(out)
    options = checked(options or Options(), out)
    # An unusable feed raises here.
    work: Work = cluster.work(feed, options, fetcher) if cluster else LocalEmbedRun(feed, options, fetcher)
    model = (load or manifest.load_model)(model) if isinstance(model, str) else model
    encoder = prepared(model, options)
    out.mkdir(parents=True, exist_ok=True)
    with writing(out):
        store = Store.open(out, create=Manifest.of(encoder, name, options.mode))
        store.manifest.check(encoder, name, out)
        manifest.settle_writing(out, encoder, options.mode)
        store.upgrade()
        if store.manifest.reason != options.reason:
            store.manifest = store.manifest.write(out, reason=options.mode)
        with open(out / "rejects.jsonl", "w", encoding="utf-8") as rejects:
            run = EmbedRun(store, rejects, options.shard_rows, on_commit)
            try:
                run.follow(work.steps(run, encoder, options), work.share if progress else None)
                run.report.note = unread(encoder, short_name(name), run.report, out)
                run.finish(options.max_removed if not options.allow_removals else None)
            finally:  # an interrupted run is on record too, with `complete` false
                _write_record(out, feed, encoder, name, options, run.report)
    return run.report


def checked(options: Options, out: Path) -> Options:
    """The options with the reasoning mode of the folder where they name none. Raises UserError."""
    if options.reason is None:
        there = (out / NAME).exists()
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
    if options.precision is not None or options.device is not None:
        model = manifest.placed(model, options.precision, options.device)
    if options.writer:
        from moonshelf.model.writers import opened

        if options.reason != "on":
            raise UserError("a writer writes for every product: set reason to on.")
        model = opened(model, options.writer, options.writer_keys)
    encoder: Encoder = model
    check_mode(encoder, "the model", options.mode)
    return encoder


def unread(model: Encoder, name: str, report: EmbedReport, folder: Path) -> str:
    """What of the products a model does not read, in one sentence; "" where it reads both kinds.

    Raises UserError where it could read none of them.
    """
    only = {TEXT: ("text", "pictures"), IMAGE: ("pictures", "text")}.get(model.reads)
    if only is None:
        return ""
    stored = report.new + report.changed + report.metadata_only + report.unchanged
    if report.rejected and not stored:
        raise UserError(
            f"{name} reads {only[0]} alone, and none of the {report.read:,} products has any of use: "
            f"name a model that reads {only[1]}; each product's reason is in {folder / 'rejects.jsonl'}."
        )
    return f"{name} reads {only[0]} alone: {only[1]} are kept for people and for words, not in the vectors"


def embed_rows(
    products: Iterator[Numbered],
    model: Encoder,
    options: Options,
    known: Callable[[str], Hashes | None],
    take: Callable[[RowResult], None],
    fetcher: images.Fetcher | None,
    root: str | None,
) -> Iterator[None]:
    """Numbered products, of which no id comes twice, to what became of each, which `take` is given: from the
    engine's reading thread of those that the model need not read, from the caller's of the others. A step
    is a part of the engine's output. Pictures outside of `root` are refused, through links too."""
    waiting: dict[str | None, tuple[Any, list[Problem], PreparedRow]] = {}
    sees = "image" in model.reads  # else pictures are for people to look at, and no matter where they fail

    def to_read() -> Iterator[Product]:
        for number, product in products:
            try:
                one = prepare_row(
                    product, model.prompt, options.mode, known(product.id), fetcher=fetcher, root=root,
                    allow_text_only=options.allow_text_only or not sees,
                )  # fmt: skip
            except RowRejected as error:
                take(_rejected(number, product.id, error))
                continue
            noted = [Problem(number, "images", why, product.id, fatal=False) for why in one.warnings if sees]
            if one.state in ("unchanged", "metadata"):
                take(RowResult(number, one.state, product.id, noted, one.row))
                continue
            # The pictures' bytes go to the model only: they are not kept until the row is finished.
            bare = replace(one, product=product.model_copy(update={"images": ()}))
            waiting[product.id] = number, noted, bare
            yield one.product

    for part in model.encode_iter(
        to_read(), reason=options.mode, batch_tokens=options.batch_tokens, on_error="report"
    ):
        for problem in part.problems:
            number, noted, one = waiting.pop(problem.id)
            problem = replace(problem, row=number, reason=problem.reason + kept(one.known))
            take(RowResult(number, "rejected", one.product.id, [*noted, problem]))
        for i, id in enumerate(part.ids):
            number, noted, one = waiting.pop(id)
            try:
                row = build_row(
                    one, part.vectors[i], part.weights[i], str(part.rationales[i]), part.valid[i],
                    part.tokens[i],
                )  # fmt: skip
            except RowRejected as error:
                take(_rejected(number, id, error, noted))
            else:
                take(RowResult(number, one.state, id, noted, row))
        yield
    if waiting:
        raise RuntimeError(f"the model gave no result for {len(waiting)} products")


def _rejected(number: Any, id: str, error: RowRejected, noted: Iterable[Problem] = ()) -> RowResult:
    return RowResult(number, "rejected", id, [*noted, Problem(number, error.field, error.reason, id)])


class LocalEmbedRun:
    """Reads and computes in this process."""

    def __init__(self, feed: Feed, options: Options, fetcher: images.Fetcher | None) -> None:
        self.fetcher = fetcher
        self.share: Callable[[], float | None] = lambda: None
        self.root: str | None = None
        if not isinstance(feed, str | Path):  # pictures may be anywhere: they are the program's own
            self.rows: Iterator[tuple[Any, Product | Problem]] = enumerate(feed, 1)
            return
        from moonshelf.feeds import open_feed, started

        dialect, source = open_feed(feed, options.dialect, images_root=options.images_root, **options.reading)
        self.share, self.root = source.progress, source.images_root
        self.rows = (
            (row.number, item)
            for row in started(dialect, source)
            for item in (*row.problems, row.product)
            if item is not None
        )

    def steps(self, run: EmbedRun, model: Encoder, options: Options) -> Iterator[None]:
        return embed_rows(self._fresh(run), model, options, run.known.get, run.take, self.fetcher, self.root)

    def _fresh(self, run: EmbedRun) -> Iterator[Numbered]:
        """Products, each id once; problems are noted on the way."""
        while not run.stopped.is_set():
            try:
                number, item = next(self.rows)
            except StopIteration:
                run.report.complete = run.failure is None
                return
            except Exception as error:  # raised again by `follow`, after the finished rows are stored
                run.failure = error
                return
            if isinstance(item, Problem):
                run.note(item)
            elif run.fresh(number, item.id):
                yield number, item


def _write_record(
    out: Path, feed: Feed, model: Encoder, name: str, options: Options, report: EmbedReport
) -> None:
    source = Path(feed) if isinstance(feed, str | Path) else None
    digest = None
    if source is not None and source.is_file():
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    record = {
        "command": "embed",
        "feed": str(feed) if source else None,
        "data_sha256": digest,
        "config": vars(options),
        "model": name,
        "fingerprint": model.fingerprint,
        "seed": None,  # nothing here is random
        "versions": versions(),
        "report": report.as_dict(),
    }
    write_json(out / "run.json", record)

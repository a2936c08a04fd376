"""Bulk embedding on Ray Data: workers read and compute, the driver alone writes.

A feed is read in parts (`feeds.parts`), its rows go in blocks of `block_rows` to a pool of actors that each
hold the engine. An actor does all that costs by `embed.embed_rows`, as a run in one process does. Blocks come
back in the feed's order, and the driver gives each row to `EmbedRun.take`, which commits shard by shard under
the folder's lock; so nothing but the shard in hand can be lost, and the next run goes on from there.

Ray starts a lost worker again and gives its block to another: what a block gives depends on the block
alone, so it does not matter who computes it, or how often. A vector can differ from that of a run in one
process in its last digits, because other products are in its batch; the same block gives the same bytes.

Nothing is reported to Ray's makers, and a cluster that is started here listens on this machine only.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa

from moonshelf import images
from moonshelf.catalogue import manifest
from moonshelf.catalogue.commits import EmbedRun, Known, RowResult
from moonshelf.catalogue.embed import Feed, Numbered, Options, embed_rows, prepared
from moonshelf.catalogue.rows import schema
from moonshelf.errors import Problem, UserError
from moonshelf.feeds.parts import Item, Part, cut
from moonshelf.model.encoders.base import Encoder
from moonshelf.product import ImageRef, Product

BLOCK_ROWS = 256
_READ_ROWS = 64  # rows of a feed that are handed on together
_READ_BYTES = 1 << 20  # a block of a feed before it is cut to rows: the first ones are not waited for
_READ_CPUS = 0.25  # reading a feed is light, the pictures are read by who embeds them

# Rows on their way to a worker. What may hold text of no valid Unicode, which Arrow cannot, is ASCII JSON.
FEED = pa.schema(
    [
        ("number", pa.string()),  # JSON: a number or a name
        ("share", pa.float64()),  # of the feed
        ("problem", pa.string()),  # JSON of a Problem, or null
        ("product", pa.string()),  # JSON of a Product without its pictures, or null
        (
            "images",
            pa.list_(
                pa.struct([(name, pa.string()) for name in ("path", "url", "role")] + [("data", pa.binary())])
            ),
        ),
    ]
)
# What comes back, before the columns of the store; `state` is a RowResult's, or problem, or repeated.
_OWN = ("_number", "_share", "_state", "_id", "_problems", "_record")


@dataclass(frozen=True)
class Cluster:
    """Where and how wide to compute. `address`: local starts Ray on this machine, auto finds it running."""

    address: str = "local"
    workers: int | None = None  # at most; None: as many as there is room for
    cpus: float = 1.0  # of one worker
    gpus: float = 0.0
    block_rows: int = BLOCK_ROWS
    load: Callable[[], Encoder] | None = None  # how a worker gets the model; None: by its folder or name

    def __post_init__(self) -> None:
        workers = 1 if self.workers is None else self.workers
        if self.block_rows < 1 or self.cpus <= 0 or self.gpus < 0 or workers < 1:
            raise UserError("workers, their CPUs and the rows of a block must be more than 0.")

    def work(self, feed: Feed, options: Options, fetcher: images.Fetcher | None) -> RayEmbedRun:
        """Raises UserError if the feed is unusable."""
        return RayEmbedRun(self, cut(feed, options.dialect, options.images_root, **options.reading), fetcher)


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Ray, running: one that the program has started, that of an address, or a new one until the end."""
    local = cluster.address == "local"
    # Ray reads these when it is imported, which is why it is imported nowhere above.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a warning about what comes one day
    if local:  # as on other systems than Linux: all ports on the loopback interface
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"embedding on Ray needs {error.name}: pip install 'moonshelf[scale]'.") from None
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it logs is raised as well
    settings: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if local:
        settings["include_dashboard"] = False
    try:
        with warnings.catch_warnings():
            # What Ray forks becomes another program at once, so LanceDB's threads are not missed in it.
            warnings.filterwarnings("ignore", message="lancedb fork support")
            ray.init(address=cluster.address, **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"Ray at {cluster.address!r} cannot be used: {reason}") from None
    try:
        yield
    finally:
        ray.shutdown()


class RayEmbedRun:
    """Reads and computes a feed on Ray's workers; `share` is how much of it was read."""

    def __init__(self, cluster: Cluster, parts: list[Part], fetcher: images.Fetcher | None) -> None:
        self.cluster, self.parts, self.fetcher = cluster, parts, fetcher
        self._share: float | None = None

    def share(self) -> float | None:
        return self._share

    def steps(self, run: EmbedRun, model: Encoder, options: Options) -> Iterator[None]:
        """Give `run` what became of each row, a block a step."""
        source = getattr(model, "source", None)
        if self.cluster.load is None and not source:
            raise UserError("Ray's workers load the model by themselves: save it to a folder first.")
        settings = {
            "load": self.cluster.load or partial(_load, str(source)), "fingerprint": model.fingerprint,
            "known": run.known, "options": options, "fetcher": self.fetcher, "root": self.parts[0].root,
        }  # fmt: skip
        with connected(self.cluster):
            try:
                for table in self._results(settings):
                    for row in table.to_pylist():
                        self._receive(row, run)
                    yield
            except Exception as error:
                raise _mistake(error) or error from None
        run.report.complete = run.failure is None

    def _results(self, settings: dict[str, Any]) -> Iterable[pa.Table]:
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        context = DataContext.get_current().copy()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.target_max_block_size = _READ_BYTES
        context.raise_original_map_exception = True
        context.execution_options.preserve_order = True
        with DataContext.current(context):
            rows = ray.data.read_datasource(
                _source(self.parts), num_cpus=_READ_CPUS, override_num_blocks=len(self.parts)
            ).repartition(target_num_rows_per_block=self.cluster.block_rows, strict=True)
            results = rows.map_batches(
                Worker,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(min_size=1, max_size=self.cluster.workers),
                num_cpus=self.cluster.cpus,
                num_gpus=self.cluster.gpus,
                fn_constructor_kwargs=settings | {"known": ray.put(settings["known"])},
            )
            yield from results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)

    def _receive(self, row: dict[str, Any], run: EmbedRun) -> None:
        """One row of the feed, as a worker left it."""
        number, share, state, id, problems, record = (row.pop(name) for name in _OWN)
        self._share = share if share is not None else self._share
        noted = [Problem(**problem) for problem in json.loads(problems)]
        if state == "problem":
            run.note(noted[0])
        elif run.fresh(json.loads(number), json.loads(id)):
            kept = json.loads(record) if state == "metadata" else row
            run.take(RowResult(json.loads(number), state, json.loads(id), noted, kept))


def _source(parts: list[Part]) -> Any:
    """The parts of a feed as a source of Ray Data."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class Feed(Datasource):
        @property
        def supports_distributed_reads(self) -> bool:
            return all(part.everywhere for part in parts)

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(partial(_blocks, part), unknown) for part in parts]

    return Feed()


def _blocks(part: Part) -> Iterator[pa.Table]:
    items = part.read()
    while chunk := list(islice(items, _READ_ROWS)):
        yield pa.Table.from_pylist([_packed(item) for item in chunk], FEED)


def _packed(item: Item) -> dict[str, Any]:
    number, share, thing = item
    row: dict[str, Any] = {"number": json.dumps(number), "share": share}
    if isinstance(thing, Problem):
        return {**row, "problem": json.dumps(thing.as_dict())}
    pictures = [ref.model_dump() for ref in thing.images]
    return {**row, "product": json.dumps(thing.model_dump(exclude={"images"})), "images": pictures}


def _unpacked(row: dict[str, Any]) -> Product:
    pictures = tuple(ImageRef(**picture) for picture in row["images"])
    return Product(**json.loads(row["product"]), images=pictures)


class Worker:
    """An actor's work: a block of rows of the feed in, a block of results out, row for row."""

    def __init__(
        self,
        load: Callable[[], Encoder],
        fingerprint: str,
        known: Any,  # a `Known`, or Ray's reference to one
        options: Options,
        fetcher: images.Fetcher | None,
        root: str | None,
    ) -> None:
        # An actor that fails while it is made would not tell the driver why: it says so at its first block.
        self.mistake: UserError | None = None
        try:
            self.model = load()
            if self.model.fingerprint != fingerprint:
                raise UserError(
                    f"a worker found another model ({self.model.fingerprint[:12]}) where the driver has "
                    f"{fingerprint[:12]}: put the same files on every machine."
                )
            self.model = prepared(self.model, options)
        except UserError as error:
            self.mistake = error
            return
        self.known: Known = known if isinstance(known, Known) else _fetch(known)
        self.options, self.fetcher, self.root = options, fetcher, root
        store = [pa.field(field.name, field.type) for field in schema(self.model.dim)]
        own = [pa.field(name, pa.float64() if name == "_share" else pa.string()) for name in _OWN]
        self.schema = pa.schema([*own, *store])

    def __call__(self, block: pa.Table) -> pa.Table:
        if self.mistake is not None:
            raise self.mistake
        rows = block.to_pylist()
        numbers = [json.loads(row["number"]) for row in rows]
        results: list[dict[str, Any]] = [
            {"_number": row["number"], "_share": row["share"], "_state": "problem",
             "_problems": f"[{row['problem'] or ''}]"}
            for row in rows
        ]  # fmt: skip

        def products() -> Iterator[Numbered]:
            """By their places in the block, each id once: the driver tells of the others."""
            seen: set[str] = set()
            for place, row in enumerate(rows):
                if row["product"] is not None:
                    product = _unpacked(row)
                    results[place] |= {"_id": json.dumps(product.id), "_state": "repeated"}
                    if product.id not in seen:
                        seen.add(product.id)
                        yield place, product

        def take(result: RowResult) -> None:
            place = int(result.number)
            problems = [replace(one, row=numbers[place]).as_dict() for one in result.problems]
            results[place] |= {"_state": result.state, "_problems": json.dumps(problems)}
            if result.state == "metadata":
                results[place]["_record"] = json.dumps(result.row)
            elif result.state in ("new", "changed"):
                results[place] |= result.row or {}

        for _ in embed_rows(
            products(), self.model, self.options, self.known.get, take, self.fetcher, self.root
        ):
            pass
        return pa.Table.from_pylist(results, self.schema)


def _fetch(reference: Any) -> Any:
    import ray

    return ray.get(reference)


def _load(source: str) -> Encoder:
    import ray

    model = manifest.load_model(source)
    if ray.get_gpu_ids():
        model.to("cuda")  # type: ignore[attr-defined]
    return model


def _mistake(error: BaseException | None) -> UserError | None:
    """The mistake of the user's that a worker has met, from under what Ray wraps it in."""
    while error is not None:
        inner = getattr(error, "cause", None) or error.__cause__
        if isinstance(error, UserError) and not isinstance(inner, UserError):
            return error
        error = inner
    return None

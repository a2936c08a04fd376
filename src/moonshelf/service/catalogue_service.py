"""What the routes call: one catalogue and one model for many callers at once. Nothing here knows HTTP.

Pictures are decoded, texts cut into tokens, links fetched and the store read in threads of their own kind
(`pools`), in small portions, so that a large request does not keep a small one waiting; the model computes in
the batcher's thread; writes are gathered, and whatever arrived while one commit was written goes into the
next. A reply to an upsert or a removal is given after the commit that holds it. Work whose caller has gone
ends at the next picture.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache, TTLCache

from moonshelf import images
from moonshelf.catalogue import vector_index
from moonshelf.catalogue.commits import Committed, Writer
from moonshelf.catalogue.manifest import load_model, placed, saved_model
from moonshelf.catalogue.rows import PreparedRow, RowRejected, build_row, prepare_row
from moonshelf.catalogue.search import Catalogue, SearchResult
from moonshelf.catalogue.store import Store
from moonshelf.errors import Problem, UserError
from moonshelf.model.encoders import rerankers
from moonshelf.model.encoders.base import Encoder, asking
from moonshelf.model.encoders.rerankers import RerankError
from moonshelf.model.encoders.stock import parts, short_name
from moonshelf.product import ImageRef, Product
from moonshelf.service.batcher import Batcher, Kind, Overloaded, Reranking
from moonshelf.service.body import Held
from moonshelf.service.inputs import BadInput
from moonshelf.service.monitor import Monitor
from moonshelf.service.pools import Pools
from moonshelf.service.schemas import Reason
from moonshelf.service.settings import Settings
from moonshelf.service.views import COLUMNS

if TYPE_CHECKING:
    from moonshelf.model.encoders.base import ReadRow, Written
    from moonshelf.service.fetching import Fetching

log = logging.getLogger("moonshelf.service")

ABSOLUTE = re.compile(r"(?<![\w/:.<>-])/(?:[^\s/'\",:;]+/)+[^\s'\",:;]*")  # a path, no part of an address
REASONS: tuple[Reason, ...] = ("off", "on", "auto")
PORTION = 16  # products that are prepared at a time
# Seconds that direct queries may pass work that takes longer; ours.
HANDICAP = {"off": 0.0, "auto": 0.2, "on": 0.3, "judge": 0.5}
DRAFTS_AGAIN = 3  # times that an upsert is drafted anew because another writer was quicker


Numbered = tuple[int, tuple[Product, str]]


def batched_by_picture(numbered: Sequence[Numbered]) -> Iterator[list[Numbered]]:
    """Texts together, since tokens are quicker made of many; each product with pictures by itself."""
    if texts := [one for one in numbered if not one[1][0].images]:
        yield texts
    yield from ([one] for one in numbered if one[1][0].images)


@dataclass(frozen=True)
class Encoded:
    """What the model made of one product. `read_tokens` counts what it read."""

    written: Written
    read_tokens: int


@dataclass
class _Change:
    """One request's part of the next commit."""

    rows: list[dict[str, Any]]
    metadata: list[PreparedRow]
    removed: list[str]
    done: asyncio.Future[Committed]


class CatalogueService:
    """The catalogue of `settings.folder` with its model. `open` loads it, `close` ends its threads."""

    def __init__(self, settings: Settings, monitor: Monitor) -> None:
        # Whole, so that `public` finds it in messages.
        self.settings = settings.model_copy(update={"folder": settings.folder.absolute()})
        self.monitor = monitor
        self.catalogue: Catalogue
        self.model: Encoder
        self.batcher: Batcher
        self.fetching: Fetching | None = None
        self.reranking: Reranking | None = None
        self._places: set[str] = set()  # beside the folder's own
        self._cache: LRUCache[bytes, Encoded] = LRUCache(max(1, settings.cache_items))
        self._computed: TTLCache[tuple[Any, ...], Any] = TTLCache(64, ttl=600)
        self._lock = threading.Lock()
        self.pools = Pools()
        self._changes: list[_Change] = []
        self._flushing: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------------- beginning, end

    def open(self, extra: Mapping[str, Kind] | None = None) -> None:
        """Load model and index, and start the model's thread, which does work of `extra` kinds too.

        Raises UserError for a folder, model or host list that cannot be used.
        """
        import torch

        settings = self.settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        name = settings.model or saved_model(settings.folder)
        self.catalogue = Catalogue.open(settings.folder, name)  # says what is wrong before a model is loaded
        assert name is not None
        computed = f"{settings.backend}:{name}" if settings.backend else name
        self.model = placed(load_model(computed), settings.precision, settings.device)
        self.asker = asking(self.model)
        self.catalogue = Catalogue.open(settings.folder, self.model)
        self.catalogue.store.manifest.check(self.model, name, settings.folder)
        self.name = short_name(name)  # of a folder, clients see its name
        places = (name, str(parts(name)[1]), self.catalogue.store.place)
        self._places = {place for place in places if place != self.name}
        self.writer = Writer(self.catalogue.store, compact_after=0)
        if settings.reranker:
            reranker = rerankers.load(settings.reranker)
            self.reranking = Reranking(reranker, settings.rerank_s, settings.max_queue_items, self.monitor)
        if settings.remote_hosts:
            from moonshelf.service.fetching import Fetching

            self.fetching = Fetching(settings.remote_hosts, self.pools)
        if not (settings.folder / "index" / "index.json").exists() and len(self.catalogue):
            with suppress(UserError):  # another writes, or we may not: the store is searched exactly
                vector_index.build(settings.folder)
        tokens, modes = settings.batch_tokens, REASONS if self.model.writes else REASONS[:1]
        kinds = {
            name: Kind(encoder.runner(reason, tokens), tokens, HANDICAP[reason])
            for reason in modes
            for name, encoder in ((reason, self.model), (self._kind(reason, True), self.asker))
        }
        self.batcher = Batcher(
            {**kinds, **(extra or {})},
            max_items=settings.max_queue_items,
            max_tokens=settings.max_queue_tokens,
            wait_s=settings.batch_wait_ms / 1000,
            observer=self.monitor,
        )
        self.monitor.queue.set_function(lambda: self.batcher.waiting)

    async def close(self) -> None:
        """Finish what was taken. Whoever runs this bounds its time: see `server`."""
        if self._flushing is not None:
            await self._flushing
        await asyncio.to_thread(self.batcher.close, self.settings.shutdown_s)
        if self.reranking is not None:
            await asyncio.to_thread(self.reranking.batcher.close, 0.0)
        self.pools.close()

    @property
    def store(self) -> Store:
        return self.catalogue.store

    def public(self, text: str) -> str:
        """A message for callers, who have no business with places on this machine."""
        folder = self.settings.folder
        places = {str(folder), str(folder.resolve()), *self._places}
        for place in sorted(places, key=len, reverse=True):  # one may begin with another
            text = text.replace(place, "FOLDER")
        return ABSOLUTE.sub("FILE", text)

    # ------------------------------------------------------------------------------------- encoding

    def _kind(self, reason: Reason, query: bool) -> str:
        """Of work; queries are another one where the model encodes them in another way."""
        return f"{reason}, query" if query and self.asker is not self.model else reason

    async def encode(
        self, products: Sequence[Product], reason: Reason, deadline: float = math.inf, query: bool = False
    ) -> list[Encoded | Problem]:
        """Vectors and rationales in the products' order; a Problem for one that cannot be read.

        `query`: they are searched for. Raises BadInput for a mode that the model does not have, Overloaded,
        Expired or Stopped.
        """
        if reason != "off" and not self.model.writes:
            raise BadInput("reason", f"the model {self.name} writes no rationales: leave it off")
        results: dict[int, Encoded | Problem] = {}
        waiting: list[tuple[int, bytes, ReadRow]] = []
        for start in range(0, len(products), PORTION):
            part = products[start : start + PORTION]
            # Decoding may take long: searches by words must not wait behind it.
            kind = "picture" if any(product.images for product in part) else "text"
            found = await self.pools.run_while_wanted(kind, self._prepare, part, reason, query)
            for place, (key, one) in enumerate(found, start):
                if isinstance(one, Encoded | Problem):
                    results[place] = one
                else:
                    waiting.append((place, key, one))
        futures = self.batcher.submit(
            self._kind(reason, query),
            [row for _, _, row in waiting],
            [row.length for _, _, row in waiting],
            deadline,
        )
        wrapped = [asyncio.wrap_future(future) for future in futures]
        try:
            written = await asyncio.gather(*wrapped)
        except BaseException:  # one failed, or the caller has gone: the others are of no use
            for future, (_, _, row) in zip(wrapped, waiting, strict=True):
                future.cancel()  # where it waits
                row.gone = True  # where it is being computed
            raise
        for (place, key, row), result in zip(waiting, written, strict=True):
            results[place] = encoded = Encoded(result, row.length)
            if result.rationale:
                self.monitor.rationales.labels("valid" if result.valid else "invalid").inc()
            if self.settings.cache_items:
                with self._lock:
                    self._cache[key] = encoded
        return [results[place] for place in range(len(products))]

    def _prepare(
        self, products: Sequence[Product], reason: Reason, query: bool, gone: threading.Event
    ) -> list[tuple[bytes, Encoded | Problem | ReadRow]]:
        """For each product its key and, from the cache, its vector, else a row for the model."""
        reader = self.asker if query else self.model
        found: dict[int, Any] = {}
        keys: list[bytes] = []
        with self.monitor.stage("prepare"):
            for i, product in enumerate(products):
                keys.append(self._key(product, self._kind(reason, query)))
                with self._lock:
                    cached = self._cache.get(keys[i])
                self.monitor.cache.labels("miss" if cached is None else "hit").inc()
                if cached is not None:
                    found[i] = cached
            missing = [(i, (product, "")) for i, product in enumerate(products) if i not in found]
            for one in batched_by_picture(missing):
                if gone.is_set():
                    raise asyncio.CancelledError
                rows, problems = reader.read_rows(one, reason)
                found |= {row.index: row for row in rows}
                found |= {int(problem.row) - 1: problem for problem in problems}
        return [(keys[i], found[i]) for i in range(len(products))]

    def _key(self, product: Product, kind: str) -> bytes:
        """Hash of all that the model reads of a product."""
        digest = hashlib.sha256(json.dumps([kind, self.model.prompt.text_of(product)]).encode())
        for ref in product.images[: self.model.prompt.max_images]:
            digest.update(hashlib.sha256(ref.data or b"").digest())
        return digest.digest()

    async def fetched(self, product: Product, param: str, held: Held) -> Product:
        """The product with its pictures' bytes inside. Raises BadInput where one cannot be fetched."""
        if len(product.images) > self.settings.max_images:
            raise BadInput(
                param,
                f"{len(product.images)} pictures are more than {self.settings.max_images}, the most taken",
            )
        if all(ref.data is not None for ref in product.images):
            return product
        found = await self._fetch(product.images, held)
        try:
            refs = [ImageRef(data=images.read_bytes(ref, fetcher=found)) for ref in product.images]
        except images.ImageError as error:
            raise BadInput(param, str(error)) from None
        return product.model_copy(update={"images": tuple(refs)})

    async def _fetch(self, refs: Sequence[ImageRef], held: Held) -> images.Fetcher | None:
        """What the links among references lead to, or why not; None where nothing is fetched."""
        urls = [ref.url for ref in refs if ref.url is not None]
        return await self.fetching.fetch(urls, held) if self.fetching is not None and urls else None

    # ------------------------------------------------------------------------------------ searching

    def reranking_step(self, param: str) -> Reranking:
        """Raises BadInput, of `param`, in a service without one."""
        if self.reranking is None:
            raise BadInput(param, "this service has no reranker: start it with --reranker MODEL")
        return self.reranking

    async def search(
        self,
        query: Product | None,
        reason: Reason,
        deadline: float = math.inf,
        rerank: bool = False,
        **options: Any,
    ) -> SearchResult:
        """As `Catalogue.search` with its `options`; the vector is from the batcher, the columns are those of
        a view. With `rerank` the first are read again, or a note says why not.

        Raises BadInput for a picture that cannot be read, UserError for the rest.
        """
        vector = None
        if query is not None and options["mode"] != "text" and (query.images or query.title.strip()):
            (encoded,) = await self.encode([query], reason, deadline, query=True)
            if isinstance(encoded, Problem):
                raise BadInput("image" if query.images else "text", encoded.reason)
            vector = encoded.written.vector
        search, k = self.catalogue.search, options.pop("k")
        more = {"vector": vector, "columns": COLUMNS, "k": max(k, rerankers.FIRST) if rerank else k}
        with self.monitor.stage("search"):
            found: SearchResult = await self.pools.run("read", search, query, **more, **options)
        if rerank:
            step = self.reranking_step("rerank")
            try:
                if why := rerankers.why_not(step.reranker, query):
                    raise RerankError(why)
                pictures = "image" in step.reranker.reads
                pairs = await self.pools.run("read", self.catalogue.pairs, query, found.hits, pictures)
                found.rerank(await step.score(pairs, deadline), step.reranker.name)
            except (RerankError, Overloaded) as error:
                found.notes.append(f"{error}: this is the order before reranking")
        del found.hits[k:]
        return found

    def remembered(self, name: str, compute: Any, *arguments: Any) -> Any:
        """`compute(*arguments)`, kept for as long as the store does not change."""
        key = (name, self.store.version, *arguments)
        with self._lock:
            if key in self._computed:
                return self._computed[key]
        value = compute(*arguments)
        with self._lock:
            self._computed[key] = value
        return value

    # -------------------------------------------------------------------------------------- writing

    async def put(
        self,
        products: Sequence[tuple[int, Product]],
        allow_text_only: bool,
        held: Held,
        deadline: float = math.inf,
    ) -> tuple[Counter[str], list[Problem]]:
        """Store numbered products; returns counts by what was done, and what was wrong with which.

        The last of several products with one id counts. Raises Overloaded, Expired, Stopped, or UserError
        where the folder cannot be written.
        """
        reason: Reason = self.store.manifest.reason  # type: ignore[assignment]
        done: Counter[str] = Counter()
        problems: list[Problem] = []
        numbers = {product.id: number for number, product in products}
        todo = {product.id: product for _, product in products}
        for number, product in products:
            if numbers[product.id] != number:
                why = f"product {numbers[product.id]} of the request has the same id and counts"
                problems.append(Problem(number, "id", why, product.id))
        read = self.model.prompt.max_images
        found = await self._fetch([ref for one in todo.values() for ref in one.images[:read]], held)
        for _ in range(DRAFTS_AGAIN):
            drafts, refused = await self.pools.run_while_wanted(
                "picture", self._drafts, todo, numbers, reason, allow_text_only, found
            )
            problems += refused
            model_reads = [one for one in drafts if one.state in ("new", "changed")]
            rows, failed = [], set[str]()
            encoded = await self.encode([one.product for one in model_reads], reason, deadline)
            for one, result in zip(model_reads, encoded, strict=True):
                try:
                    if isinstance(result, Problem):
                        raise RowRejected(result.field, result.reason)
                    w = result.written
                    rows.append(build_row(one, w.vector, w.weights.tolist(), w.rationale, w.valid, w.tokens))
                except RowRejected as error:
                    id = one.row["id"]
                    problems.append(Problem(numbers[id], error.field, error.reason, id))
                    failed.add(id)
            metadata = [one for one in drafts if one.state == "metadata"]
            committed = await self._commit(rows, metadata, []) if rows or metadata else Committed()
            failed.update(committed.stale)
            done.update(one.state for one in drafts if one.row["id"] not in failed)
            todo = {id: todo[id] for id in committed.stale if id in todo}
            if not todo:
                return done, problems
        problems += [
            Problem(numbers[id], "row", "others keep changing it at the same time: send it again", id)
            for id in todo
        ]
        return done, problems

    def _drafts(
        self,
        todo: Mapping[str, Product],
        numbers: Mapping[str, int],
        reason: Reason,
        allow_text_only: bool,
        found: images.Fetcher | None,
        gone: threading.Event,
    ) -> tuple[list[PreparedRow], list[Problem]]:
        known = self.store.hashes(todo)
        drafts, problems = [], []
        for id, product in todo.items():
            if gone.is_set():
                raise asyncio.CancelledError
            try:
                one = prepare_row(
                    product, self.model.prompt, reason, known.get(id), fetcher=found,
                    allow_text_only=allow_text_only,
                )  # fmt: skip
            except RowRejected as error:
                problems.append(Problem(numbers[id], error.field, error.reason, id))
                continue
            drafts.append(one)
            problems += [Problem(numbers[id], "images", why, id, fatal=False) for why in one.warnings]
        return drafts, problems

    async def remove(self, ids: Sequence[str]) -> list[str]:
        """Remove products; returns the ids that were there. Raises UserError as `put`."""
        wanted = set(ids)
        committed = await self._commit([], [], list(ids))
        return [id for id in committed.removed if id in wanted]

    async def _commit(
        self, rows: list[dict[str, Any]], metadata: list[PreparedRow], removed: list[str]
    ) -> Committed:
        change = _Change(rows, metadata, removed, asyncio.get_running_loop().create_future())
        self._changes.append(change)
        if self._flushing is None or self._flushing.done():
            # A task of its own: a caller that gives up must not tear a commit that others share.
            self._flushing = asyncio.create_task(self._flush())
        return await change.done

    async def _flush(self) -> None:
        """Commit what has gathered, until nothing is left."""
        while self._changes:
            together = self._together()
            try:
                with self.monitor.stage("write"):
                    committed = await self.pools.run("write", self._store, together)
            except Exception as error:
                for change in together:
                    if not change.done.done():
                        change.done.set_exception(error)
                continue
            for change in together:
                if not change.done.done():
                    change.done.set_result(committed)
            if self.writer.due and not self._changes:
                with suppress(UserError):  # another process writes: next time
                    await self.pools.run("write", self.writer.compact)

    def _store(self, together: Sequence[_Change]) -> Committed:
        """One commit for all, and the index in memory brought up to it."""
        rows = [row for change in together for row in change.rows]
        before = self.store.version
        done = self.writer.commit(
            rows,
            [one for change in together for one in change.metadata],
            [id for change in together for id in change.removed],
            self.settings.deadline_s / 2,
        )
        after = self.store.version
        ours = bool(done.new) + bool(done.changed or done.metadata) + bool(done.removed)
        if after - before == ours:  # no other process has written in between
            ids, vectors = [row["id"] for row in rows], [row["vector"] for row in rows]
            self.catalogue.moved(before, after, ids, vectors, done.removed)
        return done

    def _together(self) -> list[_Change]:
        """The first changes that name different products: of one product, what came later is stored later."""
        taken: list[_Change] = []
        seen: set[str] = set()
        while self._changes:
            change = self._changes[0]
            ids = {row["id"] for row in change.rows} | {one.row["id"] for one in change.metadata}
            ids.update(change.removed)
            if ids & seen:
                break
            seen |= ids
            taken.append(self._changes.pop(0))
        return taken

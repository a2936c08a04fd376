"""Work of many callers for one model: a bounded queue, batches by token budget, one thread that computes.

The model belongs to one thread. A caller hands in items of a kind with their cost in tokens and gets a future
for each; the thread takes the item that has waited longest and all others of its kind that fit the budget.
While it computes, the next ones gather, so batches grow with the load by themselves; `wait_s` lets the first
item of an idle moment wait for company. Kinds that take long have a handicap in seconds: short work passes
them, but nothing waits for ever.

A future that is cancelled before its turn, and an item whose deadline has passed, cost nothing. A full queue
refuses a request as a whole, with an estimate of when to come again. An item that makes its batch fail is
found by computing the batch's items one by one, so that one caller's input is never another's error.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf.model.encoders import rerankers

if TYPE_CHECKING:
    from moonshelf.service.monitor import Monitor

log = logging.getLogger("moonshelf.service")

SPEED_SMOOTHING = 0.2  # of the moving average of tokens a second; ours
RETRY_LEAST, RETRY_MOST = 1, 60  # seconds that a refused caller is told to wait


class Overloaded(Exception):
    """The queue is full; come again after `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full: try again in {retry_after} s")
        self.retry_after = retry_after


class Expired(Exception):
    """The item's deadline passed before its turn."""


class Stopped(Exception):
    """The service is stopping and takes nothing new."""


@dataclass(frozen=True)
class Kind:
    """How items of one kind are computed: `run` takes payloads, gives a result or exception for each."""

    run: Callable[[list[Any]], Sequence[Any]]
    budget: int  # tokens of one batch; one item always fits
    handicap: float = 0.0  # seconds


@dataclass
class _Item:
    payload: Any
    cost: int
    deadline: float  # time.monotonic
    arrived: float
    future: Future[Any] = field(default_factory=Future)


class Batcher:
    """Starts its thread at once; `close` ends it. `submit` may be called from any thread."""

    def __init__(
        self,
        kinds: Mapping[str, Kind],
        *,
        max_items: int,
        max_tokens: int,
        wait_s: float = 0.0,
        observer: Monitor | None = None,
    ) -> None:
        self.kinds, self.wait_s, self.observer = dict(kinds), wait_s, observer
        self.max_items, self.max_tokens = max_items, max_tokens
        self._queues: dict[str, deque[_Item]] = {name: deque() for name in kinds}
        self._ready = threading.Condition()
        self._items = self._tokens = 0  # waiting
        self._speed = 0.0  # tokens a second
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="moonshelf-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items in the queue, those being computed not counted."""
        return self._items

    def submit(
        self, kind: str, payloads: Sequence[Any], costs: Sequence[int], deadline: float = math.inf
    ) -> list[Future[Any]]:
        """One future an item, all or none of them taken. Raises Overloaded or Stopped.

        A request that alone is larger than the queue is taken when the queue is empty.
        """
        now = time.monotonic()
        items = [_Item(p, max(1, c), deadline, now) for p, c in zip(payloads, costs, strict=True)]
        tokens = sum(item.cost for item in items)
        with self._ready:
            if self._closing:
                raise Stopped("the service is stopping")
            over = self._items + len(items) > self.max_items or self._tokens + tokens > self.max_tokens
            if over and self._items:
                if self.observer:
                    self.observer.dropped("queue full")
                raise Overloaded(self._retry_after())
            self._queues[kind].extend(items)
            self._items += len(items)
            self._tokens += tokens
            self._ready.notify()
        return [item.future for item in items]

    def close(self, drain_s: float) -> None:
        """Take nothing new, compute what was taken for at most `drain_s` seconds, and refuse the rest."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._thread.join(drain_s)
        with self._ready:
            left = [item for queue in self._queues.values() for item in queue]
            for queue in self._queues.values():
                queue.clear()
            self._items = self._tokens = 0
        for item in left:
            if item.future.set_running_or_notify_cancel():
                item.future.set_exception(Stopped("the service stopped before this was computed"))

    def _retry_after(self) -> int:
        seconds = self._tokens / self._speed if self._speed else RETRY_LEAST
        return int(min(max(math.ceil(seconds), RETRY_LEAST), RETRY_MOST))

    # ------------------------------------------------------------------------------ the thread

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            name, items = taken
            if items:
                self._compute(name, items)

    def _take(self) -> tuple[str, list[_Item]] | None:
        """The next batch: None at the end, empty where all that was taken had been given up."""
        with self._ready:
            while not self._items:
                if self._closing:
                    return None
                self._ready.wait()
            name = self._oldest()
            budget = self.kinds[name].budget
            until = self._queues[name][0].arrived + self.wait_s
            while not self._closing and (left := until - time.monotonic()) > 0:
                if sum(item.cost for item in self._queues[name]) >= budget:
                    break
                self._ready.wait(left)
            queue, used = self._queues[name], 0
            taken: list[_Item] = []
            while queue and (not taken or used + queue[0].cost <= budget):
                item = queue.popleft()
                self._items -= 1
                self._tokens -= item.cost
                if self._wanted(item):
                    taken.append(item)
                    used += item.cost
            return name, taken

    def _oldest(self) -> str:
        heads = {name: queue[0].arrived for name, queue in self._queues.items() if queue}
        return min(heads, key=lambda name: heads[name] + self.kinds[name].handicap)

    def _wanted(self, item: _Item) -> bool:
        """Whether somebody still waits for it; its future is running from here on."""
        if not item.future.set_running_or_notify_cancel():
            if self.observer:
                self.observer.dropped("cancelled")
            return False
        if time.monotonic() > item.deadline:
            item.future.set_exception(Expired("the deadline passed before its turn"))
            if self.observer:
                self.observer.dropped("deadline")
            return False
        return True

    def _compute(self, name: str, items: list[_Item]) -> None:
        started = time.monotonic()
        results = self._results(name, items)
        took = time.monotonic() - started
        tokens = sum(item.cost for item in items)
        speed = tokens / max(took, 1e-6)
        self._speed += (speed - self._speed) * (SPEED_SMOOTHING if self._speed else 1.0)
        if self.observer:
            self.observer.batch(name, len(items), tokens, [started - item.arrived for item in items], took)
        for item, result in zip(items, results, strict=True):
            if isinstance(result, BaseException):
                item.future.set_exception(result)
            else:
                item.future.set_result(result)

    def _results(self, name: str, items: list[_Item]) -> Sequence[Any]:
        run = self.kinds[name].run
        try:
            results = run([item.payload for item in items])
            if len(results) != len(items):
                raise RuntimeError(f"{len(results)} results for {len(items)} items of kind {name}")
            return results
        except Exception as error:
            if len(items) == 1:
                return [error]
            log.warning("a batch of %d failed (%s): its items are computed one by one", len(items), error)
        return [self._results(name, [item])[0] for item in items]


class Reranking:
    """A reranker with a thread of its own, so that the model that encodes waits for nobody."""

    def __init__(
        self, reranker: rerankers.Reranker, seconds: float, max_items: int, observer: Monitor | None = None
    ) -> None:
        def run(pairs: list[rerankers.Pair]) -> Sequence[float]:
            found: list[float] = rerankers.checked(reranker, pairs).tolist()
            return found

        kinds = {"rerank": Kind(run, rerankers.BATCH)}
        self.reranker, self.seconds = reranker, seconds
        self.batcher = Batcher(kinds, max_items=max_items, max_tokens=max_items, observer=observer)

    async def score(self, pairs: Sequence[rerankers.Pair], deadline: float = math.inf) -> np.ndarray:
        """(n,) scores. Raises RerankError where it fails or takes longer than it may, Overloaded, Stopped."""
        seconds = max(0.0, min(self.seconds, deadline - time.monotonic()))
        futures = self.batcher.submit("rerank", pairs, [1] * len(pairs), time.monotonic() + seconds)
        wrapped = [asyncio.wrap_future(future) for future in futures]
        try:
            async with asyncio.timeout(seconds):
                return np.array(await asyncio.gather(*wrapped))
        except (TimeoutError, Expired):
            raise rerankers.late_error(self.reranker, seconds) from None
        finally:
            for future in wrapped:
                future.cancel()  # where it waits

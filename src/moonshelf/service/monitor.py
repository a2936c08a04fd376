"""What the service counts, in Prometheus' form: latency by stage, batches, queue, cache, refusals.

Labels are names of routes, stages and reasons from fixed sets, never text of a request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Monitor:
    """One registry an app, so that two apps in one process do not count into each other."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        of: Any = {"registry": self.registry, "namespace": "moonshelf"}
        self.requests = Counter("requests", "Requests by route and status.", ["route", "status"], **of)
        self.latency = Histogram(
            "request_seconds", "Time from request to reply.", ["route"], buckets=_SECONDS, **of
        )
        self.stages = Histogram(
            "stage_seconds", "Time in one stage: prepare, queue, model, search, write.", ["stage"],
            buckets=_SECONDS, **of,
        )  # fmt: skip
        self.batches = Histogram("batch_items", "Items of one batch.", ["kind"], buckets=_SIZES, **of)
        self.tokens = Histogram("batch_tokens", "Tokens of one batch.", ["kind"], buckets=_TOKENS, **of)
        self.queue = Gauge("queue_items", "Items that wait for the model.", **of)
        self.cache = Counter("cache", "Look-ups of the vector cache.", ["result"], **of)
        self.rationales = Counter("rationales", "Rationales written.", ["format"], **of)
        self.drops = Counter("dropped", "Work that was refused or given up.", ["reason"], **of)

    def batch(self, kind: str, items: int, tokens: int, waited: Sequence[float], took: float) -> None:
        self.batches.labels(kind).observe(items)
        self.tokens.labels(kind).observe(tokens)
        self.stages.labels("model").observe(took)
        for seconds in waited:
            self.stages.labels("queue").observe(seconds)

    def dropped(self, reason: str) -> None:
        self.drops.labels(reason).inc()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = perf_counter()
        try:
            yield
        finally:
            self.stages.labels(name).observe(perf_counter() - started)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)

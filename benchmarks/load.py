"""A service in a process of its own, and callers who keep it busy.

The load is closed: each of n callers sends its next request when its last is answered, so n is the
concurrency. Callers and service share the machine; what the callers' own work costs is in the figures of both
sides of a comparison. Bodies are made before the clock starts, replies are checked after they are timed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np

START_SECONDS = 180.0  # that a service may take until it is ready


@dataclass(frozen=True)
class Service:
    """A running service: where it listens, and its process."""

    address: str
    process: subprocess.Popen[bytes]

    def memory(self) -> float:
        """Resident memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii", errors="replace")
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024


@contextmanager
def service(folder: Path, before: str = "", **settings: Any) -> Iterator[Service]:
    """`moonshelf serve` of a catalogue on a free port of loopback, once it is ready; ended by SIGTERM.

    `before` is Python that its process runs first.
    """
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    given = {"creative_model": "off", "port": port, "log_level": "warning", **settings}
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with tempfile.TemporaryFile() as log:
        code = f"{before}\nimport sys\nfrom moonshelf.cli import main\nmain()"
        command = [sys.executable, "-c", code, "serve", str(folder), *flags]
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ})
        found = Service(f"http://127.0.0.1:{port}", process)
        try:
            _wait_until_ready(found, log)
            yield found
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(found: Service, log: Any) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if found.process.poll() is not None:
            log.seek(0)
            raise SystemExit(f"the service ended: {log.read().decode(errors='replace')[-2000:]}")
        try:
            if httpx.get(f"{found.address}/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"the service was not ready after {START_SECONDS:g} s")


@dataclass(frozen=True)
class Call:
    """One request, a POST if it has a body; `check` says whether the decoded reply to a 200 is right."""

    path: str
    body: bytes
    check: Callable[[Any], bool] = field(default=lambda reply: True)

    @classmethod
    def of(cls, path: str, body: Any, check: Callable[[Any], bool] | None = None) -> Call:
        return cls(path, json.dumps(body).encode(), *([check] if check else []))


@dataclass
class Measured:
    """What came of a load. Latencies are of replies with status 200, in seconds."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    retry_after: list[int] = field(default_factory=list)  # of replies with status 429

    @property
    def throughput(self) -> float:
        """Right replies a second."""
        return (len(self.latencies) - self.wrong) / self.seconds if self.seconds else 0.0

    def quantile(self, q: float) -> float:
        """Milliseconds."""
        return 1000 * float(np.quantile(self.latencies, q)) if self.latencies else float("nan")

    def as_dict(self) -> dict[str, Any]:
        return {
            "throughput": self.throughput, "seconds": self.seconds, "replies": len(self.latencies),
            **{f"p{q}_ms": self.quantile(q / 100) for q in (50, 95, 99)},
            "statuses": {str(status): n for status, n in self.statuses.items()}, "wrong": self.wrong,
        }  # fmt: skip


def load(address: str, calls: Sequence[Call], callers: int, seconds: float, first: int = 0) -> Measured:
    """`callers` at once go through `calls`, from place `first`, again and again for `seconds`."""
    return asyncio.run(_load(address, calls, callers, first, seconds=seconds))


def burst(address: str, calls: Sequence[Call], n: int) -> Measured:
    """`n` calls at the same moment, once."""
    return asyncio.run(_load(address, calls, n, 0, total=n))


async def _load(
    address: str,
    calls: Sequence[Call],
    callers: int,
    first: int,
    seconds: float = 3600,
    total: int = sys.maxsize,
) -> Measured:
    measured, places = Measured(), count(first)
    kept: list[tuple[Call, bytes]] = []

    async def caller(client: httpx.AsyncClient) -> None:
        while time.perf_counter() < until and (place := next(places)) < first + total:
            call = calls[place % len(calls)]
            started = time.perf_counter()
            try:
                reply = await client.request(
                    "POST" if call.body else "GET", call.path, content=call.body or None
                )
            except httpx.TransportError:
                measured.statuses[0] += 1
                continue
            took = time.perf_counter() - started
            measured.statuses[reply.status_code] += 1
            if reply.status_code == 200:
                measured.latencies.append(took)
                kept.append((call, reply.content))
            elif reply.status_code == 429 and reply.headers.get("retry-after", "").isdigit():
                measured.retry_after.append(int(reply.headers["retry-after"]))

    limits = httpx.Limits(max_connections=callers, max_keepalive_connections=callers)
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(base_url=address, limits=limits, headers=headers, timeout=120) as client:
        begun = time.perf_counter()
        until = begun + seconds
        await asyncio.gather(*(caller(client) for _ in range(min(callers, total))))
        measured.seconds = time.perf_counter() - begun
    measured.wrong = sum(not call.check(json.loads(body)) for call, body in kept)
    return measured

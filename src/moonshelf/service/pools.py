"""Threads by kind of work, so that no kind of work can take another's threads.

What runs in a thread cannot be stopped from outside. So functions that may take long are given an event,
`gone`, which is set when the caller has hung up or his time is over, and look at it between two steps.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

SIZES = {
    "parse": 2,  # large bodies
    "text": 1,  # tokens of texts; the tokenizer has threads of its own
    "picture": 2,  # decoding: what two pictures take is the most memory that it needs
    "fetch": 8,  # pictures from the web
    "read": 4,  # look-ups and searches of the catalogue
    "scan": 2,  # duplicates and counts over the whole catalogue
    "write": 2,  # commits and feedback
    "rank": 4,  # rankings, which wait for the model between their comparisons
}


class Pools:
    """One pool for each of SIZES."""

    def __init__(self) -> None:
        self._pools = {
            kind: ThreadPoolExecutor(size, thread_name_prefix=f"moonshelf-{kind}")
            for kind, size in SIZES.items()
        }

    async def run(self, kind: str, function: Callable[..., Any], /, *args: Any, **given: Any) -> Any:
        """`function(*args, **given)` in such a thread. What is cancelled before its turn never runs."""
        call = functools.partial(function, *args, **given)
        return await asyncio.get_running_loop().run_in_executor(self._pools[kind], call)

    async def run_while_wanted(self, kind: str, function: Callable[..., Any], /, *args: Any) -> Any:
        """As `run`, with `gone` as an argument more: an event that is set when nobody waits any longer."""
        gone = threading.Event()
        try:
            return await self.run(kind, function, *args, gone=gone)
        finally:
            gone.set()

    def close(self) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

"""Memory: what the threads of a process may take together, and what the C library does with what is freed.

glibc asks the system for a block of its own for every large tensor, and hands it back with the tensor; the
next one of that size is mapped and zeroed anew, page by page. A training step is 1.15 times as fast where
freed blocks are kept; encoding is not, and loses with rationales (docs/experiments.md). So only training asks
for it. PyTorch's tuning guide puts another allocator in front for the same reason; two settings of the one
that is there do as well, and need no library. Elsewhere than under glibc they do nothing.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # mallopt's names of them
_KEPT = (1 << 31) - 1  # bytes free at the heap's end beyond which they go back; mallopt takes no more
_MAPPED = 1 << 30  # bytes from which a block is mapped by itself
_LARGE = 32_000_000  # bytes from which what a picture took is given back to the system at once


def keep_freed() -> None:
    """Keep freed blocks for the next tensors, for the rest of the process: up to 2 GB, blocks below 1 GB."""
    _glibc("mallopt", _MMAP_THRESHOLD, _MAPPED)
    _glibc("mallopt", _TRIM_THRESHOLD, _KEPT)


def share_heaps() -> None:
    """Let all threads allocate from two heaps: glibc makes up to eight a processor, and what is free in one
    serves no other. For a service, before its threads begin."""
    _glibc("mallopt", _ARENA_MAX, 2)


def give_back() -> None:
    """Free memory to the system, wherever it lies in the heap."""
    _glibc("malloc_trim", 0)


def _glibc(name: str, *numbers: int) -> None:
    with suppress(OSError, AttributeError, TypeError):
        getattr(ctypes.CDLL(None), name)(*numbers)


class Crowded(Exception):
    """What requests hold leaves no room for a picture: it can be decoded when they are answered."""


class Room:
    """Bytes that all threads share: what they decode pictures in, first come, first served, so that small
    pictures do not pass a large one for ever; and what requests hold meanwhile."""

    def __init__(self, size: int) -> None:
        self.size, self.used, self.held = size, 0, 0
        self._turn, self._freed = threading.Lock(), threading.Condition()

    @property
    def free(self) -> int:
        return self.size - self.used - self.held

    @contextmanager
    def __call__(self, cost: int) -> Iterator[None]:
        """Wait for `cost` bytes, or for all there are. Raises Crowded where too little is left."""
        cost = min(cost, self.size)
        with self._turn, self._freed:
            self._freed.wait_for(lambda: self.free >= cost or not self.used)
            if self.free < cost:  # no thread will give any back, and a request would wait for itself
                raise Crowded("large requests hold the memory that a picture needs: try again in 1 s")
            self.used += cost
        try:
            yield
        finally:
            if cost >= _LARGE:  # else the C library keeps what threads free, each for itself
                give_back()
            with self._freed:
                self.used -= cost
                self._freed.notify_all()

    def hold(self, count: int, always: bool = False) -> bool:
        """Hold so many bytes more, or fewer; False where they are not there, unless `always`."""
        with self._freed:
            if count > max(self.free, 0) and not always:
                return False
            self.held += count
            self._freed.notify_all()
        return True


room = Room(300_000_000)  # anew in a forked process, in which the threads that held some do not exist
os.register_at_fork(after_in_child=lambda: room.__init__(room.size))  # type: ignore[misc]

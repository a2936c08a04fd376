"""What the C library does with memory that is freed. Elsewhere than under glibc nothing happens here.

glibc asks the system for a block of its own for every large tensor, and hands it back with the tensor; the
next one of that size is mapped and zeroed anew, page by page. A training step is 1.15 times as fast where
freed blocks are kept; encoding is not, and loses with rationales (docs/experiments.md). So only training asks
for it. PyTorch's tuning guide puts another allocator in front for the same reason; two settings of the one
that is there do as well, and need no library.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # mallopt's names of them
_KEPT = (1 << 31) - 1  # bytes free at the heap's end beyond which they go back; mallopt takes no more
_MAPPED = 1 << 30  # bytes from which a block is mapped by itself


def keep_freed() -> None:
    """Keep freed blocks for the next tensors, for the rest of the process: up to 2 GB, blocks below 1 GB."""
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _MAPPED)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)


def share_heaps() -> None:
    """Let all threads allocate from two heaps: glibc makes up to eight a processor, and what is free in one
    serves no other. For a service, whose threads take much in turns. Call it before they begin."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 2)


def give_back() -> None:
    """Free memory to the system, wherever it lies in the heap."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)

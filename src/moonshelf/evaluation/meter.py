"""What a task costs: wall time and the peak of memory while it ran.

On Linux the kernel's own high-water mark of the process is reset before each measurement, so a short peak is
not missed; elsewhere no memory is told. Memory of other encoders that are loaded in the same run is included.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Cost:
    """Filled in when the measured block ends."""

    seconds: float = 0.0
    peak_mib: float | None = None  # resident memory of the process; None where it cannot be known
    gpu_mib: float | None = None  # allocated by torch; None without a GPU


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure a block; the figures are there after it, also when it raises."""
    torch: Any = sys.modules.get("torch")  # a run of word counts loads none
    gpu = torch.cuda if torch is not None and torch.cuda.is_available() else None
    cost, process = Cost(), Path("/proc/self")
    with suppress(OSError):
        (process / "clear_refs").write_text("5")
    if gpu is not None:
        gpu.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - start
        with suppress(OSError):
            if mark := re.search(r"VmHWM:\s*(\d+)", (process / "status").read_text()):
                cost.peak_mib = int(mark[1]) / 1024
        if gpu is not None:
            cost.gpu_mib = gpu.max_memory_allocated() / 2**20

"""What a task costs: wall time and the peak of memory while it ran.

On Linux the kernel's own high-water mark of the process is reset before each measurement, so a short peak is
not missed between samples; elsewhere the mark is that of the whole process so far. On a GPU the peak of its
memory is measured too. Memory of other encoders that are loaded in the same run is included.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 2**20


@dataclass
class Cost:
    """Filled in when the measured block ends."""

    seconds: float = 0.0
    peak_mib: float | None = None  # resident memory of the process; None where it cannot be known
    gpu_mib: float | None = None  # allocated by torch; None without a GPU


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure a block; the figures are there after it, also when it raises."""
    cost, gpu = Cost(), _gpu()
    _reset_peak()
    if gpu is not None:
        gpu.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - start
        cost.peak_mib = _peak()
        if gpu is not None:
            cost.gpu_mib = gpu.max_memory_allocated() / MIB


def _gpu() -> Any:
    """torch.cuda, if torch is loaded and there is a GPU; a run of word counts loads no torch."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return _whole_process()
    marks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return marks[0] / 1024 if marks else _whole_process()


def _whole_process() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = MIB if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

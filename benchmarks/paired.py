"""Two ways of doing one thing, timed in one run: sides alternate, the order turned in each repeat.

Figures are medians, and the median of paired ratios with its 95% bootstrap interval; so a machine that slows
down half-way through slows both sides.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moonshelf.cli.doctor import environment

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def paired(
    ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Seconds of both sides, alternating, after one run of each that does not count; theirs to ours."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    ours(), theirs()
    for repeat in range(repeats):
        sides = [("ours", ours), ("theirs", theirs)]
        for name, run in sides if repeat % 2 == 0 else sides[::-1]:
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return {
        "ours_s": float(np.median(seconds["ours"])),
        "theirs_s": float(np.median(seconds["theirs"])),
        **median_ratio(np.array(seconds["theirs"]) / np.array(seconds["ours"])),
        "seconds": seconds,
    }


def median_ratio(ratios: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """The median of paired ratios and its 95% bootstrap interval."""
    draws = np.random.default_rng(0).choice(np.asarray(ratios), (10_000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {"ratio": float(np.median(ratios)), "interval": [float(low), float(high)]}


def save(path: Path | None, options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Every figure, what it was measured with, and where, as JSON; nothing without a path."""
    if path:
        record = {"environment": environment(), "options": vars(options), "results": results}
        path.write_text(json.dumps(record, indent=1, default=str))


def median_seconds(run: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    run()
    found = []
    for _ in range(repeats):
        start = clock()
        run()
        found.append(clock() - start)
    return float(np.median(found))

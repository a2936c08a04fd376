"""How long a command takes from a cold start: a new process each, the best and the median of several.

    python benchmarks/startup.py SHELF --runs 5

SHELF is a folder that `moonshelf embed` made with the starter. `torch` is the same search with onnxruntime
out of reach, as it was before the query side was exported. The rows are run in turn, so that a busy machine
slows all alike. CPU seconds are the process's own, which others disturb less than its wall time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

CALL = "import sys; from moonshelf.cli import main; sys.argv[0] = 'moonshelf'; main()"
WITHOUT = "import sys; sys.modules['onnxruntime'] = None; "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shelf")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--words", default="laptop")
    asked = parser.parse_args()
    search = ["search", asked.shelf, asked.words]
    rows = {
        "--help": (CALL, ["--help"]),
        "words alone": (CALL, [*search, "--mode", "text"]),
        "hybrid, exported": (CALL, search),
        "hybrid, torch": (WITHOUT + CALL, search),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for _ in range(asked.runs):
        for name, (code, arguments) in rows.items():
            before, started = os.times(), time.perf_counter()
            subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
            wall, after = time.perf_counter() - started, os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            taken[name].append((wall, cpu))
    print(f"{'seconds':20}{'wall, best':>12}{'median':>9}{'CPU, best':>12}{'median':>9}")
    for name, found in taken.items():
        walls, cpus = zip(*found, strict=True)
        shown = (min(walls), statistics.median(walls), min(cpus), statistics.median(cpus))
        print(f"{name:20}{shown[0]:12.2f}{shown[1]:9.2f}{shown[2]:12.2f}{shown[3]:9.2f}")


if __name__ == "__main__":
    main()

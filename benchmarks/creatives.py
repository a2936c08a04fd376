"""Selectors of creatives against each other: judging pairs, and ranking one campaign.

    python benchmarks/creatives.py [--theirs FOLDER] [--pairs 16] [--creatives 8] [--repeats 5]

pairs   that many pairs of different products, each in both orders.
rank    every pair of one campaign of that many creatives, in both orders: n images, n (n - 1) asks.

Both sides judge the same simulated pairs; what ours remembers of an image is forgotten before each run. They
alternate, the order turned in each repeat. Printed are medians, and the median of paired ratios with its 95%
bootstrap interval: their time to ours. Without `--theirs` ours stands alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
from paired import CLOCKS, median_seconds, paired, save
from rich.console import Console
from rich.table import Table

from moonshelf.creatives.backends.base import PairwiseBackend
from moonshelf.creatives.backends.names import make_backend
from moonshelf.creatives.schema import Pair
from moonshelf.creatives.selector import judge
from research.synthetic.campaigns.simulator import pairs, simulate

PARTS = ("pairs", "rank")


def drawn(part: str, options: argparse.Namespace) -> list[Pair]:
    count, each = (options.pairs, 2) if part == "pairs" else (1, options.creatives)
    campaigns = simulate(
        count, creatives=each, seed=5, split="validation", per_product=1, same=0, alike=0, least=1
    )
    return [pair for campaign in campaigns for pair in pairs(campaign)]


def judging(backend: PairwiseBackend, asked: list[Pair]) -> Callable[[], Any]:
    def run() -> Any:
        if getattr(backend, "told", None):
            backend.told.clear()  # type: ignore[attr-defined]
        return judge(backend, asked)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ours", default="starter", help="a backend, as `moonshelf creative evaluate` takes")
    parser.add_argument("--theirs", help="another one")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--creatives", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu where others are busy")
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    ours = make_backend(options.ours)
    theirs = make_backend(options.theirs) if options.theirs else None
    console, results = Console(width=120), dict[str, Any]()
    table = Table("part", "pairs", "ours", "theirs", "theirs to ours", "95%")
    for part in options.only.split(","):
        asked = drawn(part, options)
        with console.status(part):
            if theirs is None:
                seconds = median_seconds(judging(ours, asked), options.repeats, clock)
                result: dict[str, Any] = {"ours_s": seconds}
            else:
                result = paired(judging(ours, asked), judging(theirs, asked), options.repeats, clock)
        results[part] = result | {"pairs": len(asked)}
        more = ["", "", ""]
        if theirs is not None:
            low, high = result["interval"]
            more = [f"{result['theirs_s']:.1f} s", f"{result['ratio']:.2f}", f"{low:.2f}–{high:.2f}"]
        table.add_row(part, str(len(asked)), f"{result['ours_s']:.1f} s", *more)
    console.print(table)
    save(options.json, options, results)


if __name__ == "__main__":
    main()

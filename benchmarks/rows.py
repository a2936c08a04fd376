"""Memory of `moonshelf embed` from ten thousand to a million rows, without a model in the way.

    python benchmarks/rows.py [--lengths 10000,100000,1000000]

A feed of text-only products goes through everything that is not the model: readers, hashes, shards, commits,
and, at the end, a second run over the same feed, which finds that nothing is to be done. Vectors are numbers
from a generator. Each length runs in a process of its own; what counts is its peak resident memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from moonshelf.catalogue.embed import Options, embed_feed
from moonshelf.cli.doctor import environment
from moonshelf.model.encoders.base import Encoded
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec

AIM = 1.5  # peak at a million rows to that at ten thousand: not the 100 of what grows with the rows
ROWS = 512  # that the stand-in for a model gives at a time


class Numbers:
    """In a model's place: unit vectors from a generator, as fast as they can be drawn."""

    fingerprint, dim, prompt = "numbers", 256, PromptSpec()

    def encode(self, products: list[Product], **_: Any) -> Encoded:
        return next(self.encode_iter(products))

    def encode_iter(self, products: Any, **_: Any) -> Iterator[Encoded]:
        stream, start, rng = iter(products), 0, np.random.default_rng(0)
        while part := list(islice(stream, ROWS)):
            n = len(part)
            vectors = rng.standard_normal((n, self.dim), np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            yield Encoded(
                ids=[product.id for product in part], vectors=vectors, rationales=[""] * n,
                valid=np.ones(n, bool), weights=np.full((n, 3), 1 / 3, np.float32),
                tokens=np.zeros(n, np.int32), row_index=np.arange(start, start + n),
            )  # fmt: skip
            start += n


def write_feed(path: Path, n: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            row = {"id": f"p{i}", "title": f"Product {i} of a long catalogue", "brand": f"brand {i % 997}"}
            file.write(json.dumps(row) + "\n")


def run(n: int, again: bool) -> dict[str, Any]:
    """Peak memory in MiB of embedding `n` rows, in this process."""
    with tempfile.TemporaryDirectory() as name:
        feed, shelf = Path(name) / "feed.jsonl", Path(name) / "shelf"
        write_feed(feed, n)
        options = Options(allow_text_only=True)
        started = time.perf_counter()
        embed_feed(str(feed), shelf, Numbers(), model_name="numbers", options=options)
        took = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found: dict[str, Any] = {"rows": n, "peak_mib": peak, "seconds": took}
        if again:
            embed_feed(str(feed), shelf, Numbers(), model_name="numbers", options=options)
            found["peak_again_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--lengths", type=lambda s: [int(x) for x in s.split(",")], default=[10_000, 1_000_000]
    )
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(options.one, again=True)))
        return
    console, runs = Console(width=150), []
    for n in options.lengths:
        with console.status(f"{n:,} rows"):
            command = [sys.executable, __file__, "--one", str(n)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    table = Table("rows", "peak", "peak of a second run", "rows a second")
    for r in runs:
        table.add_row(
            f"{r['rows']:,}", f"{r['peak_mib']:.0f} MiB", f"{r['peak_again_mib']:.0f} MiB",
            f"{r['rows'] / r['seconds']:,.0f}",
        )  # fmt: skip
    console.print(table)
    growth = runs[-1]["peak_mib"] / runs[0]["peak_mib"]
    console.print(f"growth {growth:.2f}, aim ≤ {AIM}", highlight=False)
    if options.json:
        record = {"environment": environment(), "runs": runs, "growth": growth, "aim": AIM}
        options.json.write_text(json.dumps(record, indent=1, default=str))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()

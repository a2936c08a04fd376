"""Exact search of the benchmark in blocks, against FAISS IndexFlatIP on the same vectors.

    python benchmarks/exact_search.py [--queries 2000] [--corpus 10000] [--dim 256] [--repeats 11]

search  the first k of a random corpus of unit vectors, by both; the same items must be found.
places  the same, and ours also places one relevant item a query, ties and all, which FAISS does not do.
memory  peak of what ours allocates, beside the size of all scores in float32.

The two sides alternate, the order turned in each repeat; printed are medians and the median of paired ratios
with its 95% bootstrap interval. The ratio is FAISS's time to ours: at least 1/1.5 is the aim.
"""

from __future__ import annotations

import argparse
import json
import os
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from paired import CLOCKS, paired
from rich.console import Console
from rich.table import Table

from moonshelf.doctor import environment
from moonshelf.evaluation.statistics import exact

AIM = 1 / 1.5
PARTS = ("search", "places")


def unit(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    vectors = rng.normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def measure(part: str, options: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    corpus = unit(rng, options.corpus, options.dim)
    queries = unit(rng, options.queries, options.dim)
    index = faiss.IndexFlatIP(options.dim)
    index.add(corpus)
    rows = np.arange(options.queries if part == "places" else 0)
    columns = rng.integers(0, options.corpus, len(rows))

    def ours() -> exact.Found:
        return exact.search(queries, corpus, rows, columns, options.k)

    def theirs() -> tuple[np.ndarray, np.ndarray]:
        return index.search(queries, options.k)

    found, expected = ours(), theirs()
    same = float((found.top == expected[1]).mean())
    far = float(np.abs(found.top_scores - expected[0]).max())
    if same < 0.999 or far > 1e-5:
        raise SystemExit(
            f"the two disagree: {same:.4%} of the items are the same, scores differ by {far:.2g}"
        )
    tracemalloc.start()
    ours()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        **paired(ours, theirs, options.repeats, CLOCKS[options.clock]),
        "same_items": same, "score_difference": far, "peak_mib": peak / 2**20,
        "all_scores_mib": 4 * options.queries * options.corpus / 2**20,
    }  # fmt: skip


def show(results: dict[str, Any], options: argparse.Namespace, console: Console) -> None:
    table = Table("part", "ours", "FAISS", "ratio", "95%", "aim", "remark")
    for part in PARTS:
        if part in results:
            r = results[part]
            table.add_row(
                part, f"{1000 * r['ours_s']:.0f} ms", f"{1000 * r['theirs_s']:.0f} ms", f"{r['ratio']:.2f}",
                f"{r['interval'][0]:.2f}–{r['interval'][1]:.2f}", f"≥ {AIM:.2f}",
                f"{r['same_items']:.2%} same items; peak {r['peak_mib']:.0f} MiB, all scores "
                f"{r['all_scores_mib']:.0f} MiB",
            )  # fmt: skip
    console.print(table)
    console.print(
        f"{options.queries:,} queries, {options.corpus:,} of {options.dim} numbers, first {options.k}; "
        f"{options.threads or os.environ.get('OMP_NUM_THREADS') or 'all'} threads",
        highlight=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--corpus", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu where others are busy")
    parser.add_argument("--threads", type=int, help="of both; needs threadpoolctl")
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    if options.threads:
        from threadpoolctl import threadpool_limits

        threadpool_limits(options.threads)
        faiss.omp_set_num_threads(options.threads)
    results: dict[str, Any] = {"environment": environment(), "options": vars(options)}
    console = Console(width=150)
    for part in options.only.split(","):
        with console.status(part):
            results[part] = measure(part, options)
    show(results, options, console)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, default=str))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()

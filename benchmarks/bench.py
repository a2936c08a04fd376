"""Every figure of docs/performance.md in one go: `make bench`.

    python benchmarks/bench.py [--only ceilings,engine,…] [--fresh] [--out bench] [--page docs/performance.md]

Each part is a benchmark of this folder in a process of its own, one after the other, with its figures in
`--out`. A part that is there is not run again, so what was stopped goes on; `--fresh` begins anew. The page
is written from those files, from whatever is there, and says what is not. A line names its peer, its aim and,
where it falls short, what was tried. Keep the machine quiet; the load is on the page.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

HERE = Path(__file__).parent
PARTS: dict[str, list[str]] = {
    "ceilings": ["ceilings.py"],
    "engine": ["engine.py", "--only", "one-pass,alone,direct,prefill", "--products", "128", "--repeats", "7"],
    "bfloat16": ["engine.py", "--only", "direct", "--products", "96", "--precision", "auto"],
    "memory": ["engine.py", "--only", "memory", "--lengths", "1000,10000", "--photo", "128"],
    "rows": ["rows.py"],
    "training": ["training.py", "--repeats", "5"],
    "index": ["index.py", "--parts", "filters"],
    "service": ["serving.py", "--only", "batching", "--callers", "1,4,16", "--repeats", "3"],
    "service-reasoned": [
        "serving.py", "--only", "batching", "--callers", "1,4,16", "--repeats", "3", "--reason", "on"
    ],
}  # fmt: skip
Figures = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One claim: where its figure is, what it is measured against, and the aim."""

    what: str
    part: str
    read: Callable[[Figures], tuple[float, str]]  # the figure that has the aim, and how it is told
    aim: float
    least: bool = True  # the aim is at least that much
    tried: str = ""  # where it falls short


def _interval(r: Figures, turned: bool = False) -> tuple[float, str]:
    value, (low, high) = r["ratio"], r["interval"]
    if turned:
        value, low, high = 1 / value, 1 / high, 1 / low
    return value, f"{value:.2f} ({low:.2f}–{high:.2f})"


def _automatic(r: Figures) -> tuple[float, str]:
    value, told = _interval(r["direct"])
    return value, told if r["direct"]["dtype"] == "bfloat16" else f"{told}, in float32: no instructions here"


def _reasoned(r: Figures) -> tuple[float, str]:
    value = r["engine_s"]["on"] / r["engine_s"]["off"]
    return value, f"{value:.2f}"


def _filtered(r: Figures, clusters: bool) -> tuple[float, str]:
    """The worst of the filters that pass rows at random, or of those that pass whole clusters."""
    found = [one for one in r["filters"] if str(one["filter"]).startswith("clusters") == clusters]
    worst, recall = max(found, key=lambda one: one["ratio"]), min(one["recall"] for one in found)
    told = f"{worst['ratio']:.2f} at most ({worst['rows']:,} rows pass), recall@10 ≥ {recall:.3f}"
    if clusters:
        told += f"; FAISS's graph with a selector: recall {min(one['selector_recall'] for one in found):.3f}"
    return (worst["ratio"] if recall >= 0.95 else float("inf")), told


def _service(r: Figures) -> tuple[float, str]:
    best = max(r["batching"]["at_equal_p95"], key=lambda row: row["ratio"])
    value, told = _interval(best)
    return value, f"{told} at {best['callers']} callers"


LINES = [
    Line(
        "One pass against `generate`, then encoding again", "engine", lambda r: _interval(r["one-pass"]), 1.5
    ),
    Line(
        "One reasoned product at a time, with guesses against without", "engine",
        lambda r: _interval(r["alone"]), 1.3,
    ),
    Line("A reasoned vector against a direct one, time", "ceilings", _reasoned, 2.5, least=False),
    Line(
        "Direct against `SentenceTransformer.encode`, both float32", "engine",
        lambda r: _interval(r["direct"]), 1.3,
        tried="Both run the same forward pass; only decoding ahead and batches by token budget differ, and "
        "two cores leave little to overlap. Next line: bfloat16.",
    ),
    Line(
        "… in bfloat16 (`precision=\"auto\"`), the peer as it comes", "bfloat16",
        _automatic, 1.3,
        tried="`auto` is bfloat16 only where the processor multiplies in it (AVX-512 BF16, AMX).",
    ),
    Line(
        "Prefill, share of the float32 matrix rate", "engine",
        lambda r: (r["prefill"]["share_of_square"], f"{r['prefill']['share_of_square']:.3f}"), 0.6,
        tried="What is no matrix product (softmax, norms, activations, positions) takes the rest; what was "
        "tried on it is under “Looked at and left” in experiments.md.",
    ),
    Line(
        "Joint step against TRL's GRPO step, time", "training",
        lambda r: _interval(r["results"]["joint"], True), 1.15, least=False,
    ),
    Line(
        "Cold start's contrasts against SentenceTransformerTrainer", "training",
        lambda r: _interval(r["results"]["contrast"]), 1.0,
    ),
    Line(
        "Filtered search of a million rows against FAISS HNSW without a filter, p50", "index",
        lambda r: _filtered(r, clusters=False), 2.0, least=False,
        tried="[scale.md](scale.md) has it by the share of rows that pass; the fewer, the more is fetched.",
    ),
    Line(
        "… where whole clusters pass, and most queries are far from them", "index",
        lambda r: _filtered(r, clusters=True), 2.0, least=False,
        tried="The graph finds too few of these rows, so all that pass are compared.",
    ),
    Line(
        "Service, batched against one item a batch at equal p95, direct", "service", _service, 3.0,
        tried="A direct pass of this size is bound by arithmetic: one item uses two cores nearly as well.",
    ),
    Line(
        "… with rationales", "service-reasoned", _service, 3.0,
        tried="Guesses ahead made the side of one item a batch quicker too; before them the aim was met.",
    ),
    Line(
        "Memory of the engine over the length of a stream", "memory",
        lambda r: (r["memory"]["growth"], f"{r['memory']['growth']:.3f}"), 1.05, least=False,
    ),
    Line(
        "Memory of `moonshelf embed` from 10 k to 1 M rows", "rows",
        lambda r: (r["growth"], f"{r['growth']:.2f}: {r['runs'][0]['peak_mib']:.0f} to "
                   f"{r['runs'][-1]['peak_mib']:.0f} MiB"), 1.5, least=False,
        tried="What grew with the rows is mended (it was 3.4): see “Memory of `embed`” in experiments.md.",
    ),
]  # fmt: skip


def run(part: str, out: Path, console: Console) -> bool:
    """Run one benchmark; False where it failed, with its last words on the console."""
    script, *flags = PARTS[part]
    target, started = out / f"{part}.json", time.monotonic()
    temporary = target.with_suffix(".tmp")
    command = [sys.executable, str(HERE / script), *flags, "--json", str(temporary)]
    with console.status(f"{part}: {' '.join([script, *flags])}"):
        done = subprocess.run(command, capture_output=True, text=True)
    (out / f"{part}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode or not temporary.exists():
        console.print(f"{part} failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
        return False
    temporary.replace(target)
    console.print(f"{part}: {time.monotonic() - started:.0f} s")
    return True


def page(found: dict[str, Figures]) -> str:
    """docs/performance.md from the figures that are there."""
    text = [
        "# Performance", "",
        "Written by `make bench`, which measures all of it on the machine where it runs; what each",
        "benchmark does is told at the top of its file in [benchmarks](../benchmarks). Ratios are medians",
        "of pairs that alternate in one run, with their 95 % bootstrap interval. What was tried on the way,",
        "and what failed, is in [experiments.md](experiments.md).", "",
    ]  # fmt: skip
    if found:
        *_, last = found.values()
        one = last["environment"]
        system = f"{one['system']}, {one.get('instructions', '?')}"
        text += [
            f"Machine: {one['cpus']} hardware threads ({system}), Python {one['python']}, torch "
            f"{one.get('torch', '?')}, transformers {one.get('transformers', '?')}.", "",
        ]  # fmt: skip
    text += ["## Aims", "", "| what | figure | aim | met |", "| :-- | --: | --: | :-- |"]
    notes = []
    for line in LINES:
        aim = f"{'≥' if line.least else '≤'} {line.aim:g}"
        if line.part not in found:
            text.append(f"| {line.what} | not run | {aim} | |")
            continue
        value, told = line.read(found[line.part])
        met = value >= line.aim if line.least else value <= line.aim
        text.append(f"| {line.what} | {told} | {aim} | {'yes' if met else '**no**'} |")
        if not met and line.tried:
            notes.append(f"- {line.what}: {line.tried}")
    if notes:
        text += ["", "Short of the aim:", "", *notes]
    if "ceilings" in found:
        text += ["", *_ceilings(found["ceilings"])]
    commands = [f"python benchmarks/{' '.join(PARTS[part])}" for part in PARTS if part in found]
    text += ["", "## Commands", "", "```sh", *commands, "```"]
    return "\n".join(text) + "\n"


def _ceilings(r: Figures) -> list[str]:
    c, lines = r["ceilings"], list[str]()
    lines += [
        "## Stages, and what the machine can do", "",
        f"Measured first: {c['float32_flop_s'] / 1e9:.0f} GFLOP/s in float32 and "
        f"{c['bfloat16_flop_s'] / 1e9:.0f} in bfloat16 (2,048 square), {c['copy_bytes_s'] / 1e9:.1f} GB/s of "
        f"memory copied, {c['jpeg_s']:.0f} photos of 640 pixels a second decoded by Pillow alone.", "",
        "| stage, one after the other | ms a product | nearest bound | share of it |",
        "| :-- | --: | :-- | --: |",
    ]  # fmt: skip
    for s in r["stages"]:
        share = "" if s["share"] is None else f"{s['share']:.2f}"
        lines.append(f"| {s['stage']} | {s['ms']:.2f} | {s['bound']} | {share} |")
    off, on = 1000 * r["engine_s"]["off"], 1000 * r["engine_s"]["on"]
    cpu, gpu, assumed = (r["million"][key] for key in ("cpu", "gpu", "assumed"))
    lines += [
        "", f"The engine decodes while it computes: direct {off:.1f} ms a product, reasoned {on:.1f} ms.",
        "", "## A million products", "",
        "| where | direct | reasoned |", "| :-- | --: | --: |",
        f"| this machine, starter, measured | {_cost(cpu['off'])} | {_cost(cpu['on'])} |",
        f"| one H200, Qwen3-VL-2B, **arithmetic, not run** | {_cost(gpu['direct'])} | "
        f"{_cost(gpu['reasoned'])} |", "",
        f"Assumed: {assumed['cpu_price']:.2f} $ an hour here, {assumed['gpu_price']:.2f} $ of the GPU; "
        f"{assumed['prefill_share']:.0%} of {assumed['flop_s'] / 1e12:.0f} TFLOP/s in prefill, "
        f"{assumed['decode_share']:.0%} of {assumed['bytes_s'] / 1e12:.1f} TB/s in writing, batches of "
        f"{assumed['batch']}, {assumed['image_tokens'] + assumed['text_tokens']} tokens read and "
        f"{assumed['written']} written a product.",
    ]  # fmt: skip
    return lines


def _cost(one: dict[str, float]) -> str:
    return f"{one['hours']:.1f} h, {one['dollars']:.2f} $"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "performance.md")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := sorted(set(wanted) - set(PARTS)):
        parser.error(f"there is no part {unknown[0]}: there are {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=150)
    failed = [
        part for part in wanted
        if (options.fresh or not (options.out / f"{part}.json").exists())
        and not run(part, options.out, console)
    ]  # fmt: skip
    found = {
        part: json.loads((options.out / f"{part}.json").read_text(encoding="utf-8"))
        for part in PARTS if (options.out / f"{part}.json").exists()
    }  # fmt: skip
    options.page.write_text(page(found), encoding="utf-8")
    console.print(f"{options.page}: {len(found)} of {len(PARTS)} parts", highlight=False)
    return 1 if failed else 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        raise SystemExit(main())

"""What this machine can do at most, and how much of it each stage of a direct or reasoned vector uses.

    python benchmarks/ceilings.py [--model starter] [--products 128] [--repeats 5]

Ceilings: float32 and bfloat16 products of square matrices, a copy of memory that no cache holds, and Pillow's
decoding of the same files at the same scale, without any of our checks. Stages run one after the other in one
thread each as the engine would run them, so their sum is more than the engine takes, which decodes the next
batch while it computes. A stage that multiplies is compared with the matrix rate; writing also with memory,
since each token reads all weights of the decoder and the row's cache, and the nearer bound is given.

The last lines are costs of a million products: of this machine from the engine's measured time, of a GPU by
arithmetic from published peak rates and assumed shares of them. Prices are assumptions; both are flags.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine import flops, gemm_rate, load, on_disk, prepared
from paired import CLOCKS, median_seconds
from PIL import Image
from rich.console import Console
from rich.table import Table

from moonshelf.cli.doctor import environment
from moonshelf.model import engine
from moonshelf.model.encoders.base import Written
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product

COPY_MIB = 256
FLOAT = 4  # bytes

# Of the arithmetic for a GPU: H200, dense bfloat16 and memory as its maker publishes; Qwen3-VL-2B's sizes.
GPU = {
    "flop_s": 989e12, "bytes_s": 4.8e12, "prefill_share": 0.4, "decode_share": 0.6, "batch": 256,
    "decoder": 1.7e9, "tower": 0.4e9, "layers": 28, "kv": 2 * 8 * 128, "image_tokens": 256, "patches": 1024,
    "text_tokens": 40, "written": 32,
}  # fmt: skip


def measure_ceilings(options: argparse.Namespace, files: list[Path], max_side: int) -> dict[str, float]:
    """FLOP/s, bytes/s, and pictures/s."""
    clock = CLOCKS[options.clock]
    a = torch.zeros(COPY_MIB * 2**20 // FLOAT)
    b = torch.ones_like(a)
    copied = 2 * a.numel() * FLOAT / median_seconds(lambda: a.copy_(b), options.repeats, clock)
    low = torch.randn(2048, 2048, dtype=torch.bfloat16)
    with torch.inference_mode():
        seconds = median_seconds(lambda: torch.nn.functional.linear(low, low), options.repeats, clock)
    data = [path.read_bytes() for path in files]

    def decode() -> None:
        for one in data:
            picture = Image.open(io.BytesIO(one))  # noqa: TID251 — the ceiling is Pillow without our checks
            picture.draft("RGB", (max_side, max_side))
            picture.load()

    return {
        "float32_flop_s": gemm_rate(2048, 2048, 2048, clock),
        "bfloat16_flop_s": 2 * 2048**3 / seconds,
        "copy_bytes_s": copied,
        "jpeg_s": len(data) / median_seconds(decode, options.repeats, clock),
    }


@torch.inference_mode()
def measure_stages(
    model: MoonModel, options: argparse.Namespace, products: list[Product], ceilings: dict[str, float]
) -> list[dict[str, Any]]:
    """Each stage's milliseconds a product and its share of the bound that is nearest."""
    clock, n, prepare = CLOCKS[options.clock], len(products), model.prepare
    found: list[dict[str, Any]] = []

    def stage(name: str, run: Any, bound: str = "", least: float = 0.0) -> float:
        """`least`: seconds that the bound alone would take."""
        seconds = median_seconds(run, options.repeats, clock)
        share = least / seconds if least else None
        found.append({"stage": name, "ms": 1000 * seconds / n, "bound": bound, "share": share})
        return seconds

    refs = [product.images[0] for product in products]
    pictures = [engine.load_picture(ref, model.prompt.max_pixels) for ref in refs]
    texts = [model.prompt.text_of(product) for product in products]
    stage(
        "decode JPEG", lambda: [engine.load_picture(ref, model.prompt.max_pixels) for ref in refs],
        "Pillow alone", n / ceilings["jpeg_s"],
    )  # fmt: skip
    stage("resize, cut into patches", lambda: [prepare.cut([picture]) for picture in pictures])
    stage("tokenise", lambda: prepare.text_ids(texts))
    for name, tail, tokens in (
        ("direct prefill", prepare.emb, engine.CPU_DIRECT_TOKENS),
        ("reasoned prefill", prepare.think, engine.DEFAULT_BATCH_TOKENS),
    ):
        batches = [engine.make_batch(model, rows, [tail]) for rows in prepared(model, products, tokens)]
        keep = tail == prepare.think

        def read(batches: Any = batches, keep: bool = keep) -> None:
            for batch in batches:
                model.read(batch, use_cache=keep)

        work = flops(read)
        stage(name, read, "float32 matrix rate", work / ceilings["float32_flop_s"])
    rows = prepared(model, products, engine.DEFAULT_BATCH_TOKENS)
    written: list[list[Written]] = []

    def both() -> None:
        written.clear()
        for part in rows:
            batch = engine.make_batch(model, part, [prepare.think])
            written.append(engine.write(model, batch, model.read(batch, use_cache=True)))

    work = flops(both) - flops(lambda: read())
    moved = sum(bytes_written(model, part, done) for part, done in zip(rows, written, strict=True))
    least = max(work / ceilings["float32_flop_s"], moved / ceilings["copy_bytes_s"])
    seconds = median_seconds(both, options.repeats, clock) - found[-1]["ms"] * n / 1000
    bound = "memory" if moved / ceilings["copy_bytes_s"] == least else "float32 matrix rate"
    tokens = float(np.mean([one.tokens for done in written for one in done]))
    found.append({
        "stage": f"write ({tokens:.1f} tokens) and pool", "ms": 1000 * seconds / n, "bound": bound,
        "share": least / seconds,
    })  # fmt: skip
    return found


def bytes_written(model: MoonModel, rows: list[engine.Row], done: list[Written]) -> float:
    """Bytes that writing must read: the decoder's weights once a step, each row's cache once a token."""
    text = model.backbone.config.text_config
    decoder = sum(p.numel() for p in model.backbone.model.language_model.layers.parameters())
    weights = (decoder + text.vocab_size * text.hidden_size) * FLOAT
    cache = text.num_hidden_layers * 2 * text.num_key_value_heads * text.head_dim * FLOAT
    steps = max(one.tokens for one in done) + 2
    read = sum((row.length + one.tokens / 2) * (one.tokens + 2) for row, one in zip(rows, done, strict=True))
    return steps * weights + cache * read


def gpu_hours() -> dict[str, float]:
    """Hours for a million reasoned products by arithmetic, prefill and writing apart."""
    g = GPU
    read = g["image_tokens"] + g["text_tokens"]
    prefill = 2 * (g["decoder"] * read + g["tower"] * g["patches"]) / (g["flop_s"] * g["prefill_share"])
    cache = g["layers"] * g["kv"] * 2 * (read + g["written"] / 2)
    step = (2 * g["decoder"] + g["batch"] * cache) / (g["bytes_s"] * g["decode_share"])
    write = step * (g["written"] + 2) / g["batch"]
    return {"direct": prefill * 1e6 / 3600, "reasoned": (prefill + write) * 1e6 / 3600}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--products", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--photo", type=int, default=640, help="pixels a side; shops ask for 500 and more")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu where others are busy")
    parser.add_argument("--cpu-price", type=float, default=0.10, help="dollars an hour of this machine")
    parser.add_argument("--gpu-price", type=float, default=3.50, help="dollars an hour of one GPU")
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    model, name = load(options.model)
    console, clock = Console(width=150), CLOCKS[options.clock]
    with tempfile.TemporaryDirectory() as folder, console.status("measuring"):
        products = on_disk(options, Path(folder))
        files = [Path(str(product.images[0].path)) for product in products]
        side = 2 * int(model.prompt.max_pixels**0.5)
        before, after = (measure_ceilings(options, files, side) for _ in range(2))
        ceilings = {key: max(before[key], after[key]) for key in before}  # what it can do at most
        stages = measure_stages(model, options, products, ceilings)
        engines = {
            reason: median_seconds(lambda r=reason: model.encode(products, reason=r), options.repeats, clock)
            / len(products)
            for reason in ("off", "on")
        }
    hours = {reason: seconds * 1e6 / 3600 for reason, seconds in engines.items()}
    by_gpu = gpu_hours()
    million = {
        "cpu": {r: {"hours": h, "dollars": h * options.cpu_price} for r, h in hours.items()},
        "gpu": {r: {"hours": h, "dollars": h * options.gpu_price} for r, h in by_gpu.items()},
        "assumed": {**GPU, "cpu_price": options.cpu_price, "gpu_price": options.gpu_price},
    }
    results = {
        "model": name, "environment": environment(), "options": vars(options), "ceilings": ceilings,
        "stages": stages, "engine_s": engines, "million": million,
    }  # fmt: skip
    show(results, console)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, default=str))


def show(results: dict[str, Any], console: Console) -> None:
    c = results["ceilings"]
    console.print(
        f"{results['model']}; {torch.get_num_threads()} threads; load {os.getloadavg()[0]:.1f}\n"
        f"float32 {c['float32_flop_s'] / 1e9:.0f} GFLOP/s, bfloat16 {c['bfloat16_flop_s'] / 1e9:.0f}, copy "
        f"{c['copy_bytes_s'] / 1e9:.1f} GB/s, JPEG {c['jpeg_s']:.0f} a second", highlight=False,
    )  # fmt: skip
    table = Table("stage", "ms a product", "bound", "share of it")
    for s in results["stages"]:
        share = "" if s["share"] is None else f"{s['share']:.2f}"
        table.add_row(s["stage"], f"{s['ms']:.2f}", s["bound"], share)
    console.print(table)
    off, on = results["engine_s"]["off"], results["engine_s"]["on"]
    console.print(
        f"engine: direct {1000 * off:.1f} ms, reasoned {1000 * on:.1f} ms a product: {on / off:.2f}",
        highlight=False,
    )
    for where, costs in list(results["million"].items())[:2]:
        told = "; ".join(f"{r}: {x['hours']:.2f} h, {x['dollars']:.2f} $" for r, x in costs.items())
        console.print(f"a million products, {where}: {told}", highlight=False)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()

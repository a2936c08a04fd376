"""Speed-ups that were tried on the engine: what each would gain at most, or does gain, on this machine.

    python benchmarks/tries.py [--model starter] [--products 64] [--repeats 7] [--only prefix,padding,…]

prefix    a shared prefill of what all prompts begin with: the share of a prefill's tokens that it spares.
padding   packed batches, without padding: the share of tokens that are padding in the engine's own batches.
int8      weights of the decoder's linear layers in 8 bits, a scale a row, computed in bfloat16 or, with
          activations in 8 bits too, by PyTorch's dynamic quantisation; against float32. Vectors and words
          are compared.
compile   `torch.compile` of the backbone, shapes dynamic, against the plain one; needs a C++ compiler.
casts     bfloat16 weights kept as long as a window of batches (under `no_grad`, as the engine does on a GPU),
          against turned anew at every use (as autocast does under `inference_mode`); and what `no_grad` costs
          in float32.
freed     memory that the allocator keeps once it is freed (`moonshelf.memory`), against glibc as it comes:
          each in a process of its own, which wait for each other; encoding, and a step with its gradient.

Outcomes are in docs/experiments.md. How two sides are compared: `paired`.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine import load, on_disk, prepared
from paired import CLOCKS, paired, save
from rich.console import Console
from torch import Tensor, nn

from moonshelf.memory import keep_freed
from moonshelf.model import engine, modeling
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product

Figures = dict[str, Any]


# ---- what could be spared --------------------------------------------------------------------------


def prefix(model: MoonModel, options: argparse.Namespace, products: list[Product]) -> Figures:
    rows = [row for batch in prepared(model, products, options.batch_tokens) for row in batch]
    ids = [model.prepare.row(row.text, row.image_tokens, [model.prepare.think])[0] for row in rows]
    width = min(map(len, ids))
    together = next((n for n in range(width) if len({one[n] for one in ids}) > 1), width)
    # A visual token is the same id for every picture: what follows the first of them is not shared.
    together = min([together, *(one.index(model.prepare.image) for one in ids if model.prepare.image in one)])
    total = sum(map(len, ids))
    return {"common_tokens": together, "tokens_a_row": total / len(ids), "share": together * len(ids) / total}


def padding(model: MoonModel, options: argparse.Namespace, products: list[Product]) -> Figures:
    batches = prepared(model, products, options.batch_tokens)
    lengths = [[row.length for row in batch] for batch in batches]
    padded = sum(max(batch) * len(batch) for batch in lengths)
    return {"batches": len(batches), "share": 1 - sum(map(sum, lengths)) / padded}


# ---- weights in 8 bits -------------------------------------------------------------------------------


class Int8Linear(nn.Module):
    """A linear layer whose weight is int8 with a scale for each output, multiplied in the input's type."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(1) / 127
        self.weight = nn.Buffer((linear.weight / scale[:, None]).round().to(torch.int8))
        self.scale, self.bias = nn.Buffer(scale.bfloat16()), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).bfloat16()
        y = torch.ops.aten._weight_int8pack_mm(flat, self.weight, self.scale).to(x.dtype)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)


def weight_only(model: MoonModel) -> MoonModel:
    model = copy.deepcopy(model)
    for layer in list(model.decoder.layers.modules()):
        for name, child in layer.named_children():
            if type(child) is nn.Linear:
                setattr(layer, name, Int8Linear(child))
    return model


def dynamic(model: MoonModel) -> MoonModel:
    model = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated in favour of torchao, which has it for CPUs too
        quantised = torch.ao.quantization.quantize_dynamic(model.decoder.layers, {nn.Linear}, torch.qint8)
    model.backbone.model.language_model.layers = quantised
    return model


def int8(model: MoonModel, options: argparse.Namespace, products: list[Product]) -> Figures:
    plain, few = model.encode(products, reason="on"), products[: max(4, len(products) // 8)]
    found: Figures = {}
    for name, make in (("weights", weight_only), ("dynamic", dynamic)):
        other = make(model)
        got = other.encode(products, reason="on")
        jobs: dict[str, Callable[[MoonModel], Any]] = {
            "direct": lambda m: m.encode(products),
            "reasoned": lambda m: m.encode(products, reason="on"),
            "one at a time": lambda m: [m.encode([product], reason="on") for product in few],
        }
        found[name] = {
            job: _paired(lambda run=run, m=other: run(m), lambda run=run: run(model), options)
            for job, run in jobs.items()
        } | {
            "least_cosine": float((plain.vectors * got.vectors).sum(1).min()),
            "same_words": float(
                np.mean([a == b for a, b in zip(plain.rationales, got.rationales, strict=True)])
            ),
        }
    return found


# ---- torch.compile -----------------------------------------------------------------------------------


def compiled(model: MoonModel, options: argparse.Namespace, products: list[Product]) -> Figures:
    other = copy.deepcopy(model)
    started = time.perf_counter()
    other.backbone.model.language_model.compile(dynamic=True)
    other.backbone.model.visual.compile(dynamic=True)
    reference = model.encode(products)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = other.encode(products)
    took = time.perf_counter() - started
    found: Figures = {
        "first_call_s": took,
        "least_cosine": float((reference.vectors * got.vectors).sum(1).min()),
        "direct": _paired(lambda: other.encode(products), lambda: model.encode(products), options),
    }
    if options.writing:
        started = time.perf_counter()
        other.encode(products, reason="on")
        found["first_writing_s"] = time.perf_counter() - started
        found["reasoned"] = _paired(
            lambda: other.encode(products, reason="on"), lambda: model.encode(products, reason="on"), options
        )
    return found


# ---- casts under autocast ------------------------------------------------------------------------------


def casts(model: MoonModel, options: argparse.Namespace, products: list[Product]) -> Figures:
    few, found = products[: max(4, len(products) // 8)], Figures()

    def under(context: Callable[[], Any], run: Callable[[], Any]) -> Callable[[], Any]:
        def inside() -> Any:
            before, modeling.without_gradients = modeling.without_gradients, lambda *_: context()
            try:
                return run()
            finally:
                modeling.without_gradients = before

        return inside

    jobs: dict[str, Callable[[], Any]] = {
        "direct": lambda: model.encode(products),
        "reasoned": lambda: model.encode(products, reason="on"),
        "one at a time": lambda: [model.encode([product], reason="on") for product in few],
    }
    before = model.precision
    for precision in ("bfloat16", "float32"):
        model.precision = precision
        found[precision] = {
            job: _paired(under(torch.no_grad, run), under(torch.inference_mode, run), options)
            for job, run in jobs.items()
        }
    model.precision = before
    return found


# ---- memory that is freed ------------------------------------------------------------------------------


def _serve(pipe: Connection, options: argparse.Namespace, products: list[Product], keep: bool) -> None:
    """In a process of its own: run the job that is asked for, say when it is done, until None is asked."""
    if keep:
        keep_freed()
    model, _ = load(options.model)
    batch = engine.make_batch(
        model, prepared(model, products, options.batch_tokens)[0], [model.prepare.think]
    )

    def step() -> None:
        reading = model.read(batch)
        model.logits(reading.states).float().log_softmax(-1).mean().backward()
        model.zero_grad()

    jobs = {
        "direct": lambda: model.encode(products),
        "reasoned": lambda: model.encode(products, reason="on"),
        "gradient": step,
    }
    while (job := pipe.recv()) is not None:
        jobs[job]()
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def freed(model: MoonModel, options: argparse.Namespace, products: list[Product]) -> Figures:
    spawn, peaks = multiprocessing.get_context("spawn"), Figures()
    sides, workers = [], []
    for keep in (True, False):
        mine, theirs = spawn.Pipe()
        worker = spawn.Process(target=_serve, args=(theirs, options, products, keep), daemon=True)
        worker.start()
        sides.append(mine)
        workers.append(worker)

    def run(job: str, side: int) -> None:
        sides[side].send(job)
        peaks["kept" if side == 0 else "plain"] = round(sides[side].recv())

    found = {
        job: _paired(lambda job=job: run(job, 0), lambda job=job: run(job, 1), options)
        for job in ("direct", "reasoned", "gradient")
    }
    for side, worker in zip(sides, workers, strict=True):
        side.send(None)
        worker.join()
    return found | {"peak_mib": peaks}


def _paired(ours: Callable[[], Any], theirs: Callable[[], Any], options: argparse.Namespace) -> Figures:
    result = paired(ours, theirs, options.repeats, CLOCKS[options.clock])
    return {name: result[name] for name in ("ratio", "interval", "ours_s", "theirs_s")}


PARTS: dict[str, Callable[[MoonModel, argparse.Namespace, list[Product]], Figures]] = {
    "prefix": prefix, "padding": padding, "int8": int8, "compile": compiled, "casts": casts,
    "freed": freed,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--products", type=int, default=64)
    parser.add_argument("--photo", type=int, default=640, help="pixels a side")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch-tokens", type=int, default=engine.DEFAULT_BATCH_TOKENS)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument(
        "--writing", action="store_true", help="compile: writing too, which compiles for long"
    )
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu where others are busy")
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    model, name = load(options.model)
    console, results = Console(width=150), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        products = on_disk(options, Path(folder))
        for part in options.only.split(","):
            with console.status(part):
                results[part] = PARTS[part](model, options, products)
            console.print(f"[bold]{part}[/bold]", results[part])
    console.print(f"{name}; {torch.get_num_threads()} threads; load {os.getloadavg()[0]:.1f}")
    save(options.json, options, results)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()

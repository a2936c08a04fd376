"""What the engine's choices are worth, measured against what a user would do without it.

    python benchmarks/engine.py [--model starter] [--products 256] [--repeats 9] [--only one-pass,direct,...]

one-pass  reasoned vectors by the engine, against `generate` of transformers with the same greedy choice and
          a second forward over prompt and rationale; the same prepared batches, the vectors compared.
alone     reasoned vectors of one product at a time, as a lone caller has them: with guesses checked ahead,
          against one token a pass; the same words written, the vectors compared.
direct    direct vectors of photo and title by `MoonModel.encode`, in --precision, against
          `SentenceTransformer.encode` of the same folder and files in float32, at its best batch size.
prefill   floating-point operations of a prefill a second, against float32 matrix products measured before,
          large square ones and the shapes of the model.
memory    peak memory of a stream of products, in a process for each length.

How two sides are compared: `paired`. Without a shipped starter, a random one of its size.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import numpy as np
import torch
from paired import CLOCKS, median_seconds, paired
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moonshelf.cli.doctor import environment
from moonshelf.model import decode, engine, files
from moonshelf.model.encoders.base import Encoded
from moonshelf.model.modeling import MoonModel, normalise
from moonshelf.model.precision import resolve
from moonshelf.product import ImageRef, Product
from research.studies.generated import Generated
from research.synthetic.shop import iter_products

PARTS = ("one-pass", "alone", "direct", "prefill", "memory")


# ---- what is measured with -------------------------------------------------------------------------


def load(name: str) -> tuple[MoonModel, str]:
    """The model and how to name it in the report; saved in a folder, since the peer loads it from there."""
    if name != "starter" or (files.STARTER / "moon.json").is_file():
        return MoonModel.from_pretrained(name), name
    from moonshelf.training.starter import build_starter, build_tokenizer

    texts = [
        f"{p.title} {p.description} {' '.join(p.category)}" for p in iter_products(400, photos=1, size=32)
    ]
    tokenizer = build_tokenizer([*texts, *["user\nassistant\n"] * 400])
    folder = Path(tempfile.mkdtemp(prefix="moonshelf-bench-")) / "random-starter"
    build_starter(tokenizer).save_pretrained(folder)
    return MoonModel.from_pretrained(folder), "random weights of the starter's size"


def on_disk(options: argparse.Namespace, folder: Path) -> list[Product]:
    """Products of the sample shop with one photo each in a file, as a feed has them."""
    products: list[Product] = []
    for product in iter_products(options.products, photos=1, size=options.photo):
        path = folder / f"{len(products)}.jpg"
        path.write_bytes(product.images[0].data or b"")
        products.append(Product(id=product.id, title=product.title, images=(ImageRef(path=str(path)),)))
    return products


def prepared(model: MoonModel, products: Iterable[Product], tokens: int) -> list[list[engine.Row]]:
    """Rows in the batches that the engine would make of them."""
    rows, problems = engine.read_rows(model, [(i, (p, "")) for i, p in enumerate(products)], "on")
    assert not problems
    rows.sort(key=lambda row: row.length)
    return [[rows[i] for i in part] for part in engine._batches([row.length for row in rows], tokens)]


# ---- one pass against generate, then encode again --------------------------------------------------


def twice(model: MoonModel, batches: list[list[engine.Row]]) -> tuple[np.ndarray, list[list[int]]]:
    """Write with `generate`, then encode prompt and rationale in one forward."""
    prepare, vectors, written, writer = model.prepare, [], [], Generated()
    with model.inferring():
        for rows in batches:
            first = engine.make_batch(model, rows, [prepare.think])
            bodies = [body.ids for body in writer.write_batch(model, first)]
            tails = [[prepare.think, *body, prepare.end_think, prepare.emb] for body in bodies]
            second = prepare.batch([r.text for r in rows], [r.image_tokens for r in rows], tails)
            second = second.to(model.device)
            second.pixel_values, second.grid = first.pixel_values, first.grid
            vectors.append(normalise(model(second)[0]).cpu().numpy())
            written += bodies
    return np.concatenate(vectors), written


def once(model: MoonModel, batches: list[list[engine.Row]]) -> tuple[np.ndarray, list[int]]:
    results = []
    with model.inferring():
        for rows in batches:
            batch = engine.make_batch(model, rows, [model.prepare.think])
            results += engine.write(model, batch, model.read(batch, use_cache=True))
    return np.stack([r.vector for r in results]), [r.tokens for r in results]


def one_pass(model: MoonModel, options: argparse.Namespace, products: list[Product]) -> dict[str, Any]:
    batches = prepared(model, products, options.batch_tokens)
    ours, tokens = once(model, batches)
    theirs, written = twice(model, batches)
    same = np.array([len(body) == n for body, n in zip(written, tokens, strict=True)])
    result = paired(
        lambda: once(model, batches), lambda: twice(model, batches), options.repeats, CLOCKS[options.clock]
    )
    return result | {
        "products": len(tokens),
        "tokens_written": float(np.mean(tokens)),
        "same_length": float(same.mean()),
        "least_cosine": float((ours * theirs).sum(1)[same].min()),
        "aim": 1.5,
    }


# ---- guesses -------------------------------------------------------------------------------------


def alone(model: MoonModel, options: argparse.Namespace, products: list[Product]) -> dict[str, Any]:
    others, products = products[: len(products) // 2], products[len(products) // 2 :]
    for product in others:  # what it wrote before is of other products
        model.encode([product], reason="on")
    before, most = model.lookup, decode.GUESSED_TOKENS

    def run(tokens: int) -> list[Encoded]:
        model.lookup, decode.GUESSED_TOKENS = copy.deepcopy(before), tokens
        try:
            return [model.encode([product], reason="on") for product in products]
        finally:
            decode.GUESSED_TOKENS = most

    ours, theirs = run(most), run(0)
    pairs = list(zip(ours, theirs, strict=True))
    return paired(lambda: run(most), lambda: run(0), options.repeats, CLOCKS[options.clock]) | {
        "products": len(products),
        "same_words": float(np.mean([a.rationales == b.rationales for a, b in pairs])),
        "tokens_written": float(np.mean([one.tokens[0] for one in ours])),
        "least_cosine": float(min(a.vectors[0] @ b.vectors[0] for a, b in pairs)),
        "aim": 1.3,
    }


# ---- direct vectors against SentenceTransformer ----------------------------------------------------


def direct(model: MoonModel, options: argparse.Namespace, products: list[Product]) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(model.source), trust_remote_code=True, device="cpu")
    inputs = [{"text": p.title, "image": p.images[0].path} for p in products]
    clock = CLOCKS[options.clock]
    sizes = {}
    for size in (8, 16, 32, 64):
        sizes[size] = median_seconds(partial(peer.encode, inputs, batch_size=size), 2, clock)
    best = min(sizes, key=sizes.__getitem__)
    ours = model.encode(products).vectors
    theirs = peer.encode(inputs, batch_size=best)
    result = paired(
        lambda: model.encode(products), lambda: peer.encode(inputs, batch_size=best), options.repeats, clock
    )
    return result | {
        "products": len(products),
        "peer_batch_size": best,
        "peer_seconds_by_batch_size": sizes,
        "least_cosine": float((ours * theirs).sum(1).min()),
        "dtype": str(resolve(model.precision, model.device)).removeprefix("torch."),
        "aim": 1.3,
    }


# ---- share of the matrix-product rate --------------------------------------------------------------


def gemm_rate(m: int, k: int, n: int, clock: Callable[[], float]) -> float:
    """FLOP/s of x (m, k) times a weight (n, k), as a linear layer multiplies."""
    x, weight = torch.randn(m, k), torch.randn(n, k)
    with torch.inference_mode():
        return 2 * m * k * n / median_seconds(lambda: torch.nn.functional.linear(x, weight), 7, clock)


def flops(run: Callable[[], Any]) -> float:
    """Floating-point operations of a call, attention's among them."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return float(counter.get_total_flops())


@torch.inference_mode()
def prefill(model: MoonModel, options: argparse.Namespace, products: list[Product]) -> dict[str, Any]:
    clock = CLOCKS[options.clock]
    rows = prepared(model, products, options.batch_tokens)[0]
    batch = engine.make_batch(model, rows, [model.prepare.emb])

    def run() -> None:
        model(batch)

    work = flops(run)
    vision, text = model.backbone.config.vision_config, model.backbone.config.text_config
    patches = 0 if batch.pixel_values is None else len(batch.pixel_values)
    # The two products that a prefill spends most on: the feed-forward layers of the tower and of the decoder.
    shapes = {
        "tower": (patches, vision.hidden_size, vision.intermediate_size),
        "decoder": (batch.input_ids.numel(), text.hidden_size, text.intermediate_size),
        "square": (2048, 2048, 2048),
    }
    before = {name: gemm_rate(*shape, clock) for name, shape in shapes.items()}
    seconds = median_seconds(run, options.repeats, clock)
    after = {name: gemm_rate(*shape, clock) for name, shape in shapes.items()}
    rates = {name: (before[name] + after[name]) / 2 for name in shapes}
    return {
        "rows": len(rows),
        "tokens": batch.input_ids.numel(),
        "patches": patches,
        "gflop": work / 1e9,
        "seconds": seconds,
        "gflop_s": work / seconds / 1e9,
        "gemm_gflop_s": {name: rate / 1e9 for name, rate in rates.items()},
        "share_of_square": work / seconds / rates["square"],
        "share_of_own_shapes": work / seconds / min(rates["tower"], rates["decoder"]),
        "aim": 0.5,
    }


# ---- peak memory -----------------------------------------------------------------------------------


def endless(distinct: int = 200) -> Iterator[Product]:
    """Products without end that cost nothing to make: a few hundred photos, told again with new ids."""
    kept = list(iter_products(distinct, photos=1))
    for i in range(sys.maxsize):
        yield kept[i % distinct].model_copy(update={"id": str(i)})


def stream(model: MoonModel, n: int, reason: Any, batch_tokens: int) -> dict[str, float]:
    """Run in a process of its own: peak memory in MiB after loading, and at the end of n products."""
    source = endless()
    warm = [next(source) for _ in range(8)]
    model.encode(warm, reason=reason)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seen = 0
    for part in model.encode_iter(islice(source, n), reason=reason, batch_tokens=batch_tokens):
        seen += len(part.ids)
    assert seen == n
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"products": n, "loaded_mib": loaded, "peak_mib": peak}


def memory(model: MoonModel, options: argparse.Namespace, products: list[Product]) -> dict[str, Any]:
    runs = []
    for n in options.lengths:
        command = [sys.executable, __file__, "--model", str(model.source), "--stream", str(n)]
        command += ["--batch-tokens", str(options.batch_tokens), "--reason", options.reason]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    growth = runs[-1]["peak_mib"] / runs[0]["peak_mib"]
    return {"runs": runs, "growth": growth, "reason": options.reason, "aim": 1.05}


# ---- report ----------------------------------------------------------------------------------------


def show(results: dict[str, Any], console: Console) -> None:
    table = Table("part", "ours", "theirs", "ratio", "95%", "aim", "remark")
    for name in ("one-pass", "alone", "direct"):
        if name in results:
            r = results[name]
            each = 1000 / r["products"]
            extra = f"{r['tokens_written']:.1f} tokens written, " if "tokens_written" in r else ""
            table.add_row(
                name,
                f"{r['ours_s'] * each:.2f} ms",
                f"{r['theirs_s'] * each:.2f} ms",
                f"{r['ratio']:.2f}",
                f"{r['interval'][0]:.2f}–{r['interval'][1]:.2f}",
                f"≥ {r['aim']}",
                f"{extra}cosine ≥ {r['least_cosine']:.7f}, {r['products']} products",
            )
    if "prefill" in results:
        r = results["prefill"]
        table.add_row(
            "prefill",
            f"{r['gflop_s']:.1f} GFLOP/s",
            f"{r['gemm_gflop_s']['square']:.1f} GFLOP/s",
            f"{r['share_of_square']:.2f}",
            "",
            f"≥ {r['aim']}",
            f"of its own shapes {r['share_of_own_shapes']:.2f}; {r['gflop']:.0f} GFLOP, {r['tokens']} tokens",
        )
    if "memory" in results:
        first, last = results["memory"]["runs"][0], results["memory"]["runs"][-1]
        table.add_row(
            "memory",
            f"{first['peak_mib']:.0f} MiB",
            f"{last['peak_mib']:.0f} MiB",
            f"{results['memory']['growth']:.3f}",
            "",
            f"≤ {results['memory']['aim']}",
            f"{first['products']:,} and {last['products']:,} products; {first['loaded_mib']:.0f} MiB idle",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--products", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch-tokens", type=int, default=engine.DEFAULT_BATCH_TOKENS)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--lengths", type=lambda s: [int(x) for x in s.split(",")], default=[1000, 20_000])
    parser.add_argument("--reason", choices=("off", "on", "auto"), default="off", help="for the memory part")
    parser.add_argument("--photo", type=int, default=640, help="pixels a side; shops ask for 500 and more")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu where others are busy")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "auto"), default="float32")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--stream", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model, name = load(options.model)
    model.precision = options.precision
    if options.stream:
        print(json.dumps(stream(model, options.stream, options.reason, options.batch_tokens)))
        return
    console = Console(width=150)
    parts = {
        "one-pass": one_pass, "alone": alone, "direct": direct, "prefill": prefill, "memory": memory
    }  # fmt: skip
    results: dict[str, Any] = {"model": name, "environment": environment(), "options": vars(options)}
    with tempfile.TemporaryDirectory() as folder:
        products = on_disk(options, Path(folder))
        for part in options.only.split(","):
            with console.status(part):
                results[part] = parts[part](model, options, products)
    console.print(
        f"{name}; {torch.get_num_threads()} threads; {options.clock} clock; load {os.getloadavg()[0]:.1f}"
    )
    show(results, console)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, default=str))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()

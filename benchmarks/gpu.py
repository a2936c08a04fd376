"""The engine and the joint step at the size of Qwen3-VL-2B on a GPU, with random weights.

    python benchmarks/gpu.py [--size 2b] [--batches 1,8,32,128] [--joint] [--out gpu] [--device cuda]

Speed and memory do not depend on what the weights are, so none are needed: the published sizes, drawn
weights, the starter's tokenizer. Measured first are the device's own ceilings, bfloat16 matrix products and a
copy of memory; then, for each batch, a direct pass (share of the matrix rate), writing 32 tokens (share of
memory's bandwidth: a step reads all weights of the decoder and the rows' caches), peak memory; then reasoned
against direct, one pass against two, and with `--joint` the joint step against TRL's. Figures go to
OUT/gpu.json and a plot. `--size tiny --device cpu` runs the same path anywhere, to see that it runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import torch
from engine import flops, once, twice
from paired import median_seconds, paired
from rich.console import Console
from rich.table import Table
from transformers import Qwen2VLImageProcessorPil, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from moonshelf.cli.doctor import environment
from moonshelf.model import engine
from moonshelf.model.configuration import MoonConfig, default_taps
from moonshelf.model.modeling import MoonModel
from moonshelf.model.processing import MoonProcessor
from moonshelf.prompts import PromptSpec
from moonshelf.training.starter import CHAT_TEMPLATE, SPECIAL_TOKENS
from research.studies.estimate import PUBLISHED
from research.synthetic.shop import iter_products

WRITTEN = 32
PROMPT = PromptSpec(min_pixels=224 * 224, max_pixels=448 * 448, max_rationale_tokens=WRITTEN)
TINY = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 8}
BYTES = 2  # of a bfloat16: the ceiling is that of weights that are kept in it


def random_model(size: str, device: torch.device) -> MoonModel:
    """Qwen3-VL of the published sizes (or a tiny one) with drawn weights and a fresh head, computed in
    bfloat16 as the engine does it: weights are cast once and kept beside the float32 ones."""
    tokenizer = MoonModel.from_pretrained("starter").processor.tokenizer
    _, text, vision = PUBLISHED["Qwen/Qwen3-VL-2B-Instruct"]
    if size == "tiny":
        text, vision = {**text, **TINY}, {**vision, "depth": 3, "deepstack_visual_indexes": [1]}
        vision |= {"hidden_size": 128, "intermediate_size": 256, "num_heads": 2, "out_hidden_size": 256}
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    rope = {
        "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config={**text, "max_position_embeddings": 4096, "rope_parameters": rope},
        vision_config={**vision, "temporal_patch_size": 2, "spatial_merge_size": 2},
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    with device:
        backbone = Qwen3VLForConditionalGeneration(config)
    images = Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, temporal_patch_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        min_pixels=PROMPT.min_pixels, max_pixels=PROMPT.max_pixels,
    )  # fmt: skip
    settings = {"hidden": text["hidden_size"], "taps": default_taps(text["num_hidden_layers"])}
    model = MoonModel(
        backbone, MoonProcessor(images, tokenizer, chat_template=CHAT_TEMPLATE),
        MoonConfig.model_validate(settings), PROMPT,
    )  # fmt: skip
    model.precision = "bfloat16"
    return model.to(device).eval()


def ceilings(device: torch.device, clock: Callable[[], float]) -> dict[str, float]:
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, dtype=torch.bfloat16, device=device)
    big = torch.zeros(n * n * 16, dtype=torch.bfloat16, device=device)
    other = torch.empty_like(big)
    return {
        "flop_s": 2 * n**3 / median_seconds(lambda: a @ a, 9, clock),
        "bytes_s": 2 * big.numel() * BYTES / median_seconds(lambda: other.copy_(big), 9, clock),
    }


@torch.no_grad()
def one_batch(
    model: MoonModel, rows: list[engine.Row], top: dict[str, float], clock: Callable[[], float], repeats: int
) -> dict[str, Any]:
    """Direct pass, prefill with its cache and writing of one batch: seconds, shares, peak memory."""
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    direct = engine.make_batch(model, rows, [model.prepare.emb])
    first = engine.make_batch(model, rows, [model.prepare.think])

    def reasoned() -> None:
        engine.write(model, first, model.read(first, use_cache=True))

    work = flops(lambda: model(direct))  # the same in any precision
    with model.inferring():
        seconds = {
            "direct": median_seconds(lambda: model(direct), repeats, clock),
            "prefill": median_seconds(lambda: model.read(first, use_cache=True), repeats, clock),
            "reasoned": median_seconds(reasoned, repeats, clock),
        }
    text = model.backbone.config.text_config
    weights = sum(p.numel() for p in model.decoder.layers.parameters()) + text.vocab_size * text.hidden_size
    cache = text.num_hidden_layers * 2 * text.num_key_value_heads * text.head_dim * first.input_ids.shape[1]
    moved = BYTES * (WRITTEN + 2) * (weights + len(rows) * cache)
    writing = seconds["reasoned"] - seconds["prefill"]
    return {
        "rows": len(rows), "tokens": int(direct.attention.sum()), "seconds": seconds,
        "products_s": {name: len(rows) / seconds[name] for name in ("direct", "reasoned")},
        "prefill_share": work / seconds["direct"] / top["flop_s"],
        "written_s": len(rows) * WRITTEN / writing, "write_share": moved / writing / top["bytes_s"],
        "reasoned_to_direct": seconds["reasoned"] / seconds["direct"],
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
    }  # fmt: skip


def joint(model: MoonModel, options: argparse.Namespace, clock: Callable[[], float]) -> dict[str, Any]:
    """The joint step against TRL's, on the model saved to disk, as `benchmarks/training.py` does it."""
    from training import joint_sides, shop

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "model")
        shop(folder, 64)
        step = argparse.Namespace(
            model=str(folder / "model"), products=8, rollouts=4, precision="bfloat16"
        )  # fmt: skip
        ours, theirs, facts = joint_sides(step, folder)
        return paired(ours, theirs, options.repeats, clock) | facts


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    sizes = [run["rows"] for run in runs]
    for name in ("direct", "reasoned"):
        axes[0].plot(sizes, [run["products_s"][name] for run in runs], marker="o", label=name)
    axes[1].plot(sizes, [run["prefill_share"] for run in runs], marker="o", label="prefill: matrix rate")
    axes[1].plot(sizes, [run["write_share"] for run in runs], marker="o", label="writing: memory")
    if runs[0]["peak_gib"] is not None:
        axes[2].plot(sizes, [run["peak_gib"] for run in runs], marker="o", label="peak memory")
    for axis, title in zip(axes, ("products a second", "share of the ceiling", "GiB"), strict=True):
        axis.set(title=title, xlabel="rows of a batch", ylim=(0, None))
        axis.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("2b", "tiny"), default="2b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", type=lambda s: [int(x) for x in s.split(",")], default=[1, 8, 32, 128])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--joint", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: `--size tiny --device cpu` tries the script without one")

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=150)
    results: dict[str, Any] = {
        "environment": environment(), "size": options.size, "ceilings": ceilings(device, clock), "runs": [],
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }  # fmt: skip

    def save() -> None:
        (options.out / "gpu.json").write_text(json.dumps(results, indent=1))

    model = random_model(options.size, device)
    products = list(iter_products(max(options.batches), photos=1, size=448))
    rows, problems = engine.read_rows(model, [(i, (p, "")) for i, p in enumerate(products)], "on")
    assert not problems
    for n in options.batches:
        try:
            run = one_batch(model, rows[:n], results["ceilings"], clock, options.repeats)
        except torch.OutOfMemoryError:
            console.print(f"{n} rows do not fit")
            break
        results["runs"].append(run)
        save()
        gc.collect()
    n = min(32, max(options.batches))
    results["one_pass"] = paired(
        lambda: once(model, [rows[:n]]), lambda: twice(model, [rows[:n]]), options.repeats, clock
    )
    if options.joint:
        results["joint"] = joint(model, options, clock)
    save()
    table = Table("rows", "direct /s", "reasoned /s", "ratio", "prefill share", "write share", "GiB")
    for run in results["runs"]:
        memory = "" if run["peak_gib"] is None else f"{run['peak_gib']:.1f}"
        table.add_row(
            str(run["rows"]), *(f"{x:.1f}" for x in run["products_s"].values()),
            f"{run['reasoned_to_direct']:.2f}", f"{run['prefill_share']:.2f}", f"{run['write_share']:.2f}",
            memory,
        )  # fmt: skip
    c = results["ceilings"]
    console.print(
        f"{results['device']}: {c['flop_s'] / 1e12:.2f} TFLOP/s in bfloat16, "
        f"{c['bytes_s'] / 1e9:.0f} GB/s copied",
        highlight=False,
    )
    console.print(table)
    for name in ("one_pass", "joint"):
        if name in results:
            r = results[name]
            console.print(f"{name}: {r['ratio']:.2f} ({r['interval'][0]:.2f}–{r['interval'][1]:.2f})")
    plot(results["runs"], options.out / "gpu.svg")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()

"""One day with a GPU, in calls of under ten minutes: what to run, and what is left when a call ends.

    python -m research.gpu_day pack --data DATA --out runs/gpu-day    # on any machine: 60 MB to carry at most
    python -m research.gpu_day load --out runs/gpu-day                # then on the GPU, one call each …
    python -m research.gpu_day all --out runs/gpu-day --minutes 9     # … or what is left, until time is up
    python -m research.gpu_day show --out runs/gpu-day

load        Qwen3-VL of 2 B parameters: `--backbone FOLDER` where there is one, else the published sizes with
            drawn weights and the starter's tokenizer. Speed and memory do not depend on what the weights are.
ceilings    the device's own: bfloat16 matrix products, and a copy of memory.
embed       direct vectors by rows of a batch: products a second, share of the matrix rate, peak memory.
reason      the same with 32 tokens written: share of memory's bandwidth, since a step reads all weights of
            the decoder and the rows' caches.
cold-start  steps of stage one by batch: seconds, peak memory.
joint       steps of stage two by rollouts.
vllm        the rationales by vLLM in this process, where it is installed.
starter     the starter's recipe on the packed data, to its end; each call goes on from the last.

Every figure is a key of OUT/gpu_day.json, written as soon as it is known: a call that is killed loses the
figure in hand, the next one goes on. What does not fit in memory is a figure too. `--size tiny --device cpu`
runs the same path anywhere, to see that it runs.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
import yaml
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2VLImageProcessorPil, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from moonshelf import images
from moonshelf.cli.doctor import environment
from moonshelf.errors import UserError
from moonshelf.model import engine
from moonshelf.model.configuration import MoonConfig, default_taps
from moonshelf.model.modeling import MoonModel
from moonshelf.model.processing import MoonProcessor
from moonshelf.product import ImageRef
from moonshelf.prompts import PromptSpec
from moonshelf.training.starter import CHAT_TEMPLATE, SPECIAL_TOKENS
from research.script import app_of, start
from research.studies.estimate import PUBLISHED
from research.synthetic.shop import iter_products

CALLS = ("load", "ceilings", "embed", "reason", "cold-start", "joint", "vllm", "starter")
WRITTEN = 32
PROMPT = PromptSpec(min_pixels=224 * 224, max_pixels=448 * 448, max_rationale_tokens=WRITTEN)
TINY = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 8}
BYTES = 2  # of a bfloat16: the ceiling is that of weights that are kept in it
REPEATS = 5
PACKED = 55 << 20  # bytes of packed data, which leaves room for the rest of what is carried
SIDE, QUALITY = 160, 75  # of a packed picture: the starter reads 160 pixels a side at most


class OutOfTime(Exception):
    """The call's minutes are used up: the next one goes on."""


class Day:
    """What is known so far, in OUT/gpu_day.json, and how long this call may take."""

    def __init__(self, out: Path, device: str, size: str, minutes: float, batches: list[int]) -> None:
        self.out, self.size, self.batches = out, size, batches
        self.device, self.until = torch.device(device), time.monotonic() + 60 * minutes
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise UserError("there is no CUDA device here: --size tiny --device cpu tries it without one.")
        out.mkdir(parents=True, exist_ok=True)
        self.file = out / "gpu_day.json"
        self.figures: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.model_folder = out / f"model-{size}"
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        if self.figures.setdefault("device", name) != name or self.figures.setdefault("size", size) != size:
            raise UserError(f"{self.file} holds figures of another device or size: give another --out.")
        self.figures.setdefault("environment", environment())

    def left(self) -> float:
        """Seconds of this call."""
        return self.until - time.monotonic()

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def once(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """The figures of `key`, measured if they are not known; None where memory ran out, now or before."""
        if key not in self.figures:
            if self.left() < 0:
                raise OutOfTime
            print(f"{key} …", flush=True)
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            try:
                found = measure()
            except torch.OutOfMemoryError:
                found = {"out_of_memory": True}
            if self.device.type == "cuda" and "out_of_memory" not in found:
                found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            self.figures[key] = found
            self.save()
            gc.collect()
            torch.cuda.empty_cache()
        known: dict[str, Any] = self.figures[key]
        return None if known.get("out_of_memory") else known

    def save(self) -> None:
        beside = self.file.with_suffix(".part")
        beside.write_text(json.dumps(self.figures, indent=1))
        beside.replace(self.file)

    def seconds(self, run: Callable[[], Any]) -> float:
        """Median of some runs, after one that does not count; of one alone where they are long."""
        run()
        found: list[float] = []
        while len(found) < REPEATS and (not found or sum(found) < 20):
            began = self.clock()
            run()
            found.append(self.clock() - began)
        return float(np.median(found))


# ---- the model ---------------------------------------------------------------------------------------


def random_model(size: str, device: torch.device) -> MoonModel:
    """Qwen3-VL of the published sizes (or a tiny one) with drawn weights and a fresh head."""
    tokenizer = MoonModel.from_pretrained("starter").processor.tokenizer
    _, text, vision = PUBLISHED["Qwen/Qwen3-VL-2B-Instruct"]
    if size == "tiny":
        text, vision = {**text, **TINY}, {**vision, "depth": 3, "deepstack_visual_indexes": [1]}
        vision |= {"hidden_size": 128, "intermediate_size": 256, "num_heads": 2, "out_hidden_size": 256}
        text["vocab_size"] = len(tokenizer)
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
    pictures = Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, temporal_patch_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        min_pixels=PROMPT.min_pixels, max_pixels=PROMPT.max_pixels,
    )  # fmt: skip
    settings = {"hidden": text["hidden_size"], "taps": default_taps(text["num_hidden_layers"])}
    processor = MoonProcessor(pictures, tokenizer, chat_template=CHAT_TEMPLATE)
    return MoonModel(backbone, processor, MoonConfig.model_validate(settings), PROMPT).to(device).eval()


def load(day: Day, backbone: str | None) -> None:
    """The model that all else takes, saved in bfloat16 to OUT, and how long it takes to read it back."""

    def make() -> dict[str, Any]:
        model = MoonModel.from_backbone(backbone, PROMPT) if backbone else random_model(day.size, day.device)
        model.save_pretrained(day.model_folder, dtype=torch.bfloat16)
        return {"parameters": sum(p.numel() for p in model.parameters()), "backbone": backbone or "random"}

    def read() -> dict[str, Any]:
        began = day.clock()
        opened(day)
        return {"seconds": day.clock() - began}

    day.once("load/save", make)
    if not (day.model_folder / "moon.json").is_file():  # another machine measured what is known
        make()
    day.once("load/read", read)


def opened(day: Day) -> MoonModel:
    if not (day.model_folder / "moon.json").is_file():
        raise UserError(f"{day.model_folder} is not there: run `load` first.")
    model = MoonModel.from_pretrained(day.model_folder, precision="bfloat16")
    return model.to(day.device)


# ---- engine ------------------------------------------------------------------------------------------


def ceilings(day: Day) -> dict[str, Any]:
    def measure() -> dict[str, Any]:
        n = 8192 if day.device.type == "cuda" else 512
        a = torch.randn(n, n, dtype=torch.bfloat16, device=day.device)
        big = torch.zeros(n * n * 16, dtype=torch.bfloat16, device=day.device)
        other = torch.empty_like(big)
        flops = 2 * n**3 / day.seconds(lambda: a @ a)
        return {"flop_s": flops, "bytes_s": 2 * big.numel() * BYTES / day.seconds(lambda: other.copy_(big))}

    return day.once("ceilings", measure) or {}


@torch.no_grad()
def engine_figures(day: Day, reason: str) -> None:
    """A direct pass, or a prefill with its cache and 32 tokens written, by rows of a batch."""
    top, wanted = ceilings(day), [n for n in day.batches if f"{reason}/{n}" not in day.figures]
    if not wanted:
        return
    model = opened(day)
    products = list(iter_products(max(wanted), photos=1, size=448))
    rows, problems = engine.read_rows(model, [(i, (p, "")) for i, p in enumerate(products)], "on")
    assert not problems
    text = model.backbone.config.text_config
    weights = sum(p.numel() for p in model.decoder.layers.parameters()) + text.vocab_size * text.hidden_size

    def direct(n: int) -> dict[str, Any]:
        batch = engine.make_batch(model, rows[:n], [model.prepare.emb])
        with FlopCounterMode(display=False) as counter:
            model(batch)
        with model.inferring():
            seconds = day.seconds(lambda: model(batch))
        return {
            "rows": n, "tokens": int(batch.attention.sum()), "seconds": seconds, "products_s": n / seconds,
            "matrix_share": counter.get_total_flops() / seconds / top["flop_s"],
        }  # fmt: skip

    def reasoned(n: int) -> dict[str, Any]:
        batch = engine.make_batch(model, rows[:n], [model.prepare.think])
        with model.inferring():
            prefill = day.seconds(lambda: model.read(batch, use_cache=True))
            whole = day.seconds(lambda: engine.write(model, batch, model.read(batch, use_cache=True)))
        cache = (
            text.num_hidden_layers * 2 * text.num_key_value_heads * text.head_dim * batch.input_ids.shape[1]
        )
        moved, writing = BYTES * (WRITTEN + 2) * (weights + n * cache), max(whole - prefill, 1e-9)
        return {
            "rows": n, "prefill_s": prefill, "seconds": whole, "products_s": n / whole,
            "written_s": n * WRITTEN / writing, "memory_share": moved / writing / top["bytes_s"],
        }  # fmt: skip

    for n in wanted:
        measure = direct if reason == "embed" else reasoned
        if day.once(f"{reason}/{n}", lambda n=n, measure=measure: measure(n)) is None:  # type: ignore[misc]
            break


def vllm(day: Day) -> None:
    """Rationales by vLLM's own engine of what `moonshelf export` writes."""
    from moonshelf.cli.export import export_vllm
    from moonshelf.model.writers import Offline

    def measure() -> dict[str, Any]:
        model = opened(day)
        export_vllm(model, day.out / "export")
        try:
            writer = Offline(model, str(day.out / "export"), strict=False, dtype="bfloat16")
        except UserError as error:
            return {"not_run": str(error)}
        products = list(iter_products(max(day.batches), photos=1, size=448))
        rows, _ = engine.read_rows(model, [(i, (p, "")) for i, p in enumerate(products)], "on")
        seconds = day.seconds(lambda: writer.write(model, rows))
        return {"rows": len(rows), "seconds": seconds, "products_s": len(rows) / seconds}

    day.once("vllm", measure)


# ---- training ----------------------------------------------------------------------------------------


def steps(day: Day, stage: str) -> None:
    """Seconds of a step and peak memory, of a cold start by products, of a joint step by rollouts."""
    from moonshelf.training.cold_start import ColdStart, set_up
    from moonshelf.training.data import Sampler, SourceSpec, open_source
    from moonshelf.training.joint import JointTrainer
    from moonshelf.training.recipe import JointRecipe, Recipe

    common: dict[str, Any] = {
        "model": str(day.model_folder), "sources": [SourceSpec(feed="sample")], "steps": 10**6,
        "checkpointing": True, "memory": 0, "report_to": (), "lr": 1e-6,
        "precision": "bfloat16" if day.device.type == "cuda" else "float32",
    }  # fmt: skip

    def cold(n: int) -> dict[str, Any]:
        recipe = Recipe(
            **common, out=str(day.out / f"cold-start-{n}"), batch=n, chunk=min(n, 16), self_generated_from=1
        )
        return measured(ColdStart(*set_up(recipe, day.out)), {"products": n})

    def joint(n: int) -> dict[str, Any]:
        recipe = JointRecipe(**common, out=str(day.out / f"joint-{n}"), products=max(2, n // 8), rollouts=8)
        sampler = Sampler([open_source(spec, day.out) for spec in recipe.sources])
        model = opened(day)
        return measured(JointTrainer(model, recipe, sampler), {"products": recipe.products, "rollouts": 8})

    def measured(trainer: Any, facts: dict[str, Any]) -> dict[str, Any]:
        trainer.recipe.steps = 10**6
        batches, optimiser = iter(trainer.get_train_dataloader()), trainer.create_optimizer()
        spent: list[float] = []
        for _ in range(3):  # the first one also makes the optimiser's moments
            inputs, began = next(batches), day.clock()
            optimiser.zero_grad(set_to_none=True)
            trainer.training_step(trainer.model, inputs)
            optimiser.step()
            spent.append(day.clock() - began)
            if day.left() < 0 and len(spent) > 1:
                break
        return facts | {"seconds": min(spent[1:])}

    opened(day)  # says so if there is none
    for n in day.batches:
        key, run = f"{stage}/{n}", cold if stage == "cold-start" else joint
        if n > 1 and day.once(key, lambda n=n, run=run: run(n)) is None:  # type: ignore[misc]
            break


def starter(day: Day, recipe: Path, packed: Path) -> None:
    """Train the recipe to its end, in a process that is stopped with this call and goes on with the next."""
    if "starter" in day.figures:
        return
    run = day.out / "starter"
    command = [
        sys.executable, "-m", "moonshelf", "train", str(recipe), "--data", str(packed), "--out", str(run),
        "--save-every", "25",
    ]  # fmt: skip
    began = time.monotonic()
    try:
        done = subprocess.run(command, timeout=max(day.left(), 1.0), check=False)
    except subprocess.TimeoutExpired:
        raise OutOfTime from None
    finally:
        spent = day.figures.get("starter_seconds", 0.0) + time.monotonic() - began
        day.figures["starter_seconds"] = spent
        day.save()
    if done.returncode:
        raise UserError(f"the recipe {recipe} could not be trained (see above); --data is {packed}.")
    last = (run / "log.jsonl").read_text().splitlines()[-1]
    day.once("starter", lambda: {"seconds": spent, "last": json.loads(last)})


# ---- data to carry -----------------------------------------------------------------------------------


def pack(recipe: Path, data: Path, out: Path, most: int = PACKED) -> dict[str, int]:
    """The feeds of a recipe with pictures of `SIDE` pixels, `most` bytes in all: rows by file.

    Where all do not fit, every file gives up the same share of its rows, evenly; validation keeps all.
    """
    named = yaml.safe_load(recipe.read_text())
    feeds = {one[key] for one in named["sources"] for key in ("feed", "photos") if key in one} - {"sample"}
    kept = {named["validation"]} if named.get("validation") else set()
    tables: dict[str, pa.Table] = {}
    for name in sorted(feeds | kept):
        if not (data / name).is_file():
            raise UserError(f"{data / name} is not there: the recipe {recipe} names it.")
        tables[name] = _small(pq.read_table(data / name))
    sizes = {name: table.nbytes for name, table in tables.items()}
    fixed = sum(sizes[name] for name in kept)
    share = min(1.0, (most - fixed) / max(sum(sizes.values()) - fixed, 1))
    if share <= 0:
        raise UserError(f"the validation data alone takes more than {most:,} bytes: name another recipe.")
    rows = {}
    for name, table in tables.items():
        whole = name in kept or share == 1.0
        chosen = (
            table
            if whole
            else table.take(np.unique(np.linspace(0, len(table) - 1, int(len(table) * share)).astype(int)))
        )
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(chosen, out / name, compression="zstd")
        rows[name] = len(chosen)
    return rows


def _small(table: pa.Table) -> pa.Table:
    """The same rows with every picture made anew at `SIDE` pixels; a broken one is left out."""
    for column in ("images", "image"):
        if column in table.column_names:
            many = column == "images"
            values: list[Any] = []
            for cell in table[column].to_pylist():
                found = [made for one in (cell or [] if many else [cell]) if (made := _shrunk(one))]
                values.append(found if many else next(iter(found), None))
            index = table.column_names.index(column)
            table = table.set_column(index, column, pa.array(values, table.schema.field(column).type))
    return table


def _shrunk(picture: dict[str, Any] | None) -> dict[str, Any] | None:
    if not picture or not picture.get("bytes"):
        return None
    with contextlib.suppress(images.ImageError):
        small = images.load(ImageRef(data=picture["bytes"]), max_side=SIDE)
        small.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=QUALITY)
        return {**picture, "bytes": buffer.getvalue()}
    return None


# ---- the command -------------------------------------------------------------------------------------


def show(figures: dict[str, Any], console: Console) -> None:
    if top := figures.get("ceilings"):
        console.print(
            f"{figures['device']}: {top['flop_s'] / 1e12:.2f} TFLOP/s in bfloat16, "
            f"{top['bytes_s'] / 1e9:.0f} GB/s copied", highlight=False,
        )  # fmt: skip
    table = Table("figure", "seconds", "products /s", "share of the ceiling", "GiB", "what else")
    for key, one in figures.items():
        if "/" not in key and key not in ("vllm", "starter"):
            continue
        share = one.get("matrix_share", one.get("memory_share"))
        shown = {"rows", "seconds", "products_s", "matrix_share", "memory_share", "peak_gib", "last"}
        numbers = (
            (one.get("seconds"), ".3f"), (one.get("products_s"), ".1f"), (share, ".3f"),
            (one.get("peak_gib"), ".1f"),
        )  # fmt: skip
        rest = ", ".join(
            f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in one.items() if k not in shown
        )
        table.add_row(key, *("" if n is None else f"{n:{form}}" for n, form in numbers), rest)
    console.print(table)


def main(
    call: Annotated[str, typer.Argument(help=f"pack, {', '.join(CALLS)}, all, or show.")],
    out: Annotated[Path, typer.Option(help="Folder of figures, packed data and models.")] = Path(
        "runs/gpu-day"
    ),
    data: Annotated[Path | None, typer.Option(help="What `pack` reads: the data of the recipe.")] = None,
    recipe: Annotated[Path, typer.Option(help="What `pack` and `starter` are about.")] = Path(
        "recipes/cold-start-starter.yaml"
    ),
    backbone: Annotated[
        str | None, typer.Option(help="Folder of a Qwen3-VL; none draws its weights.")
    ] = None,
    size: Annotated[str, typer.Option(help="2b or tiny.")] = "2b",
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    batches: Annotated[str, typer.Option(help="Rows of a batch, rising.")] = "1,8,32,128",
    minutes: Annotated[float, typer.Option(help="How long this call may take.")] = 9.0,
) -> None:
    """Measure on a GPU what was not measured yet."""
    if size not in ("2b", "tiny") or call not in ("pack", *CALLS, "all", "show"):
        raise UserError(f"the call is pack, {', '.join(CALLS)}, all or show, and the size 2b or tiny.")
    if call == "pack":
        if data is None:
            raise UserError("pack needs --data, the folder that the recipe's feeds lie in.")
        for name, rows in pack(recipe, data, out / "packed").items():
            print(f"{name}: {rows:,} rows, {(out / 'packed' / name).stat().st_size:,} bytes")
        return
    if call == "show":
        if not (out / "gpu_day.json").is_file():
            raise UserError(f"{out} holds no figures yet.")
        return show(json.loads((out / "gpu_day.json").read_text()), Console(width=150))
    try:
        sizes = sorted({int(n) for n in batches.split(",")})
    except ValueError:
        raise UserError(f"batches are numbers with commas between, not {batches!r}.") from None
    day = Day(out, device, size, minutes, sizes)
    try:
        for name in CALLS if call == "all" else (call,):
            if name == "load":
                load(day, backbone)
            elif name == "ceilings":
                ceilings(day)
            elif name in ("embed", "reason"):
                engine_figures(day, name)
            elif name in ("cold-start", "joint"):
                steps(day, name)
            elif name == "vllm":
                vllm(day)
            else:
                starter(day, recipe, out / "packed")
    except OutOfTime:
        print(f"the {minutes:g} minutes of this call are used up: the same call goes on from here")
    show(day.figures, Console(width=150))


if __name__ == "__main__":
    start(app_of(main))

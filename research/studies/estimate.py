"""What a training step takes, by arithmetic: bytes a process holds and floating-point operations it does.

    python -m research.studies.estimate RECIPE ... [--processes 8] [--sharding fsdp2] [--field value ...]

Parameters are counted, not guessed: the backbone and the head are built without storage and frozen and
adapted by the trainers' own functions. Activations follow Korthikanti et al. 2022 (arXiv 2205.05198, section
4: add up what each operation saves for its backward pass), for the layers of today: RMSNorm, grouped heads
whose keys and values are repeated for a masked SDPA, no s x s matrix, gated MLPs, autocast (an fp32 residual
stream, and a bf16 copy of each linear layer's input). The test compares the sum with what PyTorch saves.
Operations: two a parameter and token forwards, twice that backwards (6 N D, Kaplan et al. 2020), once
backwards where weights are frozen, plus attention; recomputation counts as what it is.

Not arithmetic, but allowances: `OVERHEAD` for the CUDA context and the allocator's fragments. Lengths are
the longest that the prompt allows, since a batch is padded to its longest row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from moonshelf.cli.options import flags
from moonshelf.errors import UserError
from moonshelf.prompts import PromptSpec
from moonshelf.training.recipe import JointRecipe, Recipe, load_recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

Sharding = Literal["ddp", "fsdp2", "zero2", "zero3"]
GIB = 2**30
OVERHEAD = 1.0 * GIB, 0.08  # bytes, and a share of all the rest
ADAM = 8  # two fp32 moments a trained parameter
NF4 = 0.516  # bytes a weight: 4 bits and a double-quantised scale for each 64 (QLoRA, Dettmers et al. 2023)
SUSTAINED = 400e12  # operations a second, 40% of an H100's dense bf16 peak: an assumption, not a measurement

# Shapes of the backbones that recipes name, as published; other backbones are read from their folder.
_QWEN3 = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}
_TOWER3 = {
    "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 16,
    "num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17],
}  # fmt: skip
PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Qwen/Qwen3-VL-2B-Instruct": (
        "qwen3_vl",
        {**_QWEN3, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
         "num_attention_heads": 16},
        {**_TOWER3, "out_hidden_size": 2048},
    ),
    "Qwen/Qwen3-VL-4B-Instruct": (
        "qwen3_vl",
        {**_QWEN3, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
         "num_attention_heads": 32},
        {**_TOWER3, "out_hidden_size": 2560},
    ),
    "Qwen/Qwen2.5-VL-3B-Instruct": (
        "qwen2_5_vl",
        {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
         "num_attention_heads": 16, "num_key_value_heads": 2, "tie_word_embeddings": True},
        {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
         "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "out_hidden_size": 2048},
    ),
}  # fmt: skip


# ---- shapes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The sizes that the formulas need, out of a backbone's configuration."""

    qwen3: bool  # Qwen3-VL: norms on queries and keys; a tower with LayerNorm and a plain MLP
    hidden: int
    inner: int
    layers: int
    queries: int  # heads x head size, as `keys`
    keys: int
    vocabulary: int
    tower_hidden: int
    tower_inner: int
    depth: int
    side: int  # of a patch, pixels
    merge: int  # patches a side of one visual token
    deepstack: int
    windows: int  # patches of an attention window; 0: the whole picture

    @classmethod
    def of(cls, config: Any) -> Shape:
        text, vision = config.text_config, config.vision_config
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        qwen3 = config.model_type == "qwen3_vl"
        return cls(
            qwen3=qwen3,
            hidden=text.hidden_size,
            inner=text.intermediate_size,
            layers=text.num_hidden_layers,
            queries=size * text.num_attention_heads,
            keys=size * text.num_key_value_heads,
            vocabulary=text.vocab_size,
            tower_hidden=vision.hidden_size,
            tower_inner=vision.intermediate_size,
            depth=vision.depth,
            side=vision.patch_size,
            merge=vision.spatial_merge_size,
            deepstack=len(getattr(vision, "deepstack_visual_indexes", ())),
            windows=0 if qwen3 else (vision.window_size // vision.patch_size) ** 2,
        )

    def layer(self, width: int, norms_trained: bool = True) -> float:
        """Bytes a token that one decoder layer saves; `width` is 4 in fp32 and 2 under bf16 autocast.

        Two norms keep their input and, for their weight's gradient, the normalised input; the linear layers
        their inputs, which under autocast are five casts instead of two shared tensors; attention q, k, v
        and its output; the MLP gate, its activation, up, and their product.
        """
        norms = 2 * 4 * self.hidden * (2 if norms_trained else 1)
        inputs = 2 * 4 * self.hidden if width == 4 else 5 * width * self.hidden
        heads = 4 * width * self.queries
        if self.qwen3:
            heads += (4 + (width if norms_trained else 0)) * (self.queries + self.keys)
        return norms + inputs + heads + 4 * width * self.inner

    def block(self, width: int) -> float:
        """Bytes a patch that one block of the vision tower saves."""
        d, f = self.tower_hidden, self.tower_inner
        attention = 7 * width * d  # the fused qkv, rotated q and k, pieces of the output and their join
        if self.qwen3:
            return 4 * width * d + attention + 2 * width * f
        inputs = 2 * 4 * d if width == 4 else 3 * width * d
        return 2 * 4 * d + 2 * width * d + inputs + attention + 4 * width * f

    def tower_ends(self, width: int) -> float:
        """Bytes a patch of the patch embedding and the mergers."""
        pixels = 3 * 2 * self.side**2
        return width * (pixels + 4 * self.tower_hidden * (1 + self.deepstack) + (0 if self.qwen3 else 2))

    def saved_a_token(self, width: int, checkpointing: bool, norms_trained: bool = True) -> float:
        """Bytes a token that language model and head save; with checkpointing only each layer's input."""
        residual = 4 * self.hidden  # fp32, since the embeddings are trained in fp32
        head = (3 + 3) * 4 * self.hidden  # one normed copy for each modality and tap
        layer = residual if checkpointing else self.layer(width, norms_trained)
        ends = 4 * residual  # what the head reads of the input; in, scaled, and out of the final norm
        return layer * self.layers + ends + head

    def saved_a_patch(self, width: int, checkpointing: bool) -> float:
        """Bytes a patch that the vision tower saves."""
        block = width * self.tower_hidden if checkpointing else self.block(width)
        return block * self.depth + self.tower_ends(width)

    def picture(self, pixels: int) -> tuple[int, int]:
        """Patches and visual tokens of a picture of that many pixels."""
        cell = (self.side * self.merge) ** 2
        tokens = max(1, pixels // cell)
        return tokens * self.merge**2, tokens


def config_of(name: str) -> Any:
    """Configuration of a published backbone by its hub id, or of a folder or cached checkpoint."""
    from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

    if name in PUBLISHED and not Path(name).is_dir():
        family, text, vision = PUBLISHED[name]
        kind = {"qwen3_vl": Qwen3VLConfig, "qwen2_5_vl": Qwen2_5_VLConfig}[family]
        section = [24, 20, 20] if family == "qwen3_vl" else [16, 24, 24]
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}
        return kind(
            text_config={**text, "rope_parameters": rope}, vision_config=vision, tie_word_embeddings=True
        )
    from transformers import AutoConfig

    from moonshelf.model import files

    return AutoConfig.from_pretrained(files.find(name, False), local_files_only=True, trust_remote_code=False)


def starter_config(recipe: Recipe) -> Any:
    """Configuration of the starter that a recipe without a backbone builds, with its full vocabulary."""
    from moonshelf.training.starter import build_starter, build_tokenizer

    model = build_starter(
        build_tokenizer(["user\nassistant\n"], 300), hidden=recipe.hidden, layers=recipe.layers,
        vision_hidden=recipe.vision_hidden, vision_depth=recipe.vision_depth,
    )  # fmt: skip
    config = model.backbone.config
    config.text_config.vocab_size = recipe.vocabulary
    return config


def skeleton(config: Any, recipe: Recipe | JointRecipe) -> nn.Module:
    """Backbone and head without storage, frozen and adapted as the trainers do it."""
    import torch

    from moonshelf.model.configuration import MoonConfig, default_taps
    from moonshelf.model.head import MoonHead
    from moonshelf.model.modeling import BACKBONES
    from moonshelf.training.adapters import add_lora, freeze

    text = config.text_config
    taps = default_taps(text.num_hidden_layers)
    options = {n: getattr(recipe, n) for n in ("fusion", "fire") if isinstance(recipe, Recipe)}
    with torch.device("meta"):
        model: Any = torch.nn.Module()
        model.backbone = BACKBONES[config.model_type](config)
        model.head = MoonHead(MoonConfig(hidden=text.hidden_size, taps=taps, **options))
        model.prepare = SimpleNamespace(think=0, end_think=1, emb=2)  # which tokens is all one here
        freeze(model, recipe.freeze)
        if recipe.lora:
            add_lora(model, recipe.lora)
    return model


# ---- what a step reads ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Counts of one process. `held` is what one forward pass with a graph holds at once."""

    length: int  # tokens of the longest row
    held_tokens: int
    held_patches: int
    held_written: int  # tokens whose logits have a graph
    logit_bytes: int  # that each logit of those takes at its peak
    writers: int  # rows that write a rationale at once
    prompts: int  # rows that are read for them: G rollouts share one
    step_tokens: int  # with a graph, in a whole step
    step_patches: int
    step_written: int
    decoded: int  # rationale tokens written in a step
    repeats: int  # forward passes: 2 with gradient caching
    patches_a_picture: int


def work(recipe: Recipe | JointRecipe, shape: Shape, prompt: PromptSpec, processes: int) -> Work:
    """The heaviest kind of step of a recipe, every row as long as the prompt allows.

    Cold start: a `pair` step, in which a product is read as phrase, query, full product, and full product
    with a taught rationale, over two pictures. Joint: G rollouts, a query, a phrase and three rows without
    a rationale (product, title, picture) a product.
    """
    patches, picture = shape.picture(prompt.max_pixels)
    scaffold = 12 + len(prompt.instruction) // 4  # about four characters a token
    words, phrase = prompt.max_text_chars // 4, 8
    rationale = prompt.max_rationale_tokens + 3
    product = scaffold + picture + words
    full = product + rationale
    asked = product + scaffold + phrase  # a query with a picture, and a phrase
    if isinstance(recipe, Recipe):
        share = -(-recipe.batch // processes)
        held = min(recipe.chunk or share, share)
        each = asked + product + full
        return Work(
            length=full, held_tokens=held * each, held_patches=2 * held * patches,
            held_written=held * rationale, logit_bytes=14, writers=held, prompts=held,
            step_tokens=share * each, step_patches=2 * share * patches, step_written=share * rationale,
            decoded=share * rationale, repeats=2 if held < share else 1, patches_a_picture=patches,
        )  # fmt: skip
    rows = recipe.products * recipe.rollouts
    slices = recipe.accumulate
    held = -(-rows // slices)
    pictures = 2 * recipe.products * patches  # every slice reads all pictures and queries of the step
    alone = scaffold + picture + scaffold + words  # its picture and its title, for the intra-product term
    tokens = held * full + recipe.products * (asked + product + (alone if recipe.intra_weight else 0))
    return Work(
        length=full, held_tokens=tokens, held_patches=pictures, held_written=held * rationale, logit_bytes=30,
        writers=rows, prompts=recipe.products, step_tokens=slices * tokens, step_patches=slices * pictures,
        step_written=rows * rationale, decoded=rows * rationale, repeats=1, patches_a_picture=patches,
    )  # fmt: skip


# ---- the estimate --------------------------------------------------------------------------------------


@dataclass
class Estimate:
    """Bytes of one process by what they are for, operations of one process a step, and a few counts."""

    processes: int
    sharding: Sharding
    parameters: int
    trained: int
    bytes: dict[str, float] = field(default_factory=dict)  # by name; `writing` and `step` are never both held
    flops: float = 0.0
    tokens: int = 0  # of one process and step, with a graph

    @property
    def total(self) -> float:
        """Peak bytes of a process, allowances included."""
        standing = sum(v for k, v in self.bytes.items() if k not in (*STEP, "writing"))
        peak = standing + max(sum(self.bytes.get(k, 0.0) for k in STEP), self.bytes.get("writing", 0.0))
        return peak * (1 + OVERHEAD[1]) + OVERHEAD[0]


STEP = ("activations", "recomputed layer", "logits")


def estimate(
    recipe: Recipe | JointRecipe,
    config: Any,
    prompt: PromptSpec | None = None,
    processes: int = 1,
    sharding: Sharding = "ddp",
) -> Estimate:
    """Memory and operations of a process. `prompt` is the model's own for a joint run.

    `auto` is taken for bfloat16. Frozen weights are counted in the compute type.
    """
    spec = prompt or (recipe.prompt if isinstance(recipe, Recipe) else PromptSpec())
    shape, model = Shape.of(config), skeleton(config, recipe)
    width = 4 if recipe.precision == "float32" else 2
    load = work(recipe, shape, spec, processes)
    parameters = dict(model.named_parameters())
    trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
    result = Estimate(processes, sharding, sum(p.numel() for p in parameters.values()), trained)
    result.bytes = _standing(parameters, recipe, width, processes, sharding)
    tower_trained = any(p.requires_grad for n, p in parameters.items() if ".visual." in n)
    norms_trained = any(p.requires_grad for n, p in parameters.items() if n.endswith("layernorm.weight"))
    result.bytes |= _passing(shape, load, recipe.checkpointing, width, tower_trained, norms_trained)
    result.flops = _operations(shape, parameters, load, recipe.checkpointing)
    result.tokens = load.step_tokens
    return result


def _standing(
    parameters: Mapping[str, torch.nn.Parameter],
    recipe: Recipe | JointRecipe,
    width: int,
    processes: int,
    sharding: Sharding,
) -> dict[str, float]:
    """What is held for the whole run. Trained weights are fp32, frozen ones of the compute type."""
    quantised = recipe.lora is not None and recipe.lora.quantise
    trained = {n: p.numel() for n, p in parameters.items() if p.requires_grad}
    frozen = 0.0
    for name, parameter in parameters.items():
        if name not in trained:
            packed = quantised and ".language_model.layers." in name and parameter.ndim == 2
            frozen += parameter.numel() * (NF4 if packed else width)
    count = float(sum(trained.values()))
    matrices = sum(n for name, n in trained.items() if parameters[name].ndim >= 2)
    cast = float(width * matrices) if width == 2 else 0.0
    alone = processes == 1
    held = {
        "frozen weights": frozen, "trained weights": 4 * count, "bf16 copies": cast, "gradients": 4 * count,
        "optimiser": ADAM * count,
    }  # fmt: skip
    if sharding == "ddp" and not alone:
        held["DDP buckets"] = 4 * count
    if sharding == "zero2":
        for name in ("trained weights", "gradients", "optimiser"):
            held[name] /= processes
    if sharding in ("fsdp2", "zero3"):
        # Gathered in the compute type: two layers (one ahead), and what is outside the layers for the step.
        layers: dict[str, int] = {}
        outside = 0
        for name, parameter in parameters.items():
            place = name.split(".layers.")[-1].split(".blocks.")[-1] if _in_layer(name) else ""
            if place:
                key = name[: len(name) - len(place)] + place.split(".")[0]
                layers[key] = layers.get(key, 0) + parameter.numel()
            else:
                outside += parameter.numel()
        held = {name: value / processes for name, value in held.items() if name != "bf16 copies"}
        held["gathered"] = float(width * (outside + 2 * max(layers.values())))
    if isinstance(recipe, JointRecipe) and recipe.beta and not recipe.lora:
        whole = 4.0 * sum(p.numel() for p in parameters.values())
        held["reference of the KL"] = whole / (processes if sharding in ("fsdp2", "zero3") else 1)
    return {name: value for name, value in held.items() if value}


def _in_layer(name: str) -> bool:
    return ".layers." in name or ".blocks." in name


def _passing(
    shape: Shape, load: Work, checkpointing: bool, width: int, tower_trained: bool, norms_trained: bool
) -> dict[str, float]:
    """What a step holds on top: saved for the backward pass, the logits, or instead of both the writing."""
    layer, block = shape.layer(width, norms_trained), shape.block(width)
    activations = load.held_tokens * shape.saved_a_token(width, checkpointing, norms_trained)
    if tower_trained:
        activations += load.held_patches * shape.saved_a_patch(width, checkpointing)
    # The widest transient of the backward pass: one layer's tensors again, recomputed or as gradients.
    widest = max(load.held_tokens * layer, load.held_patches * block if tower_trained else 0)
    written = load.writers * load.length
    cache = 2 * width * shape.keys * shape.layers * written
    states = written * shape.hidden * (4 + 4 + 3 * 4)  # last layer, input and taps, which the head reads
    steps = load.writers * shape.vocabulary * (width + 8)
    return {
        "activations": activations,
        "recomputed layer": widest,
        "logits": float(load.held_written * shape.vocabulary * load.logit_bytes),
        "writing": float(cache + states + steps + load.prompts * load.length * layer),
    }


def _operations(
    shape: Shape, parameters: Mapping[str, torch.nn.Parameter], load: Work, checkpointing: bool
) -> float:
    """Operations of a process and step: forward passes, backward passes, recomputation, writing."""
    layers = sum(p.numel() for n, p in parameters.items() if ".language_model.layers." in n)
    tower = sum(p.numel() for n, p in parameters.items() if ".visual." in n and "pos_embed" not in n)
    trained = [n for n, p in parameters.items() if p.requires_grad]
    language = 2 * layers + 4 * load.length * shape.queries * shape.layers
    window = shape.windows or load.patches_a_picture
    patch = 2 * tower + 4 * window * shape.tower_hidden * shape.depth
    logit = 2 * shape.hidden * shape.vocabulary
    own = any(n.endswith("q_proj.weight") for n in trained)  # else only adapters: no gradient of the weights
    again = load.repeats + checkpointing
    total = load.step_tokens * language * (again + (2 if own else 1)) + load.step_written * logit * (
        again + 2
    )
    tower_backward = 2 + again if any(".visual." in n for n in trained) else load.repeats
    total += load.step_patches * patch * tower_backward
    return total + load.decoded * (language + logit) + load.prompts * load.length * language


# ---- the command ---------------------------------------------------------------------------------------


def table(estimates: Mapping[str, Estimate]) -> str:
    """Estimates side by side as a Markdown table, sizes in GiB a process."""
    names = list(estimates)
    lines = [f"| GiB a process | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]

    def row(label: str, cells: Sequence[str]) -> None:
        lines.append(f"| {label} | {' | '.join(cells)} |")

    found = list(estimates.values())
    row("processes", [f"{e.processes} {e.sharding}" if e.processes > 1 else "1" for e in found])
    row("parameters, millions", [f"{e.parameters / 1e6:,.0f}" for e in found])
    row("of them trained", [f"{e.trained / 1e6:,.1f}" for e in found])
    order = ("frozen weights", "trained weights", "bf16 copies", "gathered", "gradients", "DDP buckets",
             "optimiser", "reference of the KL", *STEP, "writing")  # fmt: skip
    for key in order:
        if any(key in e.bytes for e in found):
            label = f"{key} (not at once with the three above)" if key == "writing" else key
            row(label, [f"{e.bytes[key] / GIB:.1f}" if key in e.bytes else "" for e in found])
    row("**peak**, allowances included", [f"**{e.total / GIB:.0f}**" for e in found])
    row("tokens a step, thousands", [f"{e.tokens / 1e3:,.0f}" for e in found])
    row("operations a step, 10^15", [f"{e.flops / 1e15:,.1f}" for e in found])
    row(f"seconds a step at {SUSTAINED / 1e12:.0f} TFLOP/s", [f"{e.flops / SUSTAINED:,.0f}" for e in found])
    return "\n".join(lines)


def of_file(
    path: Path, cold_start: Path | None, processes: int, sharding: Sharding, overrides: Mapping[str, Any]
) -> Estimate:
    """The estimate of a recipe file; a joint one needs its model's folder or the recipe of its cold start."""
    recipe = load_recipe(path, **overrides)
    if isinstance(recipe, Recipe) and recipe.model is None:
        config = config_of(recipe.backbone) if recipe.backbone else starter_config(recipe)
        return estimate(recipe, config, None, processes, sharding)
    from moonshelf.model import files

    folder = files.STARTER if recipe.model == "starter" else Path(str(recipe.model))
    if (folder / "prompt.json").is_file():
        prompt = PromptSpec.model_validate_json((folder / "prompt.json").read_text())
        return estimate(recipe, config_of(str(folder)), prompt, processes, sharding)
    if cold_start is None:
        raise UserError(
            f"{path}: {folder} is not there yet: add --cold-start with the recipe that trains it."
        )
    first = load_recipe(cold_start)
    if not isinstance(first, Recipe):
        raise UserError(f"{cold_start} is no recipe of a cold start.")
    config = config_of(first.backbone) if first.backbone else starter_config(first)
    return estimate(recipe, config, first.prompt, processes, sharding)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m research.studies.estimate",
        description="Memory and operations of a training step, as a Markdown table.",
        epilog="Any field of the recipes is a flag: --batch 512 --chunk 8.",
    )
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--cold-start", type=Path, help="for joint recipes: the recipe of their cold start")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--sharding", choices=("ddp", "fsdp2", "zero2", "zero3"), default="ddp")
    given, rest = parser.parse_known_args(arguments)
    try:
        overrides = flags(rest)
        found = {
            path.stem: of_file(path, given.cold_start, given.processes, given.sharding, overrides)
            for path in given.recipes
        }
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(table(found))


if __name__ == "__main__":
    main()

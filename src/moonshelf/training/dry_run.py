"""What a recipe would train on, without training: `moonshelf train RECIPE --dry-run`.

It reads the feeds and prints data, steps and parameters. Parameters are counted on modules without storage,
so that a machine which could not hold the model can still say what it is.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from moonshelf.errors import UserError
from moonshelf.model import files
from moonshelf.model.configuration import MoonConfig, default_taps
from moonshelf.model.modeling import BACKBONES, MoonHead
from moonshelf.training.adapters import add_lora, freeze
from moonshelf.training.data import Sampler, SourceSpec, load_source, open_source, vocabulary_texts
from moonshelf.training.pairs import Item
from moonshelf.training.recipe import JointRecipe, Recipe, Run
from moonshelf.training.starter import build_starter, build_tokenizer


def show(recipe: Recipe | JointRecipe, data: Path) -> None:
    """Print sources, steps and parameters of a run of the embedding model."""
    sources = []
    total = sum(spec.weight for spec in recipe.sources) or 1.0
    for spec in recipe.sources:
        source = open_source(spec, data)
        sources.append(source)
        told = sum(bool(item.rationale) for item in source.items)
        several = sum(len(item.images) > 1 for item in source.items)
        print(
            f"{spec.feed}: {len(source.items):,} items, {told:,} with attributes, {several:,} with several "
            f"pictures, {spec.weight / total:.0%} of what is drawn"
        )
    Sampler(sources)  # says so if there is nothing to draw
    if recipe.validation:
        held_out = load_source(SourceSpec(feed=recipe.validation), data)
        print(f"validation: {min(len(held_out), recipe.validation_items):,} of {len(held_out):,} items")
    if isinstance(recipe, JointRecipe):
        step = f"{recipe.products} products, {recipe.rollouts} rollouts each"
    else:
        chunks = recipe.chunk is not None and recipe.chunk < recipe.batch
        step = f"{recipe.batch} products" + (f" in chunks of {recipe.chunk}" if chunks else "")
    print(f"{steps(recipe)} of {step}; {recipe.queue:,} past items are negatives too")
    print(parameters(_skeleton(recipe, [item for source in sources for item in source.items])))


def steps(recipe: Run) -> str:
    """How long a run goes on."""
    limit = f", at most {recipe.minutes:g} minutes," if recipe.minutes else ""
    return f"{recipe.steps:,} steps{limit}"


def parameters(model: nn.Module) -> str:
    """How many parameters are trained, in millions."""
    every = list(model.parameters())
    trained = sum(p.numel() for p in every if p.requires_grad)
    return f"{trained / 1e6:,.2f} M of {sum(p.numel() for p in every) / 1e6:,.2f} M parameters are trained"


def _skeleton(recipe: Recipe | JointRecipe, items: list[Item]) -> nn.Module:
    """Backbone and head without storage, frozen and adapted as the trainers do it."""
    if isinstance(recipe, Recipe) and not (recipe.model or recipe.backbone):
        tokenizer = build_tokenizer(vocabulary_texts(items, recipe.prompt), recipe.vocabulary)
        small = build_starter(
            tokenizer, hidden=recipe.hidden, layers=recipe.layers, vision_hidden=recipe.vision_hidden,
            vision_depth=recipe.vision_depth, prompt=recipe.prompt, fusion=recipe.fusion, fire=recipe.fire,
        )  # fmt: skip
        freeze(small, recipe.freeze)
        if recipe.lora:
            add_lora(small, recipe.lora)
        return small
    backbone = recipe.backbone if isinstance(recipe, Recipe) else None
    folder = files.find(str(backbone or recipe.model), download=recipe.download)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if config.model_type not in BACKBONES:
        raise UserError(f"{folder} holds a {config.model_type}: take one of {', '.join(BACKBONES)}.")
    text = config.text_config
    with torch.device("meta"):
        model: Any = nn.Module()
        model.backbone = BACKBONES[config.model_type](config)
        model.head = MoonHead(MoonConfig(hidden=text.hidden_size, taps=default_taps(text.num_hidden_layers)))
        model.prepare = SimpleNamespace(think=0, end_think=1, emb=2)  # which tokens is all one here
        freeze(model, recipe.freeze)
        if recipe.lora:
            add_lora(model, recipe.lora)
    whole: nn.Module = model
    return whole

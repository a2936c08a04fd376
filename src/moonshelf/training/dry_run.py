"""What a recipe would train on and what it takes, without training: `moonshelf train RECIPE --dry-run`.

Reads the feeds, prepares one small batch as the trainers would, shows one of its products token by token, and
prints the memory arithmetic of `estimate`. No weights are loaded. Of the sample shop a few products stand in.
"""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from moonshelf.errors import UserError
from moonshelf.model import files
from moonshelf.model.processing import ADDED_TOKENS, MoonProcessor, Preprocessor
from moonshelf.prompts import PromptSpec
from moonshelf.training.data import (
    Sampler,
    Source,
    SourceSpec,
    load_source,
    open_source,
    prepare,
    vocabulary_texts,
)
from moonshelf.training.estimate import config_of, estimate, starter_config, table
from moonshelf.training.recipe import JointRecipe, Recipe
from moonshelf.training.starter import build_starter, build_tokenizer

SHOWN = 16  # products of the batch that is prepared
SHOP = 24  # drawn products that stand for a sample shop of any size


def show(recipe: Recipe | JointRecipe, data: Path) -> None:
    """Print sources, batch, one example and the estimate of a run."""
    sources = []
    total = sum(spec.weight for spec in recipe.sources) or 1.0
    for spec in recipe.sources:
        drawn = spec.feed == "sampleshop"
        source = open_source(spec.model_copy(update={"products": SHOP}) if drawn else spec, data)
        sources.append(source)
        print(
            f"{spec.feed}: {_count(source)}, {spec.weight / total:.0%} of what is drawn"
            + (f"; {spec.products:,} products will be drawn" if drawn else "")
        )
    sampler = Sampler(sources)
    if recipe.validation:
        held_out = load_source(SourceSpec(feed=recipe.validation), data)
        print(f"validation: {min(len(held_out), recipe.validation_items):,} of {len(held_out):,} items")
    prompt, processor, config = _reader(recipe, sources)
    reader: Any = SimpleNamespace(prompt=prompt, prepare=Preprocessor(processor, prompt))
    _batch(recipe, reader, sampler)
    print()
    print(table({Path(recipe.out).name: estimate(recipe, config, prompt)}))


def _count(source: Source) -> str:
    told = sum(bool(item.rationale) for item in source.items)
    several = sum(len(item.images) > 1 for item in source.items)
    return f"{len(source.items):,} items, {told:,} with attributes, {several:,} with several pictures"


def _reader(recipe: Recipe | JointRecipe, sources: list[Source]) -> tuple[PromptSpec, MoonProcessor, Any]:
    """Prompt, processor and backbone configuration of what will be trained."""
    if isinstance(recipe, Recipe) and not (recipe.model or recipe.backbone):
        texts = vocabulary_texts([item for source in sources for item in source.items], recipe.prompt)
        tokenizer = build_tokenizer(texts, recipe.vocabulary)
        small = build_starter(
            tokenizer, hidden=64, layers=1, vision_hidden=64, vision_depth=1, prompt=recipe.prompt
        )
        return recipe.prompt, small.processor, starter_config(recipe)
    name = recipe.backbone if isinstance(recipe, Recipe) and recipe.backbone else recipe.model
    folder = files.find(str(name), download=recipe.download)
    processor = MoonProcessor.from_pretrained(str(folder))
    vocabulary = processor.tokenizer.get_vocab()
    processor.tokenizer.add_tokens([token for token in ADDED_TOKENS if token not in vocabulary])
    if isinstance(recipe, Recipe) and recipe.backbone:
        return recipe.prompt, processor, config_of(str(folder))
    prompt = PromptSpec.model_validate(files.read_json(folder / "prompt.json"))
    return prompt, processor, config_of(str(folder))


def _batch(recipe: Recipe | JointRecipe, reader: Any, sampler: Sampler) -> None:
    joint = isinstance(recipe, JointRecipe)
    products = recipe.products if isinstance(recipe, JointRecipe) else recipe.batch
    items = sampler.draw(min(SHOWN, products), random.Random(f"{recipe.seed}/0"))
    draw = prepare(reader, items, "joint" if joint else "pair", f"{recipe.seed}/0", recipe.query_mix)
    if not draw.items:
        raise UserError(
            "no picture of the first batch can be read: look at the feeds with `moonshelf check`."
        )
    place = next((i for i, (_, _, body) in enumerate(draw.taught) if body), 0)
    counts = reader.prepare.image_tokens(draw.pixels[1])
    rows, ids = {}, reader.prepare
    text, pictures, body = draw.taught[place]
    query = draw.queries[place]
    view = draw.view[place] if query.picture else []
    rows["product"] = ids.row(
        text, [counts[p] for p in pictures], [ids.think, *body, ids.end_think, ids.emb]
    )[0]
    rows["query"] = ids.row(draw.query_ids[place], [counts[p] for p in view], [ids.emb])[0]
    rows["phrase"] = ids.row(draw.phrase_ids[place], [], [ids.emb])[0]
    lengths = [
        len(ids.row(text, [counts[p] for p in pictures], [0] * (len(body) + 3))[0])
        for text, pictures, body in draw.taught
    ]
    chunk = getattr(recipe, "chunk", None)
    kind = f", {recipe.rollouts} rollouts each" if isinstance(recipe, JointRecipe) else ""
    kind += f" in chunks of {chunk} with gradient caching" if chunk and chunk < products else ""
    mean, most = sum(lengths) / len(lengths), max(lengths)
    print(f"\na step: {products} products{kind}; {recipe.queue:,} past ones are negatives too")
    print(f"a product with its rationale: {mean:.0f} tokens on average, {most} at most")
    print(f"one of them, {draw.items[place].id} (of {draw.items[place].source}):")
    tokenizer, image = reader.prepare.processor.tokenizer, reader.prepare.processor.image_token
    for name, row in rows.items():
        decoded = tokenizer.decode(row)
        for n in sorted(set(counts), reverse=True):
            decoded = decoded.replace(image * n, f"[{n} visual tokens]")
        print(f"  {name} ({len(row)} tokens): {decoded!r}")

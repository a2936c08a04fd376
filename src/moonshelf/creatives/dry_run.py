"""What a selector's recipe would train on, without training: `moonshelf train RECIPE --dry-run`."""

from __future__ import annotations

from pathlib import Path

from moonshelf.creatives.data import draw, load_examples, make_descriptions, make_work
from moonshelf.creatives.outcomes import stratum
from moonshelf.creatives.recipe import GrpoRecipe, SftRecipe
from moonshelf.creatives.training import resume_from, start

SHOWN = 64  # simulated campaigns that stand for any number of them


def show(recipe: SftRecipe | GrpoRecipe, data: Path) -> None:
    """Print the pairs and their strata, what is trained, and one row token by token."""
    creative = start(recipe) if isinstance(recipe, SftRecipe) else resume_from(recipe, recipe.model)
    examples = []
    for source in recipe.sources:
        few = source.model_copy(update={"simulated": SHOWN}) if source.simulated else source
        found = load_examples(few, data)
        examples += found
        kinds = [stratum(example.target) for example in found]
        shares = ", ".join(f"{kinds.count(k) / len(kinds):.0%} {k}" for k in ("decisive", "weak", "toss-up"))
        told = sum(example.pair.assessment is not None for example in found)
        name = f"{source.simulated:,} simulated campaigns" if source.simulated else str(source.feed)
        print(f"{name}: {shares}; {told / len(found):.0%} with reasons, of {len(found):,} pairs looked at")
    trained = sum(p.numel() for p in creative.moon.parameters() if p.requires_grad)
    print(
        f"{trained / 1e6:.2f} M of {sum(p.numel() for p in creative.moon.parameters()) / 1e6:.1f} M weights"
    )
    drawn, key = draw(examples, min(recipe.pairs, 4), recipe.seed, 0), f"{recipe.seed}/0"
    described = creative.prompt.describe_first
    kinds_of_rows = [make_descriptions(creative, drawn, key)] if described else []
    kinds_of_rows.append(make_work(creative, drawn, key, shown=not described))
    prepare = creative.moon.prepare
    rows = []
    for work in kinds_of_rows:
        counts = prepare.image_tokens(work.grid) if any(work.places) else []
        for ask, body, where in zip(work.asks, work.bodies, work.places, strict=True):
            rows.append(creative.row(ask, [counts[p] for p in where], creative.tail(body))[0])
    rollouts = f", {recipe.rollouts} rollouts each" if isinstance(recipe, GrpoRecipe) else ""
    longest = max(len(row) for row in rows)
    print(f"a step: {recipe.pairs} pairs in both orders{rollouts}; {longest} tokens at most")
    for work in kinds_of_rows:
        ids, _ = creative.row(work.asks[0], [1] * len(work.places[0]), creative.tail(work.bodies[0]))
        text = prepare.processor.tokenizer.decode(ids).replace(prepare.processor.image_token, "[picture]")
        print(f"one row: {text}")
    print(f"likely to be the first: {work.targets[0]:.2f}")

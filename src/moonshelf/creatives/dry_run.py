"""What a selector's recipe would train on, without training: `moonshelf train RECIPE --dry-run`."""

from __future__ import annotations

from pathlib import Path

from moonshelf.creatives.data import load_examples
from moonshelf.creatives.labels import stratum
from moonshelf.creatives.recipe import GrpoRecipe, SftRecipe
from moonshelf.creatives.training import resume_from, start
from moonshelf.training.dry_run import parameters, steps


def show(recipe: SftRecipe | GrpoRecipe, data: Path) -> None:
    """Print the pairs and their strata, the steps, and what is trained."""
    for source in recipe.sources:
        found = load_examples(source, data)
        kinds = [stratum(example.target) for example in found]
        shares = ", ".join(f"{kinds.count(k) / len(kinds):.0%} {k}" for k in ("decisive", "weak", "toss-up"))
        told = sum(example.pair.assessment is not None for example in found)
        print(f"{source.feed}: {len(found):,} pairs, {shares}; {told / len(found):.0%} with reasons")
    rollouts = f", {recipe.rollouts} rollouts each" if isinstance(recipe, GrpoRecipe) else ""
    print(f"{steps(recipe)} of {recipe.pairs} pairs in both orders{rollouts}")
    creative = start(recipe) if isinstance(recipe, SftRecipe) else resume_from(recipe, recipe.model)
    print(parameters(creative.moon))

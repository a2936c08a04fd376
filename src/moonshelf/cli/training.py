"""Commands about training: `train` by a recipe, `mine` negatives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moonshelf.cli.console import print_json
from moonshelf.cli.options import Currency, Dialect, Encoding, Json, MapColumns, StarterName, flags, reading
from moonshelf.errors import EXIT_PARTIAL, UserError


def train(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="A recipe, as in recipes/; its fields are flags too.")],
    data: Annotated[Path, typer.Option(help="Folder that the recipe's feeds are relative to.")] = Path("."),
    dry_run: Annotated[
        bool, typer.Option(help="Say what would be trained and what it takes, then stop.")
    ] = False,
) -> None:
    """Train a model by a recipe; a killed run goes on. Any field is a flag: --steps 500 --lr 0.0005."""
    from moonshelf.training import quiet_dependencies

    quiet_dependencies()
    from moonshelf.creatives.training import recipe as selector
    from moonshelf.training.recipe import STAGES, JointRecipe, load_recipe

    settings = load_recipe(recipe, {**STAGES, **selector.STAGES}, **flags(context.args))
    trial, judged = "moonshelf doctor", "moonshelf creative evaluate --backend"
    try:
        if isinstance(settings, JointRecipe):
            from moonshelf.training.joint import train_joint

            folder = train_joint(settings, data, dry_run)
        elif isinstance(settings, selector.SftRecipe):
            from moonshelf.creatives.training.sft import train_sft

            folder, trial = train_sft(settings, data, dry_run), judged
        elif isinstance(settings, selector.GrpoRecipe):
            from moonshelf.creatives.training.grpo import train_grpo

            folder, trial = train_grpo(settings, data, dry_run), judged
        else:
            from moonshelf.training.cold_start import train_cold_start

            folder = train_cold_start(settings, data, dry_run)
    except ImportError as error:
        raise UserError(f"training needs {error.name}: install moonshelf[train].") from None
    from moonshelf.training.data import say

    if not dry_run:
        say(f"model saved in {folder}; try: {trial} {folder}")


def mine(
    feed: Annotated[Path, typer.Argument(help="File or folder of products, as for `embed`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Parquet file of negatives, replaced if there.")],
    model: StarterName = "starter",
    num_negatives: Annotated[int, typer.Option("-k", "--num-negatives", help="For each product.")] = 4,
    range_min: Annotated[int, typer.Option(help="Skip so many of the nearest.")] = 0,
    range_max: Annotated[int | None, typer.Option(help="Take none beyond this rank.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Least cosine of the two products.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Greatest cosine of the two products.")] = None,
    absolute_margin: Annotated[
        float | None, typer.Option(help="By how much picture and title must fit worse than within a product.")
    ] = None,
    relative_margin: Annotated[
        float, typer.Option(help="The same, as a share of the own pair's score.")
    ] = 0.05,
    own_pair: Annotated[bool, typer.Option(help="Apply margins; without, one pass of the model.")] = True,
    min_level: Annotated[int, typer.Option(help="Steps of the category path that must be shared.")] = 0,
    identical_attributes: Annotated[
        bool, typer.Option(help="Take products of equal category and visible attributes too.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Write a rationale first: off, on or auto.")] = "off",
    dialect: Dialect = None,
    batch_tokens: Annotated[int, typer.Option(min=256, help="Tokens of one batch.")] = 8192,
    images_root: Annotated[str | None, typer.Option(help="Folder that image paths start from.")] = None,
    columns: MapColumns = None,
    encoding: Encoding = None,
    currency: Currency = None,
    json: Json = False,
) -> None:
    """Find hard negatives for training: other products of the same category that the model finds near.

    The same product, its variants, and what looks or reads the same is left out.
    """
    from moonshelf import MoonModel
    from moonshelf.feeds.show import counting
    from moonshelf.training.sources.negatives import MiningSettings
    from moonshelf.training.sources.negatives import mine as run

    settings = MiningSettings(
        num_negatives=num_negatives, range_min=range_min, range_max=range_max, min_score=min_score,
        max_score=max_score, absolute_margin=absolute_margin if own_pair else None,
        relative_margin=relative_margin if own_pair else None, min_level=min_level,
        identical_attributes=identical_attributes, reason=reason,
    )  # fmt: skip
    loaded = MoonModel.from_pretrained(model)
    with counting(feed.name) as progress:
        report = run(
            feed, out, loaded, settings, model_name=model, dialect=dialect, images_root=images_root,
            batch_tokens=batch_tokens, progress=progress, **reading(columns, encoding, currency),
        )  # fmt: skip
    if json:
        print_json(report.as_dict())
    else:
        print("\n".join([*report.lines(), f"Written to {out}."]))
    if report.rejected:
        raise typer.Exit(EXIT_PARTIAL)

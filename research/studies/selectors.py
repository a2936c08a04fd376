"""Selectors on drawn campaigns, as many as wanted, with edits of what their reasons name.

    python -m research.studies.selectors --campaigns 200 --out runs/selectors
    python -m research.studies.selectors --campaigns 120 --other-interest 1 --backend starter

Campaigns are of the test split, which training never saw; temperatures are fitted on drawn ones of the
validation split. The rest is `moonshelf creative evaluate`: the same judging, record and pages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from moonshelf.creative_cli import BASELINES
from moonshelf.creatives.backends.names import make_backend
from moonshelf.creatives.evaluation import evaluate as creative_evaluate
from moonshelf.creatives.evaluation.figures import TURNED
from moonshelf.creatives.evaluation.tables import show
from moonshelf.creatives.io.readers import read_creatives
from moonshelf.creatives.known import is_known, pairs
from moonshelf.creatives.schema import Campaign, Pair
from moonshelf.shell import Json, print_json, say
from research.script import app_of, start
from research.synthetic.campaigns.claims import Split
from research.synthetic.campaigns.edits import edited
from research.synthetic.campaigns.simulator import simulate

# At most so many drawn campaigns to fit temperatures on: on lots of 400 the shipped selector's comes out
# between 1.14 and 1.42, so exact figures want --validation.
TUNING = 400


def main(
    campaigns: Annotated[int, typer.Option(min=2, help="Campaigns to draw.")] = 200,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Judge, ours first; may be repeated."),
    ] = None,
    creatives: Annotated[int, typer.Option(min=2, help="Of a campaign; over 2 are ranked too.")] = 2,
    other_interest: Annotated[
        float, typer.Option(min=0, max=1, help="Share of every second campaign that repeats the one before.")
    ] = 0.0,
    validation: Annotated[
        Path | None, typer.Option(help="Drawn campaigns of the validation split, to fit temperatures on.")
    ] = None,
    interest: Annotated[
        str, typer.Option(help="Interests to ask under: true, and those named of shuffled and none.")
    ] = "true,shuffled,none",
    explanations: Annotated[bool, typer.Option(help="Check the reasons, controls and edits.")] = True,
    out: Annotated[Path, typer.Option(help="Folder for record, judgements and report.")] = Path(
        "runs/selectors"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    json: Json = False,
) -> None:
    """Score selectors on drawn campaigns, whose truth is known."""

    def drawn(count: int, split: Split, each: int = 2, other: float = 0.0) -> list[Campaign]:
        return list(simulate(count, creatives=each, seed=seed, split=split, other_interest=other))

    scored = drawn(campaigns, "test", creatives, other_interest)
    if validation is None:
        tuning: list[Campaign] = drawn(min(campaigns, TUNING), "validation")
    else:
        tuning = [row for row in read_creatives(validation) if isinstance(row, Campaign)]
    report = creative_evaluate.evaluate(
        _pairs(scored),
        [make_backend(name, seed=seed) for name in backend or ["starter", *BASELINES]],
        out,
        interest=[one.strip() for one in interest.split(",") if one.strip()],  # type: ignore[misc]
        campaigns=scored,
        validation=_pairs(tuning),
        editor=edited,
        explanations=explanations,
        seed=seed,
        progress=not json,
    )
    if json:
        print_json(report.as_dict())
    else:
        console = Console()
        console.width = max(console.width, 120)
        show(report, console)
        console.print(f"report: {out / 'report.html'}", highlight=False, markup=False)
    if other_interest and not any(TURNED in line.name for line in report.lines):
        say(
            "--other-interest: no couple is counted. That takes decisive pairs with the same pictures and "
            "different winners, and two kinds of --interest: draw more campaigns, or leave --interest away."
        )


def _pairs(campaigns: list[Campaign]) -> list[Pair]:
    return [pair for one in campaigns if is_known(*one.creatives) for pair in pairs(one)]


app = app_of(main)

if __name__ == "__main__":
    start(app)

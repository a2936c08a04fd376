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

from moonshelf.cli.console import say
from moonshelf.cli.creative import BASELINES, Backends, Interests, Seed, make_backend, named, print_report
from moonshelf.cli.options import Json
from moonshelf.creatives.evaluation import evaluate as creative_evaluate
from moonshelf.creatives.evaluation.figures import TURNED
from moonshelf.creatives.evaluation.record import read_judged
from moonshelf.creatives.io.readers import read_creatives
from moonshelf.creatives.known import is_known, pairs
from moonshelf.creatives.schema import Campaign, Pair
from research.script import app_of, start
from research.studies.reason_edits import intervene
from research.synthetic.campaigns.claims import Split
from research.synthetic.campaigns.edits import edited
from research.synthetic.campaigns.simulator import simulate

# At most so many drawn campaigns to fit temperatures on: on lots of 400 the shipped selector's comes out
# between 1.14 and 1.42, so exact figures want --validation.
TUNING = 400


def main(
    campaigns: Annotated[int, typer.Option(min=2, help="Campaigns to draw.")] = 200,
    backend: Backends = None,
    creatives: Annotated[int, typer.Option(min=2, help="Of a campaign; over 2 are ranked too.")] = 2,
    other_interest: Annotated[
        float, typer.Option(min=0, max=1, help="Share of every second campaign that repeats the one before.")
    ] = 0.0,
    validation: Annotated[
        Path | None, typer.Option(help="Drawn campaigns of the validation split, to fit temperatures on.")
    ] = None,
    interest: Interests = "true,shuffled,none",
    explanations: Annotated[bool, typer.Option(help="Check the reasons, and edits.")] = True,
    out: Annotated[Path, typer.Option(help="Folder for record, judgements and report.")] = Path(
        "runs/selectors"
    ),
    seed: Seed = 0,
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
    backends = [make_backend(name, seed) for name in backend or ["starter", *BASELINES]]
    report = creative_evaluate.evaluate(
        _pairs(scored),
        backends,
        out,
        interest=named(interest),
        campaigns=scored,
        validation=_pairs(tuning),
        explanations=explanations,
        seed=seed,
    )
    print_report(report, out, json)
    for one in backends if explanations else ():
        known = read_judged(out, "true", one.name)
        pairs = [pair for pair in _pairs(scored) if pair.id in known]
        temperature = next(row["temperature"] for row in report.about if row["name"] == one.name)
        judged = [known[pair.id] for pair in pairs]
        for figure in intervene(one, pairs, judged, edited, seed=seed, temperature=temperature):
            ends = "" if figure.low is None else f" [{figure.low:.3f}, {figure.high:.3f}]"
            say(f"{one.name}: {figure.name}: {figure.value:.3f}{ends}, n = {figure.n}")
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

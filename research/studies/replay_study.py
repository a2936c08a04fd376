"""A/B tests replayed on known rates: what a prior saves, and how good a selector must be for that.

    python -m research.studies.replay_study --data DATA/alimama_aes

Two halves, on alimama_aes. *Elements*: an additive model of the elements, fitted to half of the creatives, is
the prior on the other half. *Accuracy*: simulated selectors of stated pairwise accuracy on all creatives,
once with slope and weight that fit their accuracy and once overconfident, as if it were `BELIEVED`. No
selector of ours is in it: the data has no pictures. Its rates are taken as true, although each is a ratio of
counts that are not given: the smallest denominators that give them as written have a median of about 5,800
impressions, at which chance alone would spread one common rate as far as these are spread. So this is a test
bed of bandits, and says nothing of creatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from moonshelf.cli.console import print_json
from moonshelf.cli.options import Json
from moonshelf.errors import UserError
from research.script import app_of, start
from research.studies.replay import (
    COLD,
    IMPRESSIONS,
    REPLICATES,
    ROUNDS,
    Figure,
    Kind,
    Outcome,
    Policy,
    Trial,
    difference,
    element_trials,
    flat,
    one_hot,
    pair_accuracy,
    replay,
    simulated_belief,
)
from research.synthetic.elements import Elements, read_elements

ACCURACIES = (0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9, 1.0)
BELIEVED = 0.75  # what an overconfident selector is taken for
WARM: tuple[Kind, ...] = ("epsilon-greedy", "thompson", "linucb")
CAVEAT = (
    "Replayed on observed rates taken as true; selectors of stated accuracy are simulated. A bandit's gain "
    "here is no forecast of one elsewhere."
)


def study(
    elements: Elements,
    *,
    accuracies: Sequence[float] = ACCURACIES,
    rounds: int = ROUNDS,
    impressions: int = IMPRESSIONS,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Any]:
    """Both halves as one JSON-ready record. Raises UserError for accuracies outside 0.5 … 1."""
    if replicates < 2:
        raise UserError("intervals need two replicates or more")
    if any(not 0.5 <= accuracy <= 1 for accuracy in accuracies):
        raise UserError("the accuracy of a selector lies between 0.5 and 1")
    halves = element_trials(elements, replicates, seed)
    policies = [*COLD, *(Policy(kind, belief) for kind in WARM for belief in ("flat", "elements"))]
    on_half = replay(halves, policies, rounds=rounds, impressions=impressions, seed=seed)
    held = np.array([pair_accuracy(trial.beliefs["elements"].means, trial.rates) for trial in halves])

    features = one_hot(elements.choices)
    trials = []
    for at in range(replicates):
        beliefs = {"flat": flat(elements.rates)}
        for accuracy in accuracies:
            for believed in (None, BELIEVED):
                rng = np.random.default_rng([seed, at])  # the same noise at every accuracy
                beliefs[_name(accuracy, believed)] = simulated_belief(
                    elements.rates, accuracy, rng, believed=believed
                )
        trials.append(Trial(elements.ids, elements.rates, features, beliefs))
    policies = [*COLD, *(Policy(kind, "flat") for kind in WARM)]
    policies += [Policy("thompson", _name(accuracy)) for accuracy in accuracies]
    policies += [Policy("thompson", _name(accuracy, BELIEVED)) for accuracy in accuracies]
    policies += [Policy("linucb", _name(accuracy)) for accuracy in accuracies]
    on_all = replay(trials, policies, rounds=rounds, impressions=impressions, seed=seed)
    return {
        "rounds": rounds,
        "impressions_a_round": impressions,
        "replicates": replicates,
        "seed": seed,
        "caveat": CAVEAT,
        "elements": {
            "creatives": len(halves[0].rates),
            "pair_accuracy": vars(Figure.of(held)),
            "policies": _records(on_half),
        },
        "accuracy": {"creatives": len(elements.rates), "policies": _records(on_all)},
    }


def _name(accuracy: float, believed: float | None = None) -> str:
    """Of a belief; also what it is called in tables."""
    return f"selector {accuracy:.2f}" + ("" if believed is None else f" taken for {believed:.2f}")


def _records(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Summaries, each with its difference to the same policy's start at the flat belief, where it has one."""
    starts = {one.policy.kind: one for one in outcomes if one.policy.belief == "flat"}
    found = []
    for one in outcomes:
        record = one.summary()
        start = starts.get(one.policy.kind)
        if start is not None and one is not start and one.policy.belief:
            record["against_flat"] = vars(difference(one, start))
        found.append(record)
    return found


def show(record: dict[str, Any], console: Console) -> None:
    """Both halves as tables on a terminal."""
    half, whole = record["elements"], record["accuracy"]
    accuracy = half["pair_accuracy"]
    console.print(
        _table(
            half["policies"],
            f"Prior from the elements, fitted to the other half: {half['creatives']} creatives, right on "
            f"{accuracy['value']:.1%} of pairs ({accuracy['low']:.1%} … {accuracy['high']:.1%})",
        )
    )
    console.print(
        _table(whole["policies"], f"Prior from simulated selectors: {whole['creatives']} creatives")
    )
    console.print(
        f"{record['rounds']} rounds of {record['impressions_a_round']:,} impressions, {record['replicates']} "
        f"replicates, 95 % intervals over them. Regret: 1 is uniform, 0 the best creative from the start. "
        f"{record['caveat']}",
        style="dim",
        soft_wrap=True,
    )


def _table(policies: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), title=title, title_justify="left")
    for name in ("policy", "regret", "95 %", "CTR", "against a flat start"):
        table.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for one in policies:
        regret, against = one["normalised_regret"], one.get("against_flat")
        table.add_row(
            one["policy"],
            f"{regret['value']:.3f}",
            f"{regret['low']:.3f} … {regret['high']:.3f}",
            f"{one['ctr']['value']:.3%}",
            f"{against['value']:+.3f} ({against['low']:+.3f} … {against['high']:+.3f})" if against else "",
        )
    return table


def main(
    data: Annotated[
        Path, typer.Option(help="Folder with ctr_online.txt: composed creatives with their rates.")
    ],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; a policy sees clicks after each.")] = 15,
    impressions: Annotated[int, typer.Option(min=1, help="Impressions of a round.")] = 20_000,
    replicates: Annotated[int, typer.Option(min=2, help="Draws that the intervals are over.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    json: Json = False,
) -> None:
    """Replay A/B tests on known rates: what a prior saves, and how good a selector must be for that."""
    record = study(
        read_elements(data), rounds=rounds, impressions=impressions, replicates=replicates, seed=seed
    )
    if json:
        return print_json(record)
    console = Console()
    console.width = max(console.width, 120)
    show(record, console)


app = app_of(main)

if __name__ == "__main__":
    start(app)

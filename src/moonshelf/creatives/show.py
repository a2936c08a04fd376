"""Judgements, rankings and problems on a terminal. Text from data and models is never read as markup."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from moonshelf.creatives.ranking import Ranking
from moonshelf.creatives.schema import KEYS, QUESTIONS, Assessment, Campaign, Creative, Judgement, Pair
from moonshelf.errors import Problem

# What a verdict is, and is not, in one line under every result.
CAVEAT = "A preference of the judge, for triage and as a prior of a test; it foretells no click-through rate."
_STYLE = {"A>B": "green", "A<B": "cyan"}
_WORD = {"A>B": "A", "A<B": "B", "A=B": "even"}
_PROBLEMS = 5  # that are shown one by one


def plain(text: str, limit: int = 200) -> str:
    """One line without control characters."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def show_judgement(
    pair: Pair, judgement: Judgement, judge: str, console: Console, *, explain: bool = False
) -> None:
    """The verdict with its probability, reasons by question, flags; `explain` adds what both orders said."""
    if judgement.verdict is None:
        console.print(Text(f"No verdict: {judgement.abstained}.", "yellow"))
    else:
        sure = max(judgement.p, 1 - judgement.p)
        name = (pair.a if judgement.verdict == "A" else pair.b).image.name
        head = Text(f"{judgement.verdict} ({plain(name, 80)})", "bold")
        console.print(head.append(f" is preferred by {judge}, with probability {sure:.2f}.", "not bold"))
    if judgement.assessment is not None:
        console.print(_questions(judgement.assessment))
    elif judgement.verdict is not None:
        console.print(Text(f"{judge} gives no reasons.", "dim"))
    if judgement.dropped:
        console.print(
            Text(f"Left out of the reasons, being untrue: {plain('; '.join(judgement.dropped))}.", "dim")
        )
    for flag in judgement.flags:
        console.print(Text(f"Look at this: {plain(flag)}", "yellow"))
    if explain:
        console.print(
            Text(
                f"\nProbability of A when shown first {judgement.p_first:.3f}, when shown second "
                f"{judgement.p_second:.3f}, averaged and calibrated {judgement.p:.3f}; "
                f"{judgement.tokens} tokens written."
            )
        )
        if judgement.mirrored is not None:
            console.print(Text("\nIts reasons with the images exchanged:"))
            console.print(_questions(judgement.mirrored))
    console.print(Text(CAVEAT, "dim"), soft_wrap=True)


def _questions(assessment: Assessment) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("", "speaks for", "A", "B"):
        table.add_column(name)
    for finding in assessment.findings:
        question = QUESTIONS[KEYS.index(finding.question)]
        answer = _WORD.get(finding.answer, finding.answer)
        table.add_row(
            question.key if question.compares else f"{question.key}?",
            Text(answer, _STYLE.get(finding.answer, "")),
            Text(plain(finding.reason_a)),
            Text(plain(finding.reason_b)),
        )
    return table


def show_ranking(campaign: Campaign, ranking: Ranking, console: Console, *, top: int | None = None) -> None:
    """The creatives best first, with what the order rests on."""
    title = f"{plain(campaign.id, 60)}  {plain(campaign.title, 80)}".strip()
    console.print(Text(title, "bold"))
    if campaign.interest:
        console.print(Text(f"Interest: {plain('; '.join(campaign.interest))}", "dim"))
    if campaign.source.startswith("simulated"):
        console.print(Text("Simulated.", "dim"))
    images = {creative.id: _file(creative) for creative in campaign.creatives}
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("", "creative", "image", "best with", "strength", "95 %"):
        table.add_column(name, justify="right" if name in ("", "best with", "strength", "95 %") else "left")
    for place, name in enumerate(ranking.order[:top], 1):
        low, high = ranking.intervals[name]
        table.add_row(
            str(place),
            Text(plain(name, 40)),
            Text(plain(images[name], 60)),
            f"{ranking.p_best[name]:.2f}",
            f"{ranking.strengths[name]:+.2f}",
            f"{low:+.2f} … {high:+.2f}",
        )
    console.print(table)
    said = f"{len(ranking.comparisons)} of {ranking.pairs} pairs compared by {ranking.judge}"
    if ranking.abstained:
        said += f", {ranking.abstained} without a verdict"
    if ranking.intransitivity is not None:
        said += f", {ranking.intransitivity:.0%} of {ranking.triples} triples are circular"
    console.print(Text(f"{said}.", "dim"))
    if not ranking.clear:
        console.print(Text("No creative is clearly the best.", "yellow"))


def _file(creative: Creative) -> str:
    """Name of a creative's file without its folders, or its address."""
    return Path(creative.image.path).name if creative.image.path else creative.image.name


def show_problems(problems: Sequence[Problem], console: Console) -> None:
    """How many rows were set aside and mended, and the first of them."""
    if not problems:
        return
    fatal = [problem for problem in problems if problem.fatal]
    console.print(Text(f"{len(fatal)} rows set aside, {len(problems) - len(fatal)} warnings.", "yellow"))
    for problem in [*fatal, *(one for one in problems if not one.fatal)][:_PROBLEMS]:
        where = f"{plain(problem.id, 40)}, " if problem.id else ""
        console.print(
            Text(f"  row {problem.row}: {where}{problem.field}: {plain(problem.reason)}"), soft_wrap=True
        )

"""Judgements, rankings and problems on a terminal. Text from data and models is never read as markup."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from moonshelf.creatives.ranking import Ranking
from moonshelf.creatives.schema import CAVEAT, KEYS, QUESTIONS, Assessment, Campaign, Judgement, Pair
from moonshelf.errors import Problem
from moonshelf.plaintext import shown

_ANSWERS = {"A>B": ("A", "green"), "A<B": ("B", "cyan"), "A=B": ("even", "")}
_PROBLEMS = 5  # that are shown one by one


def table(left: Sequence[str], right: Sequence[str] = ()) -> Table:
    """An empty table without a frame, columns of words to the left and then those of numbers to the right."""
    made = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in (*left, *right):
        made.add_column(name, justify="right" if name in right else "left")
    return made


def show_judgement(
    pair: Pair, judgement: Judgement, judge: str, console: Console, *, explain: bool = False
) -> None:
    """The verdict with its probability, reasons by question, flags; `explain` adds what both orders said."""
    if judgement.verdict is None:
        console.print(Text(f"No verdict: {judgement.abstained}.", "yellow"))
    else:
        sure = max(judgement.p, 1 - judgement.p)
        name = (pair.a if judgement.verdict == "A" else pair.b).image.name
        head = Text(f"{judgement.verdict} ({shown(name, 80)})", "bold")
        console.print(head.append(f" is preferred by {judge}, with probability {sure:.2f}.", "not bold"))
    if judgement.assessment is not None:
        console.print(_questions(judgement.assessment))
    elif judgement.verdict is not None:
        console.print(Text(f"{judge} gives no reasons.", "dim"))
    if judgement.dropped:
        untrue = shown("; ".join(judgement.dropped), 200)
        console.print(Text(f"Left out of the reasons, being untrue: {untrue}.", "dim"))
    for flag in judgement.flags:
        console.print(Text(f"Look at this: {shown(flag, 200)}", "yellow"))
    if explain:
        said = f"Probability of A when shown first {judgement.p_first:.3f}, when shown second "
        said += f"{judgement.p_second:.3f}, averaged and calibrated {judgement.p:.3f}; "
        console.print(Text(f"\n{said}{judgement.tokens} tokens written."))
        if judgement.mirrored is not None:
            console.print(Text("\nIts reasons with the images exchanged:"))
            console.print(_questions(judgement.mirrored))
    console.print(Text(CAVEAT, "dim"), soft_wrap=True)


def _questions(assessment: Assessment) -> Table:
    made = table(("", "speaks for", "A", "B"))
    for finding in assessment.findings:
        mark = "" if QUESTIONS[KEYS.index(finding.question)].compares else "?"
        answer = Text(*_ANSWERS.get(finding.answer, (finding.answer, "")))
        reasons = (Text(shown(reason, 200)) for reason in (finding.reason_a, finding.reason_b))
        made.add_row(finding.question + mark, answer, *reasons)
    return made


def show_ranking(campaign: Campaign, ranking: Ranking, console: Console, *, top: int | None = None) -> None:
    """The creatives best first, with what the order rests on."""
    console.print(Text(f"{shown(campaign.id, 60)}  {shown(campaign.title, 80)}".strip(), "bold"))
    if campaign.interest:
        console.print(Text(f"Interest: {shown('; '.join(campaign.interest), 200)}", "dim"))
    if campaign.source.startswith("simulated"):
        console.print(Text("Simulated.", "dim"))
    refs = {creative.id: creative.image for creative in campaign.creatives}
    made = table(("", "creative", "image"), ("best with", "strength", "95 %"))
    for place, name in enumerate(ranking.order[:top], 1):
        low, high = ranking.intervals[name]
        file = Path(refs[name].path or "").name or refs[name].name  # without its folders, or its address
        figures = (
            f"{ranking.p_best[name]:.2f}",
            f"{ranking.strengths[name]:+.2f}",
            f"{low:+.2f} … {high:+.2f}",
        )
        made.add_row(str(place), Text(shown(name, 40)), Text(shown(file, 60)), *figures)
    console.print(made)
    said = f"{len(ranking.comparisons)} of {ranking.pairs} pairs compared by {ranking.judge}"
    if ranking.abstained:
        said += f", {ranking.abstained} without a verdict"
    if ranking.intransitivity is not None:
        said += f", {ranking.intransitivity:.0%} of {ranking.triples} triples are circular"
    console.print(Text(f"{said}.", "dim"))
    if not ranking.clear:
        console.print(Text("No creative is clearly the best.", "yellow"))


def show_problems(problems: Sequence[Problem], console: Console) -> None:
    """How many rows were rejected and mended, and the first of them."""
    if not problems:
        return
    fatal = [problem for problem in problems if problem.fatal]
    console.print(Text(f"{len(fatal)} rows rejected, {len(problems) - len(fatal)} warnings.", "yellow"))
    for problem in sorted(problems, key=lambda one: not one.fatal)[:_PROBLEMS]:
        where = f"{shown(problem.id, 40)}, " if problem.id else ""
        said = f"  row {problem.row}: {where}{problem.field}: {shown(problem.reason, 200)}"
        console.print(Text(said), soft_wrap=True)

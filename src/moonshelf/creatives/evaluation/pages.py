"""The pages about creatives, and the tables: the report of an evaluation, and a demo's ranked campaigns.

Built from what a run left in its folder; self-contained like our other pages (no script, no request, one
content policy), every word of a stranger escaped, every picture saved again. Whatever comes from drawn
campaigns says "simulated" where it stands, and each page says what a verdict may be used for: it sorts and
informs, it does not foretell a click rate.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from moonshelf.creatives.evaluation import cards
from moonshelf.creatives.evaluation import charts as plots
from moonshelf.creatives.evaluation.figures import ALL, HEADLINE, Evidence
from moonshelf.creatives.evaluation.metrics import COVERAGES, Figure, Gap
from moonshelf.creatives.evaluation.record import CreativeReport
from moonshelf.creatives.known import ORACLE
from moonshelf.creatives.ranking import Ranking
from moonshelf.creatives.schema import ASPECTS, QUESTIONS, Campaign, Pair
from moonshelf.creatives.show import table
from moonshelf.evaluation.report.charts import Chart
from moonshelf.evaluation.report.page import facts, percent, template, write_texts
from moonshelf.plaintext import csv_field, escaped

HTML = "report.html"
# what the tables of backends show: (part, figure, heading); the first is what selectors are compared by
SKILL: tuple[tuple[str, str, str], ...] = (
    (HEADLINE, "accuracy", "Accuracy"),
    (HEADLINE, "winner first", "Winner first"),
    (HEADLINE, "winner second", "Winner second"),
    (HEADLINE, "position swap", "Right in both"),
    (HEADLINE, "flip rate", "Flips"),
    (HEADLINE, "position bias", "Position bias"),
    (HEADLINE, "coverage", "Verdicts"),
    (HEADLINE, "accuracy of verdicts", "Right of verdicts"),
)
CALIBRATION: tuple[tuple[str, str, str], ...] = (
    (ALL, "log loss", "Log loss, all"),
    (ALL, "Brier", "Brier, all"),
    (ALL, "ECE", "ECE, all"),
    (HEADLINE, "AURC", "AURC"),
    *((HEADLINE, f"accuracy@{c:.0%}", f"Surest {c:.0%}") for c in COVERAGES),
    (HEADLINE, "abstention as miss", "Abstaining is a miss"),
)
SHOWN = ("accuracy", "position swap", "flip rate", "coverage", "log loss", "ECE")  # of them on a terminal
LOSSES = ("log loss", "Brier", "AURC", "ECE")  # nobody comes below their bound; of all others it is a ceiling
# How figures are written that are no shares in percent with one decimal: (factor, decimals).
WRITTEN = {
    "log loss": (1, 3), "Brier": (1, 3), "AURC": (1, 3), "checkable claims an answer": (1, 2),
    "comparisons a campaign": (1, 2), "Kendall tau-b": (1, 2), "Spearman": (1, 2),
    "click rate of the picks": (100, 2),
}  # fmt: skip
GROUPS = {
    "paired": "Paired differences between judges",
    "interest": "Interest",
    "slices": "Slices",
    "explanations": "Reasons",
    "questions": "Answers against the truth",
    "controls": "Controls",
    "ranking": "Ranking of campaigns",
}
ASKS = {question.key: question.asks for question in QUESTIONS}
ASKS["all aspects"] = f"The {len(ASPECTS)} compared aspects together"


def write_pages(out: Path, report: CreativeReport, evidence: Evidence) -> None:
    """Write `report.html`, `report.md` and `results.csv` into a run's folder."""
    pictures = cards.from_folder(out)
    of_accuracy = [one for one in report.lines if one.group == "interest" and one.name.startswith("accuracy")]
    values: dict[str, Any] = {
        "run": report,
        "title": f"Creatives: {report.backends[0]}",
        "ours": report.backends[0],
        "rows": [*report.backends, *([ORACLE] if report.find("skill", HEADLINE, ORACLE, "accuracy") else [])],
        "cards": [cards.card(*one, pictures) for one in cards.chosen(evidence)],
        "plots": _plots(report),
        "asked": list(dict.fromkeys(one.part for one in of_accuracy)),
        "interests": list(dict.fromkeys(one.name for one in of_accuracy if one.value is not None)),
        "facts": facts(
            report.settings,
            report.versions,
            report.machine,
            {"pairs": [f"{source}: {n:,}" for source, n in report.sources.items()]},
            seconds=report.seconds,
        ),
        "grids": {group: grid(report, group) for group in GROUPS},
        "SKILL": SKILL,
        "CALIBRATION": CALIBRATION,
        "GROUPS": GROUPS,
        "LOSSES": LOSSES,
        "HEADLINE": HEADLINE,
        "ALL": ALL,
        "ORACLE": ORACLE,
    }
    texts = {HTML: _page("creative.html", values), "report.md": _page("creative.md", values)}
    write_texts(out, texts | {"results.csv": table_csv(report)})


def keep_pictures(out: Path, evidence: Evidence, pairs: Sequence[Pair]) -> None:
    """Keep the pictures that the page will show, small; `pairs` are those of the evidence with images."""
    by_id = {pair.id: pair for pair in pairs}
    wanted = [by_id[pair.id] for pair, _, _ in cards.chosen(evidence)]
    cards.keep_pictures(out, [one for pair in wanted for one in (pair.a, pair.b)])


def write_demo_report(
    out: Path,
    campaigns: Sequence[Campaign],
    rankings: Sequence[Ranking],
    *,
    title: str = "Which creative to run, and why",
    facts: dict[str, str] | None = None,
) -> Path:
    """Write `report.html` into the folder `out`: each campaign with its creatives in ranked order, their
    probabilities, and the reasons of the duel of its first two, which the rankings hold. `facts` stand at
    the end (command, model, time). A ranking without its campaign is an error of the caller (KeyError)."""
    by_id = {one.id: one for one in campaigns}
    places = [cards.ranked(by_id[one.campaign_id], one, cards.from_references) for one in rankings]
    values = {
        "title": title,
        "ranked": places,
        "judges": list(dict.fromkeys(one.judge for one in rankings if one.judge)),
        "simulated": any(one.campaign.source.startswith("simulated") for one in places),
        "facts": facts or {},
    }
    (path,) = write_texts(out, {HTML: _page("creative_demo.html", values)})
    return path


def _page(name: str, values: dict[str, Any]) -> str:
    page = template(name, Path(__file__).parent, escaped=escaped, figure=figure)
    return page.render(ASKS=ASKS, **values).strip() + "\n"


def figure(value: float | None, name: str = "") -> str:
    """A loss with three decimals, a count or a correlation with two, a share in percent with one."""
    if value is None:
        return "n/a"
    factor, decimals = WRITTEN.get(name, (100, 1))
    return f"{factor * value:.{decimals}f}".replace("-", "−")


def _plots(report: CreativeReport) -> list[Chart]:
    """Reliability of our backend on all pairs; risk against coverage, beside the best other and oracle."""
    curves = {(one.backend, one.part): one for one in report.curves}
    found = []
    if ours := curves.get((report.backends[0], ALL)):
        found.append(plots.reliability_chart(ours))
    others = [
        (line.value, name)
        for name in report.backends[1:]
        if (line := report.find("skill", HEADLINE, name, "accuracy")) and line.value is not None
    ]
    names = [report.backends[0], *([max(others)[1]] if others else []), ORACLE]
    lines = [one for name in names if (one := curves.get((name, HEADLINE))) and one.risk]
    if lines:
        found.append(plots.risk_chart(lines))
    return found


@dataclass(frozen=True)
class Row:
    """One figure of a group, and what each backend has of it."""

    label: str
    note: str
    n: int
    found: dict[str, Figure]


def grid(report: CreativeReport, group: str) -> list[Row]:
    """The figures of a group that anybody has, in their order."""
    rows: dict[tuple[str, str], dict[str, Figure]] = {}
    for one in report.lines:
        if one.group == group and one.value is not None:
            rows.setdefault((one.part, one.name), {})[one.backend] = one
    found = []
    for (part, name), lines in rows.items():
        some = next(iter(lines.values()))
        notes = []
        if some.bound is not None:
            ceiling = f"ceiling {percent(some.bound)} %"
            notes = [f"least {figure(some.bound, name)}" if name in LOSSES else ceiling]
        notes += [f"commonest answer {percent(some.chance)} %"] if some.chance is not None else []
        notes += [some.note] if some.note else []
        told = part if name == "accuracy" else name
        label = f"{told}, {part} interest" if group == "interest" else told
        found.append(Row(label, ", ".join(notes), some.n, lines))
    return found


def table_csv(report: CreativeReport) -> str:
    """Every figure and every paired difference, one a line, with full precision."""
    names = [one.name for one in fields(Figure)]
    names += [one.name for one in fields(Gap) if one.name not in names]
    rows = [asdict(line) for line in report.lines]
    for gap in report.differences:
        same = {"group": "differences", "backend": gap.ours, "value": gap.difference}
        rows.append(asdict(gap) | same | {"name": f"accuracy minus that of {gap.theirs}"})
    file = io.StringIO()
    writer = csv.DictWriter(file, [*names, "simulated"], lineterminator="\n")
    writer.writeheader()
    drawn = "yes" if report.simulated else "no"
    writer.writerows(
        {name: csv_field(value) for name, value in row.items()} | {"simulated": drawn} for row in rows
    )
    return file.getvalue()


# ---- on a terminal -------------------------------------------------------------------------------------


def show(report: CreativeReport, console: Console) -> None:
    """Skill on decisive pairs beside its ceiling, calibration on all pairs, differences, notes."""
    mark = "Simulated. " if report.simulated else ""
    pairs = ", ".join(f"{n:,} of {source}" for source, n in report.sources.items())
    console.print(Text(f"{mark}Pairs: {pairs}", "bold"))
    columns = [column for column in (*SKILL, *CALIBRATION) if column[1] in SHOWN]
    made = table(("judge",), [heading for _, _, heading in columns])
    oracle = [ORACLE] if report.find("skill", HEADLINE, ORACLE, "accuracy") else []
    for backend in [*report.backends, *oracle]:
        lines = [report.find("skill", part, backend, name) for part, name, _ in columns]
        made.add_row(Text(backend), *(_cell(line) for line in lines))
    console.print(made)
    first = report.find("skill", HEADLINE, report.backends[0], "accuracy")
    if first is not None and first.bound is not None:
        bound = f"label ceiling {figure(first.bound)}."
        console.print(Text(f"Shares in %, on {HEADLINE} where nothing else is said; {bound}"))
    for gap in report.differences:
        said = f"{gap.ours} minus {gap.theirs}, {gap.part}: {100 * gap.difference:+.1f} points"
        if gap.low is not None and gap.high is not None:
            said += f" [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
        console.print(Text(said), soft_wrap=True)
    for note in report.notes:
        console.print(Text(note, "dim"), soft_wrap=True)


def _cell(line: Figure | None) -> Text:
    if line is None or line.value is None:
        return Text("–", "dim")
    text = Text(figure(line.value, line.name))
    if line.low is not None and line.high is not None:
        text.append(f" [{figure(line.low, line.name)}, {figure(line.high, line.name)}]", "dim")
    return text

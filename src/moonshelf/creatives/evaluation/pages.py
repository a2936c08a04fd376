"""The pages about creatives: the report of an evaluation, and a demo's ranked campaigns.

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

from moonshelf.creatives.evaluation import cards as cards
from moonshelf.creatives.evaluation import charts as plots
from moonshelf.creatives.evaluation.cards import OUTCOMES, Pictures
from moonshelf.creatives.evaluation.explanations import COMPARED
from moonshelf.creatives.evaluation.figures import ALL, HEADLINE, Evidence
from moonshelf.creatives.evaluation.metrics import COVERAGES, Gap
from moonshelf.creatives.evaluation.record import CreativeReport, Line
from moonshelf.creatives.evaluation.simulated import ORACLE
from moonshelf.creatives.ranking import Ranking
from moonshelf.creatives.schema import KEYS, QUESTIONS, Campaign, Pair
from moonshelf.evaluation.report import charts
from moonshelf.evaluation.report.demo_page import template
from moonshelf.plaintext import csv_field, escaped, shown, table

HTML, MARKDOWN, CSV = "report.html", "report.md", "results.csv"
SIMULATED = "simulated"
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
COLUMNS = (*SKILL, *CALIBRATION)
PLAIN = ("log loss", "Brier", "AURC")  # numbers with three decimals, not shares
LOSSES = (*PLAIN, "ECE")  # nobody comes below their bound; of all others it is a ceiling
COUNTED = ("checkable claims an answer", "comparisons a campaign", "Kendall tau-b", "Spearman")  # with two
RATES = ("click rate of the picks",)  # percent with two decimals
GROUPS = {
    "paired": "Paired differences between judges",
    "interest": "Interest",
    "slices": "Slices",
    "explanations": "Reasons",
    "questions": "Answers against the truth",
    "controls": "Controls",
    "edits": "Edits of a named factor",
    "ranking": "Ranking of campaigns",
}
USES = (
    "Sort creatives before a test, and leave out those that are clearly weaker.",
    "Start an A/B test or a bandit from a better guess than even odds.",
    "Tell a designer what to change, by the question that speaks against a picture.",
)
NOT_USES = (
    "It does not predict a click rate, and no gain in clicks follows from it.",
    "It does not replace a test: where it is unsure or abstains, only clicks can tell.",
    "Figures of drawn campaigns hold for drawn campaigns. Measure on your own before you rely on it.",
)


@dataclass(frozen=True)
class Tile:
    """One headline figure of our backend."""

    label: str
    line: Line
    note: str


def write_pages(out: Path, report: CreativeReport, evidence: Evidence) -> list[Path]:
    """Write `report.html`, `report.md` and `results.csv` into a run's folder; gives their paths."""
    texts = {
        HTML: render(report, evidence, cards.from_folder(out)),
        MARKDOWN: markdown(report),
        CSV: table_csv(report),
    }
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
    return [out / name for name in texts]


def keep_pictures(out: Path, report: CreativeReport, evidence: Evidence, pairs: Sequence[Pair]) -> None:
    """Keep the pictures that the page will show, small; `pairs` are those of the evidence with images."""
    by_id = {pair.id: pair for pair in pairs}
    wanted = [by_id[pair.id] for pair, _, _ in cards.chosen(evidence)]
    cards.keep_pictures(out, [one for pair in wanted for one in (pair.a, pair.b)])


def render(report: CreativeReport, evidence: Evidence, pictures: Pictures) -> str:
    """The page of an evaluation as HTML."""
    truth = {pair.id: q for pair, q in zip(evidence.pairs, evidence.truth, strict=True)}
    shown_pairs = [
        cards.card(pair, judgement, truth[pair.id], pictures) for pair, judgement, _ in cards.chosen(evidence)
    ]
    return _page("creative.html").render(
        run=report,
        title=f"Creatives: {report.backends[0]}",
        ours=report.backends[0],
        rows=[*report.backends, *([ORACLE] if report.find("skill", HEADLINE, ORACLE, "accuracy") else [])],
        tiles=_tiles(report),
        cards=shown_pairs,
        plots=_plots(report),
        gaps=[one.gap for one in report.differences if one.group == "backends"],
        interests=_interests(report),
        questions=_questions(report),
        facts=_facts(report),
        grids={
            "reasons": grid(report, "explanations", "edits"),
            "controls": grid(report, "controls"),
            "slices": grid(report, "slices"),
            "ranking": grid(report, "ranking"),
        },
        SKILL=SKILL,
        CALIBRATION=CALIBRATION,
        HEADLINE=HEADLINE,
        ORACLE=ORACLE,
        LOSSES=LOSSES,
        **_shared(),
    )


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
    page = _page("creative_demo.html").render(
        title=title, ranked=places, judges=list(dict.fromkeys(one.judge for one in rankings if one.judge)),
        simulated=any(one.simulated for one in places), facts=facts or {}, **_shared(),
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    path = out / HTML
    path.write_text(page, encoding="utf-8", newline="\n")
    return path


def _shared() -> dict[str, Any]:
    return {
        "USES": USES,
        "NOT_USES": NOT_USES,
        "OUTCOMES": OUTCOMES,
        "PLOTS": 4,
        "SIDE": cards.SIDE,
        "box": (charts.WIDTH, charts.HEIGHT, charts.LEFT, charts.RIGHT, charts.TOP, charts.BOTTOM),
    }


def _page(name: str) -> Any:
    return template(
        name,
        Path(__file__).parent,
        clean=shown,
        percent=charts.percent,
        signed=signed,
        number=number,
        figure=figure,
    )


def signed(points: float) -> str:
    """+1.2, −0.3, with a true minus sign."""
    return f"{points:+.1f}".replace("-", "−")


def number(value: float | None) -> str:
    """A share for a style sheet, 0 … 100, never anything else."""
    return f"{100 * min(max(float(value or 0), 0.0), 1.0):.2f}"


def figure(value: float | None, name: str = "") -> str:
    """A loss with three decimals, a count or a correlation with two, a share in percent with one."""
    if value is None:
        return "n/a"
    if name in PLAIN:
        text = f"{value:.3f}"
    elif name in COUNTED:
        text = f"{value:.2f}"
    else:
        text = f"{100 * value:.2f}" if name in RATES else charts.percent(value)
    return text.replace("-", "−")


def _tiles(report: CreativeReport) -> list[Tile]:
    wanted = [
        (HEADLINE, "accuracy", "Right on decisive pairs", "ceiling {}"),
        (HEADLINE, "flip rate", "Verdicts that change with the order", ""),
        (HEADLINE, "coverage", "Pairs with a verdict", ""),
        (ALL, "ECE", "How far its probabilities are off", "a perfect judge of so few pairs: {}"),
    ]
    found = []
    for part, name, label, note in wanted:
        line = report.find("skill", part, report.backends[0], name)
        if line is not None and line.value is not None:
            text = note.format(f"{charts.percent(line.bound)} %") if note and line.bound is not None else ""
            found.append(Tile(label, line, text))
    return found


def _plots(report: CreativeReport) -> list[charts.Chart]:
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
class Interested:
    """One backend under each interest."""

    backend: str
    figures: Sequence[tuple[str, Line]]  # interest, accuracy


def _interests(report: CreativeReport) -> dict[str, list[Interested]]:
    """By kind of pairs, decisive ones first."""
    found: dict[str, list[Interested]] = {}
    for name in dict.fromkeys(one.name for one in report.lines if one.group == "interest"):
        if not name.startswith("accuracy"):
            continue
        for backend in report.backends:
            lines = [
                (part, line)
                for part in report.parts("interest")
                if (line := report.find("interest", part, backend, name)) and line.value is not None
            ]
            if lines:
                part = name.removeprefix("accuracy, ")
                found.setdefault(part, []).append(Interested(backend, lines))
    return found


def _questions(report: CreativeReport) -> list[tuple[str, str, dict[str, Line]]]:
    """(key, what it asks, line by backend) of every question that could be checked."""
    asks = {question.key: question.asks for question in QUESTIONS}
    asks = {"all aspects": f"The {len(COMPARED)} compared aspects together", **asks}
    found = []
    for key in ("all aspects", *KEYS):
        lines = {name: line for name in report.backends if (line := report.find("questions", key, name, key))}
        if lines:
            found.append((key, asks[key], lines))
    return found


@dataclass(frozen=True)
class Row:
    """One figure of a group, and what each backend has of it."""

    label: str
    note: str
    n: int
    found: dict[str, Line]


def grid(report: CreativeReport, *groups: str) -> list[Row]:
    """The figures of some groups that anybody has, in their order."""
    rows: dict[tuple[str, str], dict[str, Line]] = {}
    for one in report.lines:
        if one.group in groups and one.value is not None:
            rows.setdefault((one.part, one.name), {})[one.backend] = one
    found = []
    for (part, name), lines in rows.items():
        some = next(iter(lines.values()))
        notes = []
        if some.bound is not None:
            ceiling = f"ceiling {charts.percent(some.bound)} %"
            notes = [f"least {figure(some.bound, name)}" if name in LOSSES else ceiling]
        notes += [f"commonest answer {charts.percent(some.chance)} %"] if some.chance is not None else []
        notes += [some.note] if some.note else []
        told = part if name == "accuracy" else name
        label = f"{told}, {part} interest" if some.group == "interest" else told
        found.append(Row(label, ", ".join(notes), some.n, lines))
    return found


def _facts(report: CreativeReport) -> dict[str, str]:
    """Settings, versions and machine as one flat list."""
    found: dict[str, str] = {}
    for group in (report.settings, report.versions, report.machine):
        for name, value in group.items():
            if isinstance(value, list | tuple):
                value = ", ".join(map(str, value)) or "none"
            found[str(name).replace("_", " ")] = "none" if value is None else str(value)
    found["pairs"] = "; ".join(f"{source}: {n:,}" for source, n in report.sources.items())
    found["whole run"] = f"{report.seconds:,.1f} s"
    return found


# ---- plain ----------------------------------------------------------------------------------------------


def markdown(report: CreativeReport) -> str:
    """The headline, the comparisons and the checks as tables for a README."""
    badge = f" ({SIMULATED})" if report.simulated else ""
    sources = ", ".join(f"{escaped(name)}: {n:,}" for name, n in report.sources.items())
    parts = [
        f"## Evaluation of creatives{badge}",
        f"Pairs by source: {sources}. Accuracies in percent with their 95 % interval over products; the "
        "ceiling is what knowing the true click rates would reach on these labels. A verdict sorts and "
        "informs; it does not predict a click rate.",
    ]
    for part in dict.fromkeys(part for part, _, _ in COLUMNS):
        columns = [(name, heading) for where, name, heading in COLUMNS if where == part]
        known = [one for one in report.lines if (one.group, one.part) == ("skill", part)]
        body = [
            [
                escaped(backend),
                *(_cell(report.find("skill", part, backend, name)) for name, _ in columns),
            ]
            for backend in dict.fromkeys(one.backend for one in known)
        ]
        if body:
            bound = next((one.bound for one in known if one.name == "accuracy"), None)
            note = f"{max(one.n for one in known):,} pairs"
            note += f", ceiling {charts.percent(bound)} %" if bound is not None else ""
            parts += [
                f"### {part.capitalize()}{badge}: {note}",
                table(["backend", *(heading for _, heading in columns)], body, left=1),
            ]
    parts += _differences_md(report, badge)
    for group, title in GROUPS.items():
        if found := grid(report, group):
            names = list(dict.fromkeys(name for row in found for name in row.found))
            body = [
                [
                    escaped(f"{row.label} ({row.note})" if row.note else row.label),
                    f"{row.n:,}",
                    *(_cell(row.found.get(name)) for name in names),
                ]
                for row in found
            ]
            head = ["figure", "n", *map(escaped, names)]
            parts += [f"### {title}{badge}", table(head, body, left=1)]
    parts += [escaped(note, 1000) for note in report.notes]
    return "\n\n".join(parts) + "\n"


def _differences_md(report: CreativeReport, badge: str) -> list[str]:
    if not report.differences:
        return []
    head = ["ours", "against", "difference", "p", "McNemar", "pairs", "pairs for 80 % power"]
    body = []
    for one in report.differences:
        gap = one.gap
        text = signed(100 * gap.difference)
        if gap.low is not None and gap.high is not None:
            text += f" ({signed(100 * gap.low)} to {signed(100 * gap.high)})"
        tests = ["–" if p is None else f"{p:.3g}" for p in (gap.p, gap.mcnemar)]
        needed = "–" if gap.needed is None else f"{gap.needed:,}"
        body.append([escaped(gap.ours), escaped(gap.theirs), text, *tests, f"{gap.n:,}", needed])
    return [f"### Paired differences in accuracy, points, {HEADLINE}{badge}", table(head, body, left=2)]


def _cell(line: Line | None) -> str:
    """80.2 (75.1 to 84.9)."""
    if line is None or line.value is None:
        return "–"
    text = figure(line.value, line.name)
    if line.low is not None and line.high is not None:
        text += f" ({figure(line.low, line.name)} to {figure(line.high, line.name)})"
    return text


def table_csv(report: CreativeReport) -> str:
    """Every figure and every paired difference, one a line, with full precision."""
    names = [one.name for one in fields(Line)]
    tests = [one.name for one in fields(Gap) if one.name not in names]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*names, *tests, SIMULATED])
    drawn = "yes" if report.simulated else "no"
    for line in report.lines:
        cells = [csv_field(value) for value in asdict(line).values()]
        writer.writerow([*cells, *[None] * len(tests), drawn])
    for one in report.differences:
        found: dict[str, Any] = asdict(one.gap)
        found |= {
            "group": "differences",
            "part": one.part,
            "backend": one.gap.ours,
            "value": one.gap.difference,
        }
        found["name"] = f"accuracy minus that of {one.gap.theirs}"
        writer.writerow([*(csv_field(found.get(name)) for name in (*names, *tests)), drawn])
    return file.getvalue()

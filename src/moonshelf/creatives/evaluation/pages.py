"""The pages about creatives, and the tables: the report of an evaluation, and a demo's ranked campaigns.

Built from what a run left in its folder; self-contained like our other pages (no script, no request, one
content policy), every word of a stranger escaped, every picture saved again. Whatever comes from drawn
campaigns says "simulated" where it stands, and each page says what a verdict may be used for: it sorts and
informs, it does not foretell a click rate. No pair is picked by hand: of our backend the surest mistakes on
decisive pairs come first, then abstentions, then the first pairs it has right.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from moonshelf.creatives.evaluation import charts as plots
from moonshelf.creatives.evaluation.figures import ALL, HEADLINE, Evidence, rates_of
from moonshelf.creatives.evaluation.metrics import COVERAGES, Figure, Gap
from moonshelf.creatives.evaluation.record import CreativeReport
from moonshelf.creatives.known import ORACLE, assess, drawn
from moonshelf.creatives.labels import content_key, posterior, stratum
from moonshelf.creatives.ranking import Comparison, Ranking
from moonshelf.creatives.schema import ASPECTS, QUESTIONS, Campaign, Creative, Judgement, Pair, Side
from moonshelf.creatives.show import table
from moonshelf.evaluation.record import read_shown, write_shown
from moonshelf.evaluation.report.charts import Chart
from moonshelf.evaluation.report.page import data_uri, facts, percent, template, thumbnail, write_texts
from moonshelf.plaintext import csv_field, escaped
from moonshelf.product import ImageRef

SIDE = 320  # pixels of the longer side of a picture
MOST = {"wrong": 10, "abstained": 3, "right": 5, "no winner": 0}  # pairs of each outcome on a page, in order
Pictures = Callable[[Creative], str]  # data URI of a creative, "" for none
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
    "ranking": "Ranking of campaigns",
}
ASKS = {question.key: question.asks for question in QUESTIONS}
ASKS["all aspects"] = f"The {len(ASPECTS)} compared aspects together"


def write_pages(out: Path, report: CreativeReport, evidence: Evidence) -> None:
    """Write `report.html`, `report.md` and `results.csv` into a run's folder."""
    pictures = from_folder(out)
    of_accuracy = [one for one in report.lines if one.group == "interest" and one.name.startswith("accuracy")]
    values: dict[str, Any] = {
        "run": report,
        "title": f"Creatives: {report.backends[0]}",
        "ours": report.backends[0],
        "rows": [*report.backends, *([ORACLE] if report.find("skill", HEADLINE, ORACLE, "accuracy") else [])],
        "cards": [card(*one, pictures) for one in chosen(evidence)],
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
    """Write the pictures of the page small into `out`; one that cannot be read is left out.

    `pairs` are those of the evidence with images.
    """
    by_id = {pair.id: pair for pair in pairs}
    shown = {
        ("", content_key(creative)): ("", thumbnail(creative.image, SIDE))
        for pair, _, _ in chosen(evidence)
        for creative in (by_id[pair.id].a, by_id[pair.id].b)
    }
    write_shown(shown, out)


def write_demo_report(
    out: Path,
    campaigns: Sequence[Campaign],
    rankings: Sequence[Ranking],
    *,
    facts: dict[str, str] | None = None,
) -> Path:
    """Write `report.html` into the folder `out`: each campaign with its creatives in ranked order, their
    probabilities, and the reasons of the duel of its first two, which the rankings hold. `facts` stand at
    the end (command, model, time). A ranking without its campaign is an error of the caller (KeyError)."""
    by_id = {one.id: one for one in campaigns}

    def picture(creative: Creative) -> str:
        return data_uri(thumbnail(creative.image, SIDE))  # from where it lies

    places = [show_ranked(by_id[one.campaign_id], one, picture) for one in rankings]
    values = {
        "title": "Which creative to run, and why",
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


# ---- pairs and campaigns -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """One creative as it stands on a page."""

    letter: str
    name: str  # for those who do not see the picture
    creative: Creative
    picture: str  # data URI, "" where there is none
    rate: float | None  # the true one, where it is known
    winner: str  # why it is the better one in truth: by its clicks, by its true rate; "" if it is not
    picked: bool  # by the verdict
    best_with: float | None = None  # probability of being the best of a campaign


@dataclass(frozen=True)
class Card:
    """A judged pair; `truth` is the posterior probability that A is better."""

    pair: Pair
    judgement: Judgement
    truth: float | None
    sides: list[Shown] = field(default_factory=list)  # A, B

    @property
    def outcome(self) -> str:
        return outcome(self.judgement, self.truth)

    @property
    def winner(self) -> Side | None:
        """The better one by the clicks."""
        return None if self.truth in (None, 0.5) else "A" if (self.truth or 0) > 0.5 else "B"


@dataclass(frozen=True)
class Ranked:
    """A campaign in the order that a ranking gives it."""

    campaign: Campaign
    ranking: Ranking
    places: Sequence[Shown]
    duel: Card | None  # the first two of the order, with the reasons


def chosen(evidence: Evidence) -> list[tuple[Pair, Judgement, float]]:
    """(pair, judgement, truth) of what a page shows of our backend, in its order."""
    known = evidence.judged["true"][evidence.backends[0]]
    kinds: dict[str, list[tuple[Pair, Judgement, float]]] = {name: [] for name in MOST}
    for pair, truth in zip(evidence.pairs, evidence.truth, strict=True):
        if stratum(truth) == "decisive":
            kinds[outcome(known[pair.id], truth)].append((pair, known[pair.id], truth))
    kinds["wrong"].sort(key=lambda row: -abs(row[1].p - 0.5))
    return [row for kind, rows in kinds.items() for row in rows[: MOST[kind]]]


def outcome(judgement: Judgement, truth: float | None) -> str:
    """A key of `MOST`; without a known winner a verdict is neither right nor wrong."""
    if judgement.verdict is None:
        return "abstained"
    if truth is None or truth == 0.5:
        return "no winner"
    return "right" if (judgement.verdict == "A") == (truth > 0.5) else "wrong"


def from_folder(out: Path) -> Pictures:
    """Pictures as `keep_pictures` left them, decoded again: a folder may have been changed since."""
    kept = {name: picture for (_, name), (_, picture) in read_shown(out).items()}

    def picture(creative: Creative) -> str:
        data = kept.get(creative.image.path or "")
        return data_uri(thumbnail(ImageRef(data=data), SIDE)) if data else ""

    return picture


def card(pair: Pair, judgement: Judgement, truth: float | None, pictures: Pictures) -> Card:
    """A judged pair with its pictures."""
    rates, made = pair.true_rates or (None, None), Card(pair, judgement, truth)
    for letter, creative, rate in zip("AB", (pair.a, pair.b), rates, strict=True):
        won, picked = made.winner == letter, judgement.verdict == letter
        why = "best by its clicks" if won else ""
        made.sides.append(
            Shown(letter, f"Creative {letter}", creative, pictures(creative), rate, why, picked)
        )
    return made


def show_ranked(campaign: Campaign, ranking: Ranking, pictures: Pictures) -> Ranked:
    """A campaign, best first, with the duel of its first two where they were compared."""
    by_id, rates = {one.id: one for one in campaign.creatives}, rates_of(campaign)
    best = max(rates.values(), default=math.nan)
    why = "best true rate" if campaign.true_rates else "best by its clicks"
    places = []
    for place, one in enumerate((by_id[name] for name in ranking.order), 1):
        won, picked = rates.get(one.id) == best, one.id == ranking.winner
        about = (one, pictures(one), rates.get(one.id), why if won else "", picked, ranking.p_best[one.id])
        places.append(Shown(str(place), f"Place {place}", *about))
    duel = next((one for one in ranking.comparisons if {one.a, one.b} == set(ranking.order[:2])), None)
    return Ranked(
        campaign, ranking, places, _duel(campaign, ranking.order[0], duel, pictures) if duel else None
    )


def _duel(campaign: Campaign, first: str, one: Comparison, pictures: Pictures) -> Card:
    """The first two of an order as a judged pair, A the first."""
    ids = [creative.id for creative in campaign.creatives]
    pair, judgement = campaign.pair(ids.index(one.a), ids.index(one.b), one.judgement.pair_id), one.judgement
    if drawn(pair):
        pair = pair.model_copy(update={"assessment": assess(pair)})
    if one.a != first:
        pair, judgement = pair.swapped(), judgement.swapped()
    return card(pair, judgement, posterior(pair), pictures)


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

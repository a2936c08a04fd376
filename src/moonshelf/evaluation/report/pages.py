"""The report of an evaluation: one self-contained HTML page, Markdown for a README, a CSV of all figures.

Built only from what a run left in its folder, so `moonshelf report` makes it again at any time. The page
loads nothing and runs no script, and its content policy allows nothing else; pictures are thumbnails inside
it. Every text in it may come from a stranger's feed: it is escaped, on one line, without bidi controls, cut.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from moonshelf.evaluation.report import charts, details, plain
from moonshelf.evaluation.report.outcome import MARKS, Change, Outcome, mark
from moonshelf.evaluation.report.page import data_uri, facts, template, thumbnail, write_texts
from moonshelf.product import ImageRef

HTML, MARKDOWN, CSV = "report.html", "report.md", "results.csv"
SIDE = 160  # pixels of a thumbnail
MAX_PROBLEMS = 20
RATIONALE = 400  # characters


def write_pages(
    out: Path,
    *,
    baseline: str | None = None,
    page: Path | None = None,
) -> list[Path]:
    """Write `report.html`, `report.md` and `results.csv` into a run's folder; gives their paths.

    `baseline` is the encoder that the marks compare with, by default the run's own. `page` is a Markdown page
    with a place for the tables (`plain.fill`). Raises UserError where the folder holds no run, or a damaged
    one.
    """
    outcome = Outcome.load(out, baseline)
    texts = {HTML: render(outcome), MARKDOWN: plain.markdown(outcome), CSV: plain.table_csv(outcome)}
    if page is not None:
        plain.fill(page, texts[MARKDOWN])
    return write_texts(out, texts)


def render(outcome: Outcome) -> str:
    """The page as HTML."""
    page = template("evaluation.html", mark=mark)

    @cache
    def photo(key: details.Picture) -> str:
        """A data URI, made once; "" for a picture that is missing or cannot be decoded."""
        _, data = outcome.shown.get(key, ("", b""))
        return data_uri(thumbnail(ImageRef(data=data), SIDE)) if data else ""

    report, changes = outcome.report, outcome.changes()
    suite = report.settings.get("suite")
    return page.render(
        run=outcome, details=details, title=f"Evaluation: {suite}" if suite else "Evaluation",
        changes=changes, span=_span(changes), costs=charts.cost_charts(outcome), photos=photo,
        unmeasured=_reasons(outcome), cost_columns=_cost_columns(outcome),
        facts=facts(report.settings, report.versions, report.machine, seconds=report.seconds),
        MARKS=MARKS, MAX_PROBLEMS=MAX_PROBLEMS, RATIONALE=RATIONALE, SIDE=SIDE,
    )  # fmt: skip


def _span(changes: list[Change]) -> float:
    """Half of the width of the bars of differences: the furthest end of an interval."""
    ends = [
        abs(v) for c in changes for v in (c.versus.difference, c.versus.low, c.versus.high) if v is not None
    ]
    return max([*ends, 0.01])


def _reasons(outcome: Outcome) -> list[tuple[str, str, list[str]]]:
    """What the data or an encoder cannot give: data set, reason, and the tasks that it holds for."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for dataset in outcome.report.datasets:
        for task, why in dataset.get("not_run", {}).items():
            found.setdefault((str(dataset.get("name")), why), {})[task] = None
    for row in outcome.rows:
        name = f"{row.task}, {row.view}" + ("" if row.method == "ranking" else f", {row.method}")
        for r in row.results.values():
            if r.value is None:
                why = f"{r.encoder}: {r.note or 'no reason is given'}"
                found.setdefault((row.dataset, why), {})[name] = None
    return [(dataset, why, list(tasks)) for (dataset, why), tasks in found.items()]


def _cost_columns(outcome: Outcome) -> list[str]:
    """Figures that the run kept of each encoder, in their order: seconds, tokens, memory …"""
    names = [
        name
        for one in outcome.report.encoders
        for name, value in one.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return list(dict.fromkeys(names))

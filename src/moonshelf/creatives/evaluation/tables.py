"""The figures of an evaluation of selectors on a terminal: the headline table, differences, notes."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from moonshelf.creatives.evaluation.figures import HEADLINE
from moonshelf.creatives.evaluation.metrics import Figure
from moonshelf.creatives.evaluation.pages import COLUMNS, figure
from moonshelf.creatives.evaluation.record import CreativeReport
from moonshelf.creatives.evaluation.simulated import ORACLE

SHOWN = ("accuracy", "position swap", "flip rate", "coverage", "log loss", "ECE")  # of the page's columns


def show(report: CreativeReport, console: Console) -> None:
    """Skill on decisive pairs beside its ceiling, calibration on all pairs, differences, notes."""
    mark = "Simulated. " if report.simulated else ""
    pairs = ", ".join(f"{n:,} of {source}" for source, n in report.sources.items())
    console.print(Text(f"{mark}Pairs: {pairs}", "bold"))
    columns = [column for column in COLUMNS if column[1] in SHOWN]
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("judge")
    for _, _, heading in columns:
        table.add_column(heading, justify="right")
    oracle = [ORACLE] if report.find("skill", HEADLINE, ORACLE, "accuracy") else []
    for backend in [*report.backends, *oracle]:
        lines = [report.find("skill", part, backend, name) for part, name, _ in columns]
        table.add_row(Text(backend), *(_cell(line) for line in lines))
    console.print(table)
    first = report.find("skill", HEADLINE, report.backends[0], "accuracy")
    if first is not None and first.bound is not None:
        ceiling = (
            f"Shares in %, on {HEADLINE} where nothing else is said; label ceiling {figure(first.bound)}."
        )
        console.print(Text(ceiling))
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

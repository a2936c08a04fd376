"""The figures of a run as tables: on a terminal, as Markdown for a README, as CSV for a spreadsheet.

All are for readers that trust what they read, so text from data is escaped or goes through `plaintext` first.
On a terminal the first two metrics of each ranking are shown, of anything else the first; the Markdown has
the first metric of each task, rounded; the CSV has every figure with full precision.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moonshelf.errors import UserError
from moonshelf.evaluation.contract import Result
from moonshelf.evaluation.record import Report
from moonshelf.evaluation.report.outcome import MARKS, Outcome, Row, mark
from moonshelf.evaluation.report.page import percent
from moonshelf.plaintext import csv_field, escaped, table

FIELDS = (
    "dataset", "task", "view", "method", "metric", "encoder", "value", "low", "high", "n", "clusters",
    "corpus", "chance", "constant", "note",
)  # fmt: skip
AGAINST = ("baseline", "difference", "low", "high", "p", "mcnemar")
BEGIN, END = "<!-- moonshelf evaluate: begin -->", "<!-- moonshelf evaluate: end -->"
FOOT = (
    "± is half of the 95 % bootstrap interval over groups; –: the encoder cannot do it; † the interval "
    "does not clear chance. R@k is the hit rate; ties count with their expectation. chance: random order or "
    "random label; constant: always the commonest training label. 'fitted' learns from training labels and "
    "is not zero-shot. More metrics are in the JSON."
)
COMPARED = "▲ better, ▼ worse than {}, ≈ not clearly different (paired, 95 %: 1 in 20 is luck)."


def fill(page: Path, tables: str) -> None:
    """Put `tables` between the two marks of a Markdown page; what was there goes. UserError without marks."""
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"the page {page.name} cannot be read: {error.strerror}") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"the page {page.name} has no place for the tables: write {BEGIN} and {END} into it")
    page.write_text(f"{before}{BEGIN}\n\n{tables.strip()}\n\n{END}{after}", encoding="utf-8", newline="\n")


def markdown(outcome: Outcome) -> str:
    """Tables for a README: encoders against the baseline, then the data sets one by one."""
    baseline = escaped(outcome.baseline)
    parts = [
        "## Evaluation",
        "In percent, ± half of the 95 % bootstrap interval over groups. "
        f"{MARKS['better']} better, {MARKS['worse']} worse, {MARKS['same']} not clearly different from "
        f"{baseline} on the same rows (paired, 95 %, not corrected for the number of figures); † does not "
        "clear chance; – is what an encoder cannot do. *Fitted* learns from training labels, the rest is "
        "zero-shot.",
        table(
            ["encoder", "figures compared", "better", "not clearly different", "worse", "ms a product"],
            [
                [
                    escaped(name), *(str(n) for n in (t.total(), t["better"], t["same"], t["worse"])),
                    "–" if (ms := outcome.milliseconds(name)) is None else f"{ms:.3g}",
                ]
                for name, t in outcome.tallies().items()
            ],
            left=1,
        ),
    ]  # fmt: skip
    for name in outcome.datasets:
        if rows := outcome.of(name):
            head, *lines = ([escaped(one) for one in line] for line in _lines(outcome, rows))
            parts += [f"### {escaped(name)}", table(head, lines, left=3)]
            if note := outcome.dataset(name).get("note"):
                parts.append(escaped(note, 1000))
    return "\n\n".join(parts) + "\n"


def _lines(outcome: Outcome, rows: Sequence[Row], constant: bool = False) -> list[list[str]]:
    """The head of a table of `rows`, and its lines; `constant` adds what the commonest label reaches."""
    more = ["constant"] * (constant and any(row.any.constant is not None for row in rows))
    lines = [["task", "shown", "by", "n / of", "chance", *more, *outcome.encoders]]
    for row in rows:
        one = row.any
        shares = ["" if x is None else percent(x) for x in (row.chance, one.constant)[: 1 + len(more)]]
        figures = [cell(row.results.get(name)) for name in outcome.encoders]
        lines.append([row.task, row.view, row.by, f"{one.n} / {one.corpus or '–'}", *shares, *figures])
    return lines


def cell(result: Result | None) -> str:
    """24.7 ±4.6 ▲, or – where there is no figure."""
    if result is None or result.value is None:
        return "–"
    text = percent(result.value)
    if result.low is not None and result.high is not None:
        text += f" ±{100 * (result.high - result.low) / 2:.1f}"
    return f"{text}{' †' if result.at_chance else ''} {MARKS[mark(result.versus)]}".rstrip()


def table_csv(outcome: Outcome) -> str:
    """Every figure, one a line, with the paired difference to the baseline where there is one."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    ends = {"low": "difference_low", "high": "difference_high"}
    writer.writerow([*FIELDS, *(ends.get(name, name) for name in AGAINST)])
    for result in (result for row in outcome.rows for result in row.results.values()):
        against = [getattr(result.versus, name, None) for name in AGAINST]
        writer.writerow([csv_field(value) for value in (*(getattr(result, f) for f in FIELDS), *against)])
    return file.getvalue()


# ---- on a terminal ---------------------------------------------------------------------------------------


def show(report: Report, console: Console) -> None:
    """A table a data set, a column an encoder; then cost, notes and errors."""
    outcome = Outcome(report)
    for name in outcome.datasets:
        about = outcome.dataset(name)
        if rows := outcome.of(name, rankings=2):
            console.print(grid(name, _lines(outcome, rows, constant=True), left=3))
        for task, reason in about.get("not_run", {}).items():
            console.print(f"not run: {escape(f'{task}: {reason}')}", highlight=False)
        console.print(f"[dim]{escape(about.get('note', ''))}[/dim]\n")
    costs = [["encoder", "encoded", "from cache", "seconds", "items/s", "tokens written"]]
    columns = ("encoded", "from_cache", "seconds", "items_per_second", "tokens")
    for one in report.encoders:
        kept = ("-" if (x := one.get(name)) is None else x for name in columns)
        costs.append([one["name"], *(f"{x:.1f}" if isinstance(x, float) else str(x) for x in kept)])
    console.print(grid("cost", costs, left=1))
    foot = FOOT if report.baseline is None else f"{FOOT} {COMPARED.format(report.baseline)}"
    console.print(f"[dim]{escape(foot)}[/dim]", highlight=False)
    for problem in report.problems[:10]:
        reason = escape(f"{problem.get('id') or ''} {problem['reason']}")
        told = "rejected" if problem.get("fatal", True) else "note"
        console.print(f"{told}: {reason}", highlight=False)
    ours = {encoder["name"] for encoder in report.encoders if encoder.get("ours")}
    if few := sum(result.too_few for result in report.results if result.encoder in ours):
        console.print(f"note: too few rows to say of {few} figures (†) whether they are above chance")
    for error in report.errors:
        console.print(f"[red]error: {escape(error)}[/red]", highlight=False)


def grid(title: str, lines: Sequence[Sequence[str]], left: int) -> Table:
    """Lines of text as a table of the terminal, the first `left` columns to the left."""
    found = Table(title=escape(title), title_justify="left", box=None, header_style="bold", pad_edge=False)
    for i, name in enumerate(lines[0]):
        found.add_column(escape(name.replace("moonshelf ", "")), justify="left" if i < left else "right")
    for line in lines[1:]:
        found.add_row(*map(escape, line))
    return found

"""The figures of a run as Markdown for a README and as CSV for a spreadsheet.

Both are for programs that trust what they read, so text from data goes through `plaintext` first. The CSV has
every figure with full precision; the Markdown has the first metric of each task, rounded.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from moonshelf.errors import UserError
from moonshelf.evaluation.contract import Result
from moonshelf.evaluation.report.outcome import MARKS, Outcome, Row, mark
from moonshelf.evaluation.report.page import percent
from moonshelf.plaintext import csv_field, escaped, table
from moonshelf.plaintext import shown as shown  # pages take it from here, with the rest

FIELDS = (
    "dataset", "task", "view", "method", "metric", "encoder", "value", "low", "high", "n", "clusters",
    "corpus", "chance", "constant", "note",
)  # fmt: skip
AGAINST = ("baseline", "difference", "difference_low", "difference_high", "p", "mcnemar")
BEGIN, END = "<!-- moonshelf evaluate: begin -->", "<!-- moonshelf evaluate: end -->"


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
                    escaped(t.encoder), str(t.compared), str(t.better), str(t.same), str(t.worse),
                    "–" if (ms := outcome.milliseconds(t.encoder)) is None else f"{ms:.3g}",
                ]
                for t in outcome.tallies()
            ],
            left=1,
        ),
    ]  # fmt: skip
    for name in outcome.datasets:
        rows = outcome.of(name)
        if rows:
            head = ["task", "shown", "by", "n / of", "chance", *map(escaped, outcome.encoders)]
            parts += [f"### {escaped(name)}", table(head, [_cells(outcome, row) for row in rows], left=3)]
            if note := outcome.dataset(name).get("note"):
                parts.append(escaped(note, 1000))
    return "\n\n".join(parts) + "\n"


def _cells(outcome: Outcome, row: Row) -> list[str]:
    one = row.any
    head = [escaped(row.task), escaped(row.view), escaped(row.by), f"{one.n} / {one.corpus or '–'}"]
    figures = [cell(row.results.get(name)) for name in outcome.encoders]
    return [*head, "" if row.chance is None else percent(row.chance), *figures]


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
    writer.writerow([*FIELDS, *AGAINST])
    for row in outcome.rows:
        for result in row.results.values():
            versus = result.versus
            against: Sequence[object] = [None] * len(AGAINST)
            if versus is not None:
                against = [
                    versus.baseline, versus.difference, versus.low, versus.high, versus.p, versus.mcnemar,
                ]  # fmt: skip
            writer.writerow([csv_field(value) for value in (*(getattr(result, f) for f in FIELDS), *against)])
    return file.getvalue()

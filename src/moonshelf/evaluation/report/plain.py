"""The figures of a run as tables: on a terminal, as Markdown for a README, as CSV for a spreadsheet.

All are for readers that trust what they read, so text from data is escaped or goes through `plaintext` first.
On a terminal the first two metrics of each ranking are shown, of anything else the first; the Markdown has
the first metric of each task, rounded; the CSV has every figure with full precision.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
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
from moonshelf.plaintext import shown as shown  # pages take it from here, with the rest

FIELDS = (
    "dataset", "task", "view", "method", "metric", "encoder", "value", "low", "high", "n", "clusters",
    "corpus", "chance", "constant", "note",
)  # fmt: skip
AGAINST = ("baseline", "difference", "difference_low", "difference_high", "p", "mcnemar")
BEGIN, END = "<!-- moonshelf evaluate: begin -->", "<!-- moonshelf evaluate: end -->"
FOOT = (
    "± is half of the 95 % bootstrap interval over groups; n/a: the encoder cannot do it; † the interval "
    "does not clear chance. R@k is the hit rate; ties count with their expectation. chance: random order or "
    "random label; constant: always the commonest training label. 'fitted' learns from training labels and "
    "is not zero-shot. More metrics are in the JSON."
)
COMPARED = (
    "▲ ▼ better or worse than {}: the paired 95 % interval leaves zero out, uncorrected, so 1 in 20 is luck."
)
ORDER = ("zero-shot classification", "rationale")  # methods of labelling that come first


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


# ---- on a terminal ---------------------------------------------------------------------------------------


def show(report: Report, console: Console) -> None:
    """One table a data set and kind of task, a column an encoder; then cost, notes and errors."""
    names = [encoder["name"] for encoder in report.encoders]
    outcome = Outcome(report)
    rows = outcome.rows if outcome.searched else _headlines(outcome.rows)
    for dataset in report.datasets:
        mine = [row for row in rows if row.dataset == dataset["name"]]
        if ranked := [row for row in mine if row.method == "ranking"]:
            console.print(_grid(f"{dataset['name']}: retrieval", ranked, names))
        if others := [row for row in mine if row.method != "ranking"]:
            others.sort(key=lambda row: ORDER.index(row.method) if row.method in ORDER else len(ORDER))
            console.print(_grid(f"{dataset['name']}: labels", others, names))
        for task, reason in dataset.get("not_run", {}).items():
            console.print(f"not run: {escape(f'{task}: {reason}')}", highlight=False)
        console.print(f"[dim]{escape(dataset['note'])}[/dim]\n")
    console.print(_costs(report))
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


def _headlines(rows: Sequence[Row]) -> list[Row]:
    """The first metrics of each method, task and view, where somebody could do it."""
    shown: Counter[tuple[str, ...]] = Counter()
    kept = []
    for row in rows:
        key = (row.dataset, row.task, row.view, row.method)
        shown[key] += 1
        if row.measured and shown[key] <= (2 if row.method == "ranking" else 1):
            kept.append(row)
    return kept


def _costs(report: Report) -> Table:
    table = Table(title="cost", title_justify="left", box=None, header_style="bold")
    for column in ("encoder", "encoded", "from cache", "seconds", "items/s", "tokens written", "peak MiB"):
        table.add_column(column, justify="left" if column == "encoder" else "right")
    for encoder in report.encoders:
        rate, tokens, peak = (encoder.get(name) for name in ("items_per_second", "tokens", "peak_mib"))
        table.add_row(
            escape(encoder["name"]), str(encoder["encoded"]), str(encoder["from_cache"]),
            f"{encoder['seconds']:.1f}", f"{rate:.1f}" if rate else "-",
            "-" if tokens is None else str(tokens), f"{peak:.0f}" if peak else "-",
        )  # fmt: skip
    return table


def _grid(title: str, rows: Sequence[Row], names: Sequence[str]) -> Table:
    ranking = rows[0].method == "ranking"
    table = Table(title=escape(title), title_justify="left", box=None, header_style="bold", pad_edge=False)
    left, right = ["task", "shown", "metric"], ["n", "of", "chance"]
    if not ranking:
        left, right = ["task", "shown", "by", "metric"], [*right, "constant"]
    for head in left:
        table.add_column(head)
    for head in right:
        table.add_column(head, justify="right")
    for name in names:
        table.add_column(name.replace("moonshelf ", ""), justify="right", no_wrap=True)
    for row in rows:
        one, how = row.any, [row.metric] if ranking else [row.method, row.metric]
        shares = [row.chance] if ranking else [row.chance, one.constant]
        cells = [escape(row.task), row.view, *how, str(one.n), str(one.corpus or "-")]
        cells += ["" if share is None else percent(share) for share in shares]
        table.add_row(*cells, *(_short(row.results.get(name)) for name in names))
    return table


def _short(result: Result | None) -> str:
    if result is None:
        return "-"
    if result.value is None or result.low is None or result.high is None:
        return percent(result.value)
    mark = "†" if result.at_chance else ""
    if result.versus is not None and result.versus.significant:
        mark += "▲" if result.versus.difference > 0 else "▼"
    return f"{percent(result.value)} ±{100 * (result.high - result.low) / 2:.1f}{mark}"

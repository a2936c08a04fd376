"""The figures of a run as tables for a terminal; the JSON holds them with full precision.

Of each ranking the first two metrics are shown, of anything else the first. Names and reasons may come from
a user's feed: they are never read as markup.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moonshelf.evaluation.contract import Result
from moonshelf.evaluation.record import Report
from moonshelf.evaluation.report.outcome import Outcome, Row
from moonshelf.evaluation.report.page import percent

FOOT = (
    "± is half of the 95 % bootstrap interval over groups; n/a: the encoder cannot do it; † the interval "
    "does not clear chance. R@k is the hit rate; ties count with their expectation. chance: random order or "
    "random label; constant: always the commonest training label. 'fitted' learns from training labels and "
    "is not zero-shot. More metrics are in the JSON."
)
MARKS = (
    "▲ ▼ better or worse than {}: the paired 95 % interval leaves zero out, uncorrected, so 1 in 20 is luck."
)
ORDER = ("zero-shot classification", "rationale")  # methods of labelling that come first


def show(report: Report, console: Console) -> None:
    """One table a data set and kind of task, a column an encoder; then cost, notes and errors."""
    names = [encoder["name"] for encoder in report.encoders]
    rows = _headlines(Outcome(report).rows)
    for dataset in report.datasets:
        mine = [row for row in rows if row.dataset == dataset["name"]]
        if ranked := [row for row in mine if row.method == "ranking"]:
            console.print(_table(f"{dataset['name']}: retrieval", ranked, names))
        if others := [row for row in mine if row.method != "ranking"]:
            others.sort(key=lambda row: ORDER.index(row.method) if row.method in ORDER else len(ORDER))
            console.print(_table(f"{dataset['name']}: labels", others, names))
        for task, reason in dataset.get("not_run", {}).items():
            console.print(f"not run: {escape(f'{task}: {reason}')}", highlight=False)
        console.print(f"[dim]{escape(dataset['note'])}[/dim]\n")
    console.print(_costs(report))
    foot = FOOT if report.baseline is None else f"{FOOT} {MARKS.format(report.baseline)}"
    console.print(f"[dim]{escape(foot)}[/dim]", highlight=False)
    for problem in report.problems[:10]:
        reason = escape(f"{problem.get('id') or ''} {problem['reason']}")
        console.print(f"set aside: {reason}", highlight=False)
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


def _table(title: str, rows: Sequence[Row], names: Sequence[str]) -> Table:
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
        table.add_row(*cells, *(_cell(row.results.get(name)) for name in names))
    return table


def _cell(result: Result | None) -> str:
    if result is None:
        return "-"
    if result.value is None or result.low is None or result.high is None:
        return percent(result.value)
    mark = "†" if result.at_chance else ""
    if result.versus is not None and result.versus.significant:
        mark += "▲" if result.versus.difference > 0 else "▼"
    return f"{percent(result.value)} ±{100 * (result.high - result.low) / 2:.1f}{mark}"

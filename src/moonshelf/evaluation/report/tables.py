"""The figures of a run as tables for a terminal; the JSON holds them with full precision.

Of each ranking the first two metrics are shown, of anything else the first. Names and reasons may come from
a user's feed: they are never read as markup.
"""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moonshelf.evaluation.record import Report
from moonshelf.evaluation.report.page import percent
from moonshelf.evaluation.tasks import Result

FOOT = (
    "± is half of the 95 % bootstrap interval over groups; n/a: the encoder cannot do it; † the interval "
    "does not clear chance. R@k is the hit rate; ties count with their expectation. chance: random order or "
    "random label; constant: always the commonest training label. 'fitted' learns from training labels and "
    "is not zero-shot. More metrics are in the JSON."
)
MARKS = (
    "▲ ▼ better or worse than {}: the paired 95 % interval leaves zero out, uncorrected, so 1 in 20 is luck."
)


def show(report: Report, console: Console) -> None:
    """One table a data set and kind of task, a column an encoder; then cost, notes and errors."""
    names = [encoder["name"] for encoder in report.encoders]
    for dataset in report.datasets:
        rows: dict[tuple[str, ...], dict[str, Result]] = {}
        for result in report.results:
            if result.dataset == dataset["name"]:
                key = (result.method, result.task, result.view, result.metric)
                rows.setdefault(key, {})[result.encoder] = result
        rows = _headlines(rows)
        for title, kept in (("retrieval", True), ("labels", False)):
            chosen = {
                key: found
                for key, found in rows.items()
                if (key[0] == "ranking") is kept and any(r.value is not None for r in found.values())
            }
            if chosen:
                console.print(_table(f"{dataset['name']}: {title}", chosen, names))
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


def _headlines(rows: dict[tuple[str, ...], dict[str, Result]]) -> dict[tuple[str, ...], dict[str, Result]]:
    """The first metrics of each method, task and view."""
    shown: Counter[tuple[str, ...]] = Counter()
    kept = {}
    for key, found in rows.items():
        shown[key[:3]] += 1
        if shown[key[:3]] <= (2 if key[0] == "ranking" else 1):
            kept[key] = found
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


def _table(title: str, rows: dict[tuple[str, ...], dict[str, Result]], names: list[str]) -> Table:
    ranking = title.endswith("retrieval")
    table = Table(title=escape(title), title_justify="left", box=None, header_style="bold", pad_edge=False)
    heads = ["task", "shown", *([] if ranking else ["by"]), "metric", "n", "of", "chance"]
    for head in heads if ranking else [*heads, "constant"]:
        table.add_column(head, justify="right" if head in ("n", "of", "chance", "constant") else "left")
    for name in names:
        table.add_column(name.replace("moonshelf ", ""), justify="right", no_wrap=True)
    order = {"zero-shot classification": 0, "rationale": 1}
    for key in sorted(rows, key=lambda k: order.get(k[0], 2)):
        method, task, view, metric = key
        found = rows[key]
        one = next((r for r in found.values() if r.value is not None), next(iter(found.values())))
        chance = next((r.chance for r in found.values() if r.chance is not None), None)
        how = [metric] if ranking else [method, metric]
        cells = [escape(task), view, *how, str(one.n), str(one.corpus or "-"), _share(chance)]
        if not ranking:
            cells.append(_share(one.constant))
        table.add_row(*cells, *(_cell(found.get(name)) for name in names))
    return table


def _cell(result: Result | None) -> str:
    if result is None:
        return "-"
    if result.value is None:
        return "n/a"
    if result.low is None or result.high is None:
        return percent(result.value)
    half = 100 * (result.high - result.low) / 2
    mark = "†" if result.at_chance else ""
    if result.versus is not None and result.versus.significant:
        mark += "▲" if result.versus.difference > 0 else "▼"
    return f"{percent(result.value)} ±{half:.1f}{mark}"


def _share(value: float | None) -> str:
    return "" if value is None else percent(value)

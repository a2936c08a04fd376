"""The report of `moonshelf check` on a terminal. Text from the feed is never read as markup."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from moonshelf.feeds.check import Reason, Report, Verdict

_WIDTH = 24
SHOWN = 20  # reasons
_EXPECTED = ("title", "description", "images", "category", "attributes", "price")  # shown even if empty
_LABELS = {"group_id": "group"}


@contextmanager
def counting(feed: str) -> Iterator[Callable[[int, float | None], None]]:
    """A progress bar on stderr, gone when done; nothing where stderr is not a terminal."""
    console = Console(stderr=True)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(_plain(feed, 40), total=None, rows=0)
        yield lambda rows, share: bar.update(
            task, rows=rows, completed=share or 0.0, total=1.0 if share else None
        )


def show(report: Report, *, as_json: bool = False, console: Console | None = None) -> None:
    """Prints what was read, how complete it is, and what is wrong, most serious first."""
    if as_json:
        print(json.dumps(report.as_dict(), ensure_ascii=False, indent=1))
        return
    console = console or Console()
    head = Text(report.feed, "bold")
    head.append(f"  {report.dialect}, {report.seconds:,.1f} s", "dim")
    console.print(head)
    read = (report.rows, "row", "rows", ""), (report.products, "product", "products", "")
    bad = (report.rejected, "rejected", "rejected", "red"), (report.warnings, "warning", "warnings", "yellow")
    console.print(_counts(*read, *bad))
    for text in report.notes:
        console.print(Text(f"Note: {_plain(text, 600)}"))
    if report.products:
        console.print(_coverage(report))
        empty = [
            _LABELS.get(name, name) for name, n in report.filled.items() if not n and name not in _EXPECTED
        ]
        if empty:
            console.print(Text(f"Never filled: {', '.join(empty)}", "dim"))
        shares = [
            f"{_plain(key, 24)} {_percent(n / report.products)}" for key, n in report.attributes.items()
        ]
        if shares:
            console.print(Text(f"Attributes: {', '.join(shares[:8])}"))
    for line in _summary(report):
        console.print(line)
    for item in report.duplicate_examples:
        rows = ", ".join(str(row) for row in item["rows"])
        console.print(Text(f"  {_plain(item['id'])}: rows {rows}"))
    if report.reasons:
        console.print(_reasons(report.reasons))
    if report.channel:
        _show_channel(console, report.channel)
    if report.rejects:
        console.print(Text(f"Every problem, one a line: {report.rejects}", "dim"))
    if report.untitled:
        text = "No product has a title: say which column holds it, such as --map title=COLUMN."
        console.print(Text(text, "red"))
    elif not report.rejected and not report.warnings and not report.channel:
        console.print(Text("Nothing is wrong.", "green"))


def _plain(text: str, limit: int = 90) -> str:
    text = "".join(c if c.isprintable() else "�" for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _counts(*given: tuple[int, str, str, str]) -> Text:
    """Numbers, each with the word for one, the word for several, and a style."""
    shown = [
        Text.assemble((f"{n:,} ", style if n else ""), (one if n == 1 else several, style if n else "dim"))
        for n, one, several, style in given
    ]
    return Text("   ").join(shown)


def _coverage(report: Report) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, filled in report.filled.items():
        if filled or name in _EXPECTED:
            share = filled / report.products
            bar = Text("█" * round(share * _WIDTH), "green" if share > 0.9 else "yellow")
            bar.append("░" * (_WIDTH - round(share * _WIDTH)), "dim")
            table.add_row(_LABELS.get(name, name), bar, Text(_percent(share), justify="right"))
    return table


def _percent(share: float) -> str:
    if 0 < share < 0.005:
        return "<1 %"
    return f"{min(99, round(100 * share)) if share < 1 else 100} %"


def _summary(report: Report) -> Iterator[Text]:
    """A line about pictures and one about identifiers, where there are any."""
    said = {"remote": "on the web, not fetched", "not_checked": "not decoded"}
    shown = [
        Text(f"{n:,} {said.get(key, key)}", "red" if key in ("missing", "broken") else "")
        for key, n in report.images.items()
        if n
    ]
    if shown:
        yield Text("Images ") + Text(", ").join(shown)
    parts = []
    if report.filled["gtin"] or report.gtin_bad:
        parts.append(f"GTINs: {report.filled['gtin']:,} right, {report.gtin_bad:,} wrong.")
    if report.duplicates:
        parts.append(f"Repeated ids: {report.duplicates:,}.")
    if parts:
        yield Text(" ".join(parts))


def _show_channel(console: Console, found: Verdict) -> None:
    """What a channel would do with the feed, and the pages that say so."""
    judged = "cells as they are written" if found.as_written else "what was read, not the cells"
    console.print(
        Text(f"\n{found.name}", "bold") + Text(f"  {found.spec}, {found.read}; judged: {judged}", "dim")
    )
    rejected = (found.rejected, "row would be rejected", "rows would be rejected", "red")
    console.print(_counts(rejected, (found.warned, "other with warnings", "others with warnings", "yellow")))
    if found.reasons:
        pages = list(dict.fromkeys(reason.source for reason in found.reasons[:SHOWN]))
        console.print(_reasons(found.reasons, pages))
        for number, page in enumerate(pages, 1):
            console.print(Text(f"[{number}] {page}", "dim"))


def _reasons(reasons: list[Reason], pages: Sequence[str] = ()) -> Table:
    """The commonest reasons; with `pages`, the number of the one that has the rule."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("", "count", "field", "reason", "rows", *(["rule"] if pages else [])):
        table.add_column(name, justify="right" if name == "count" else "left")
    for reason in reasons[:SHOWN]:
        text = reason.example if reason.count == 1 or pages else reason.kind
        rows = ", ".join(str(row) for row in reason.rows[:4]) + (", …" if reason.count > 4 else "")
        kind = Text("rejected", "red") if reason.fatal else Text("warning", "yellow")
        cells = Text(_plain(reason.field, 30)), Text(_plain(text, 120)), Text(_plain(rows))
        page = [Text(f"[{pages.index(reason.source) + 1}]", "dim")] if pages else []
        table.add_row(kind, f"{reason.count:,}", *cells, *page)
    return table

"""Plots of an evaluation as geometry: the template draws them as inline SVG, with no script.

A mark is told from another by its shape and its letter, a line by its dashes, never by colour alone; every
plot says in words what it shows and has its numbers in a table beside it. Marks and lines are values; an
`Axis` knows where these lie, in a view box small enough that text stays readable when a phone shrinks it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from moonshelf.evaluation.report.outcome import Outcome, Row
from moonshelf.evaluation.report.page import BOTTOM, LEFT, RIGHT, TOP, WIDTH, between, percent

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
DASHES = ("", "6 4", "2 3")


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` between two places of the page; both are logarithms where it is `log`."""

    label: str
    ticks: Sequence[tuple[float, str]]  # a value, and how it is written
    low: float
    high: float
    start: float = LEFT
    end: float = RIGHT
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies."""
        share = ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True)
class Mark:
    """A point; `low` and `high` are the ends of its interval."""

    x: float
    y: float
    shape: str
    letter: str = ""
    before: bool = False  # the letter stands left of the mark, because another mark is on its right
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    points: Sequence[tuple[float, float]]
    dash: str
    name: str = ""
    label: tuple[float, float] | None = None  # where the name stands on the page


@dataclass(frozen=True)
class Chart:
    """A drawing and the table of its numbers; `cells` are of (letter, shape, texts of the columns)."""

    title: str
    says: str
    x: Axis
    y: Axis
    marks: Sequence[Mark]
    columns: Sequence[str]
    cells: Sequence[tuple[str, str, Sequence[str]]]
    lines: Sequence[Line] = ()
    missing: Sequence[str] = field(default=())


def cost_charts(outcome: Outcome) -> list[Chart]:
    """Quality against time a product: for each data set its first ranking and its first labelling."""
    charts = []
    for dataset in outcome.datasets:
        for kind in ("ranking", "zero-shot classification"):
            row = outcome.widest(dataset, kind)
            if row and (chart := _cost(outcome, row)):
                charts.append(chart)
    return charts


def _cost(outcome: Outcome, row: Row) -> Chart | None:
    values = {name: value for name in outcome.encoders if (value := row.value(name)) is not None}
    costs = {name: cost for name in values if (cost := outcome.milliseconds(name)) is not None}
    if len(costs) < 2:
        return None
    ends = [v for name in costs for r in [row.results[name]] for v in (r.value, r.low, r.high)]
    x = _log_axis("milliseconds a product, logarithmic", list(costs.values()))
    y = share_axis(f"{row.metric}, %", [v for v in ends if v is not None])
    marks, cells = [], []
    for i, (name, cost) in enumerate(costs.items()):
        letter, shape, r = chr(ord("A") + i % 26), SHAPES[i % len(SHAPES)], row.results[name]
        px, py = x.at(cost), y.at(values[name])
        near = [x.at(c) - px for n, c in costs.items() if n != name and abs(y.at(values[n]) - py) < 20]
        before = px > WIDTH - 20 or any(0 <= gap < 26 for gap in near)
        marks.append(Mark(cost, values[name], shape, letter, before, r.low, r.high))
        cells.append((letter, shape, (name, f"{cost:.3g} ms", percent(r.value), between(r.low, r.high))))
    best, quick = max(costs, key=lambda name: values[name]), min(costs, key=lambda name: costs[name])
    return Chart(
        f"{row.dataset}: {row.task}, {row.view}",
        f"{row.metric} against time for one product, {len(costs)} encoders. The best is {best} with "
        f"{percent(values[best])} % at {costs[best]:.3g} ms, "
        f"the quickest {quick} with {costs[quick]:.3g} ms.",
        x, y, marks, ("encoder", "time", f"{row.metric}, %", "interval"), cells,
        missing=[name for name in values if name not in costs],
    )  # fmt: skip


def share_axis(label: str, values: Sequence[float]) -> Axis:
    """Upwards, with ticks in percent around `values`."""
    low, high = min(values), max(values)
    step = next(
        s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10**9) if (high - low) / s <= 4.5
    )
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    ticks = [(i * step, f"{100 * i * step:.3g}") for i in range(first, last + 1)]
    return Axis(label, ticks, first * step, last * step, BOTTOM, TOP)


def _log_axis(label: str, values: Sequence[float]) -> Axis:
    """Ticks at 1, 2 and 5 of each decade, fewer where there would be many."""
    low, high = math.log10(min(values)) - 0.15, math.log10(max(values)) + 0.15
    decades = range(math.floor(low), math.ceil(high) + 1)
    steps = [digit * 10.0**decade for decade in decades for digit in ((1, 2, 5) if high - low < 2 else (1,))]
    ticks = [(value, f"{value:g}") for value in steps if low <= math.log10(value) <= high]
    return Axis(label, ticks, low, high, log=True)

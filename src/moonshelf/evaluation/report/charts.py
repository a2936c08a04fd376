"""Plots of an evaluation as geometry: the template draws them as inline SVG, with no script.

A mark is told from another by its shape and its letter, a line by its dashes, never by colour alone; every
plot says in words what it shows and has its numbers in a table beside it. Coordinates are those of a view
box small enough that text stays readable when a phone shrinks the drawing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from moonshelf.evaluation.report.outcome import Outcome, Row
from moonshelf.evaluation.report.page import BOTTOM, LEFT, RIGHT, TOP, WIDTH, between, percent

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
DASHES = ("", "6 4", "2 3")
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A point; `low` and `high` are the ends of its interval on the page."""

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
    label: tuple[float, float] | None = None

    @property
    def path(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class Chart:
    """A drawing and the table of its numbers; `cells` are of (letter, shape, texts of the columns)."""

    title: str
    says: str
    x_label: str
    y_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    marks: Sequence[Mark]
    columns: Sequence[str]
    cells: Sequence[tuple[str, str, Sequence[str]]]
    lines: Sequence[Line] = ()
    rule: float | None = None  # x of a line from top to bottom
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
    known, missing = [], []
    for name in outcome.encoders:
        value, cost = row.value(name), outcome.milliseconds(name)
        if value is not None and cost is None:
            missing.append(name)
        elif value is not None and cost is not None:
            known.append((name, cost, row.results[name]))
    if len(known) < 2:
        return None
    x_ticks, x = _log([cost for _, cost, _ in known])
    ends = [v for _, _, r in known for v in (r.value, r.low, r.high) if v is not None]
    y_ticks, y = share_scale(ends)
    marks, cells = [], []
    for i, (name, cost, r) in enumerate(known):
        letter, shape = chr(ord("A") + i % 26), SHAPES[i % len(SHAPES)]
        assert r.value is not None
        px, py = x(cost), y(r.value)
        near = [x(c) - px for n, c, o in known if n != name and o.value and abs(y(o.value) - py) < 20]
        before = px > WIDTH - 20 or any(0 <= gap < 26 for gap in near)
        marks.append(Mark(px, py, shape, letter, before, at_end(y, r.low), at_end(y, r.high)))
        cells.append((letter, shape, (name, f"{cost:.3g} ms", percent(r.value), between(r.low, r.high))))
    best = max(known, key=lambda one: one[2].value or 0.0)
    quick = min(known, key=lambda one: one[1])
    return Chart(
        f"{row.dataset}: {row.task}, {row.view}",
        f"{row.metric} against time for one product, {len(known)} encoders. The best is {best[0]} with "
        f"{percent(best[2].value)} % at {best[1]:.3g} ms, the quickest {quick[0]} with {quick[1]:.3g} ms.",
        "milliseconds a product, logarithmic",
        f"{row.metric}, %",
        x_ticks,
        y_ticks,
        marks,
        ("encoder", "time", f"{row.metric}, %", "interval"),
        cells,
        missing=missing,
    )


def share_scale(values: Sequence[float]) -> tuple[list[Tick], Scale]:
    """Ticks in percent around `values`, and the function from a value to the page."""
    low, high = min(values), max(values)
    step = next(
        s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10**9) if (high - low) / s <= 4.5
    )
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)

    def at(value: float) -> float:
        return BOTTOM - (value / step - first) / (last - first) * (BOTTOM - TOP)

    return [Tick(at(i * step), f"{100 * i * step:.3g}") for i in range(first, last + 1)], at


def _log(values: Sequence[float]) -> tuple[list[Tick], Scale]:
    """Ticks at 1, 2 and 5 of each decade, fewer where there would be many."""
    low, high = math.log10(min(values)) - 0.15, math.log10(max(values)) + 0.15

    def at(value: float) -> float:
        return LEFT + (math.log10(value) - low) / (high - low) * (RIGHT - LEFT)

    steps = (1, 2, 5) if high - low < 2 else (1,)
    found = [
        digit * 10.0**decade
        for decade in range(math.floor(low), math.ceil(high) + 1)
        for digit in steps
        if low <= math.log10(digit * 10.0**decade) <= high
    ]
    return [Tick(at(value), f"{value:g}") for value in found], at


def at_end(scale: Scale, value: float | None) -> float | None:
    return None if value is None else scale(value)

"""Plots of an evaluation as geometry: the template draws them as inline SVG, with no script.

A mark is told from another by its shape and its letter, a line by its dashes, never by colour alone; every
plot says in words what it shows and has its numbers in a table beside it. Coordinates are those of a view
box small enough that text stays readable when a phone shrinks the drawing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from moonshelf.evaluation.calibration import AutoPoint
from moonshelf.evaluation.compression import PRECISIONS, CurvePoint
from moonshelf.evaluation.report.outcome import Outcome, Row

WIDTH, HEIGHT = 340, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 332, 12, 206
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
DASHES = ("", "6 4", "2 3")
METHODS = {"ranking": 0, "zero-shot classification": 1}  # whose thresholds come first
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
        rows = [r for r in outcome.main_rows if r.dataset == dataset and not r.fitted]
        for kind in ("ranking", "zero-shot classification"):
            row = max(
                (r for r in rows if r.method == kind),
                key=lambda r: sum(x.value is not None for x in r.results.values()),
                default=None,
            )
            chart = _cost(outcome, row) if row else None
            if chart:
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


def curve_charts(points: Sequence[CurvePoint]) -> list[Chart]:
    """Quality, by a task's first metric, against bytes of a vector: a plot an encoder and task."""
    groups: dict[tuple[str, ...], list[CurvePoint]] = {}
    for p in points:
        group = groups.setdefault((p.encoder, p.dataset, p.task, p.view), [])
        if not group or group[0].metric == p.metric:
            group.append(p)
    return [_curve(group) for group in groups.values() if len(group) > 1]


def _curve(points: Sequence[CurvePoint]) -> Chart:
    one = points[0]
    x_ticks, x = _doubling([p.bytes for p in points])
    y_ticks, y = share_scale([v for p in points for v in (p.value, p.low, p.high) if v is not None])
    marks, lines, cells = [], [], []
    for i, precision in enumerate(dict.fromkeys((*PRECISIONS, *(p.precision for p in points)))):
        found = sorted((p for p in points if p.precision == precision), key=lambda p: -p.dims)
        if not found:
            continue
        shape = SHAPES[i % len(SHAPES)]
        at = [(x(p.bytes), y(p.value)) for p in found]
        middle = len(found) // 2
        top = found[middle].high
        label = (
            min(max(at[middle][0], LEFT + 24), RIGHT - 24),
            max(TOP + 8, (at[middle][1] if top is None else y(top)) - 6),
        )
        lines.append(Line(at, DASHES[i % len(DASHES)], precision, label))
        for p, (px, py) in zip(found, at, strict=True):
            marks.append(Mark(px, py, shape, low=at_end(y, p.low), high=at_end(y, p.high)))
            texts = (precision, str(p.dims), f"{p.bytes:,}", percent(p.value), between(p.low, p.high))
            cells.append(("", shape, texts))
    whole = max(points, key=lambda p: p.bytes)
    small = min(points, key=lambda p: p.bytes)
    return Chart(
        f"{one.encoder}: {one.dataset}, {one.task}, {one.view}",
        f"{one.metric} against the size of a vector. {percent(whole.value)} % with {whole.bytes:,} bytes "
        f"({whole.dims} numbers, {whole.precision}), {percent(small.value)} % with {small.bytes:,} bytes "
        f"({small.dims} numbers, {small.precision}).",
        "bytes a vector, logarithmic",
        f"{one.metric}, %",
        x_ticks,
        y_ticks,
        marks,
        ("precision", "numbers", "bytes", f"{one.metric}, %", "interval"),
        cells,
        lines,
    )


def auto_charts(points: Sequence[AutoPoint]) -> list[Chart]:
    """Quality, by a task's first metric, against the share of products that reason."""
    groups: dict[tuple[str, ...], list[AutoPoint]] = {}
    for p in points:
        group = groups.setdefault((p.encoder, p.reasoned, p.dataset, p.task, p.view, p.method), [])
        if not group or group[0].metric == p.metric:
            group.append(p)
    found = sorted(groups.values(), key=lambda group: METHODS.get(group[0].method, len(METHODS)))
    return [_auto(sorted(group, key=lambda p: p.threshold)) for group in found if len(group) > 1]


def _auto(points: Sequence[AutoPoint]) -> Chart:
    one = points[0]
    y_ticks, y = share_scale([v for p in points for v in (p.value, p.low, p.high) if v is not None])

    def x(share: float) -> float:
        return LEFT + 12 + share * (RIGHT - LEFT - 24)

    default = next((p for p in points if p.default), None)
    marks, cells = [], []
    for p in points:
        shape = "diamond" if p.default else "circle"
        marks.append(Mark(x(p.share), y(p.value), shape, low=at_end(y, p.low), high=at_end(y, p.high)))
        threshold = f"{p.threshold:.4f}" + (" (the engine’s)" if p.default else "")
        cells.append(("", shape, (threshold, percent(p.share), percent(p.value), between(p.low, p.high))))
    best = max(points, key=lambda p: (p.value, -p.share))
    says = (
        f"{one.metric} against the share of products that reason. It is best, {percent(best.value)} %, where "
        f"{percent(best.share)} % reason"
    )
    if default:
        says += (
            f"; at the engine’s threshold of {default.threshold:.2f}, {percent(default.share)} % reason "
            f"and it is {percent(default.value)} %"
        )
    method = "" if one.method == "ranking" else f", {one.method}"
    return Chart(
        f"{one.dataset}: {one.task}, {one.view}{method}",
        says + ".",
        "share of products that reason, %",
        f"{one.metric}, %",
        [Tick(x(share / 100), str(share)) for share in (0, 25, 50, 75, 100)],
        y_ticks,
        sorted(marks, key=lambda m: m.shape == "diamond"),  # drawn last, over its neighbours
        ("margin below", "reason, %", f"{one.metric}, %", "interval"),
        cells,
        [Line([(x(p.share), y(p.value)) for p in points], "")],
        rule=x(default.share) if default else None,
    )


def percent(value: float | None) -> str:
    """A share as a number of percent with one decimal, as the tables of an evaluation give it."""
    return "n/a" if value is None else f"{100 * value:.1f}"


def between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{percent(low)} to {percent(high)}"


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


def _doubling(values: Sequence[int]) -> tuple[list[Tick], Scale]:
    low, high = math.log2(min(values)) - 0.4, math.log2(max(values)) + 0.4

    def at(value: float) -> float:
        return LEFT + (math.log2(value) - low) / (high - low) * (RIGHT - LEFT)

    exponents = [i for i in range(math.ceil(low), math.floor(high) + 1)]
    every = max(1, math.ceil(len(exponents) / 6))
    return [Tick(at(2**i), f"{2**i:,}") for i in exponents[::every]], at


def at_end(scale: Scale, value: float | None) -> float | None:
    return None if value is None else scale(value)

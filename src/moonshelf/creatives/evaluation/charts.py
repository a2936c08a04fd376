"""Plots of selectors: what is said against what is true, and what abstaining buys."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from moonshelf.creatives.evaluation.record import Curve
from moonshelf.evaluation.report.charts import DASHES, SHAPES, Chart, Line, Mark, Tick, at_end, share_scale
from moonshelf.evaluation.report.page import LEFT, RIGHT, TOP, between, percent


def reliability_chart(curve: Curve) -> Chart:
    """What is said against what is true of the favoured creative; on the dashed line the two agree."""
    ends = [v for b in curve.bins for v in (b.said, b.truth, b.low, b.high) if v is not None]
    y_ticks, y = share_scale([*ends, 0.5, 1.0])
    x_ticks = [Tick(_half(share), f"{100 * share:.0f}") for share in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]
    marks = [
        Mark(_half(b.said), y(b.truth), "circle", low=at_end(y, b.low), high=at_end(y, b.high))
        for b in curve.bins
    ]
    cells = [
        ("", "circle", (percent(b.said), percent(b.truth), between(b.low, b.high), f"{b.n:,}"))
        for b in curve.bins
    ]
    far = max(curve.bins, key=lambda b: abs(b.said - b.truth))
    return Chart(
        f"{curve.backend}: is it as often right as it says?",
        f"{curve.part.capitalize()}, {sum(b.n for b in curve.bins):,}, in {len(curve.bins)} like bins. "
        f"Where it is furthest off it says {percent(far.said)} % and {percent(far.truth)} % is true. "
        "Below the dashed line it is too sure of itself.",
        "said: probability of the favoured creative, %",
        "true, %",
        x_ticks,
        y_ticks,
        marks,
        ("said, %", "true, %", "interval", "pairs"),
        cells,
        [Line([(_half(0.5), y(0.5)), (_half(1.0), y(1.0))], DASHES[1])],
    )


def risk_chart(curves: Sequence[Curve]) -> Chart:
    """Share of mistakes against the share of pairs that are decided, surest first; at most three backends."""
    shown = [curve for curve in curves if curve.risk][: len(DASHES)]
    y_ticks, y = share_scale([0.0, *(risk for curve in shown for at, risk in curve.risk if at >= 0.05)])

    def x(share: float) -> float:
        return LEFT + 12 + share * (RIGHT - LEFT - 24)

    lines, cells = [], []
    for i, curve in enumerate(shown):
        # below a twentieth of the pairs a single mistake moves the curve off the page; the surest pairs are
        # in a random order where they are equally sure, so the line begins level
        kept = [one for one in curve.risk if one[0] >= 0.05]
        points = [(x(at), y(risk)) for at, risk in [(0.05, kept[0][1]), *kept]]
        name, place = chr(ord("A") + i), 0.4 + 0.25 * i  # the letters stand apart where the lines meet
        left, right = next(two for two in pairwise(points) if two[1][0] >= x(place))
        level = min(left[1], right[1])
        lines.append(Line(points, DASHES[i], name, (x(place), max(TOP + 8, level - 6))))
        reached = [_risk(curve, c) for c in (0.5, 0.7, 0.9, 1.0)]
        cells.append((name, SHAPES[i], (curve.backend, *map(percent, reached))))
    first = shown[0]
    half = _risk(first, 0.5)
    return Chart(
        "What abstaining buys",
        f"Mistakes among the surest pairs, {first.part}. {first.backend} is wrong in "
        f"{percent(first.risk[-1][1])} % of all and in {percent(half)} % of the surer half.",
        "decided, surest first, %",
        "wrong, %",
        [Tick(x(share / 100), str(share)) for share in (0, 25, 50, 75, 100)],
        y_ticks,
        (),
        ("wrong, %, of the surest", "50 %", "70 %", "90 %", "all"),
        cells,
        lines,
    )


def _risk(curve: Curve, coverage: float) -> float:
    """Share of mistakes at the point nearest to a coverage."""
    return min(curve.risk, key=lambda one: abs(one[0] - coverage))[1]


def _half(share: float) -> float:
    """Where a probability of 0.5 … 1 lies across the page."""
    return LEFT + 6 + (share - 0.5) * 2 * (RIGHT - LEFT - 12)

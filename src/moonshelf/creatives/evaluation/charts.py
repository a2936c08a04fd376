"""Plots of selectors: what is said against what is true, and what abstaining buys."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from moonshelf.creatives.evaluation.record import Curve
from moonshelf.evaluation.report.charts import DASHES, SHAPES, Axis, Chart, Line, Mark, share_axis
from moonshelf.evaluation.report.page import LEFT, RIGHT, TOP, between, percent


def reliability_chart(curve: Curve) -> Chart:
    """What is said against what is true of the favoured creative; on the dashed line the two agree."""
    ends = [v for b in curve.bins for v in (b.said, b.truth, b.low, b.high) if v is not None]
    ticks = [(share, f"{100 * share:.0f}") for share in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]
    far = max(curve.bins, key=lambda b: abs(b.said - b.truth))
    return Chart(
        f"{curve.backend}: is it as often right as it says?",
        f"{curve.part.capitalize()}, {sum(b.n for b in curve.bins):,}, in {len(curve.bins)} like bins. "
        f"Where it is furthest off it says {percent(far.said)} % and {percent(far.truth)} % is true. "
        "Below the dashed line it is too sure of itself.",
        Axis("said: probability of the favoured creative, %", ticks, 0.5, 1.0, LEFT + 6, RIGHT - 6),
        share_axis("true, %", [*ends, 0.5, 1.0]),
        [Mark(b.said, b.truth, "circle", low=b.low, high=b.high) for b in curve.bins],
        ("said, %", "true, %", "interval", "pairs"),
        [
            ("", "circle", (percent(b.said), percent(b.truth), between(b.low, b.high), f"{b.n:,}"))
            for b in curve.bins
        ],
        [Line([(0.5, 0.5), (1.0, 1.0)], DASHES[1])],
    )


def risk_chart(curves: Sequence[Curve]) -> Chart:
    """Share of mistakes against the share of pairs that are decided, surest first; at most three backends."""
    shown = [curve for curve in curves if curve.risk][: len(DASHES)]
    risks = (risk for curve in shown for at, risk in curve.risk if at >= 0.05)
    ticks = [(share, f"{100 * share:.0f}") for share in (0, 0.25, 0.5, 0.75, 1)]
    x = Axis("decided, surest first, %", ticks, 0, 1, LEFT + 12, RIGHT - 12)
    y = share_axis("wrong, %", [0.0, *risks])
    lines, cells = [], []
    for i, curve in enumerate(shown):
        # below a twentieth of the pairs a single mistake moves the curve off the page; the surest pairs are
        # in a random order where they are equally sure, so the line begins level
        kept = [one for one in curve.risk if one[0] >= 0.05]
        points = [(0.05, kept[0][1]), *kept]
        name, place = chr(ord("A") + i), 0.4 + 0.25 * i  # the letters stand apart where the lines meet
        left, right = next(two for two in pairwise(points) if two[1][0] >= place)
        level = min(y.at(left[1]), y.at(right[1]))
        lines.append(Line(points, DASHES[i], name, (x.at(place), max(TOP + 8, level - 6))))
        reached = [_risk(curve, c) for c in (0.5, 0.7, 0.9, 1.0)]
        cells.append((name, SHAPES[i], (curve.backend, *map(percent, reached))))
    first = shown[0]
    half = _risk(first, 0.5)
    return Chart(
        "What abstaining buys",
        f"Mistakes among the surest pairs, {first.part}. {first.backend} is wrong in "
        f"{percent(first.risk[-1][1])} % of all and in {percent(half)} % of the surer half.",
        x, y, (), ("wrong, %, of the surest", "50 %", "70 %", "90 %", "all"), cells, lines,
    )  # fmt: skip


def _risk(curve: Curve, coverage: float) -> float:
    """Share of mistakes at the point nearest to a coverage."""
    return min(curve.risk, key=lambda one: abs(one[0] - coverage))[1]

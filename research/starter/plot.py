"""The curves of a run as one SVG: `python -m research.starter.plot FOLDER`.

Small multiples over the steps, one for each kind of figure in the log, lines labelled where they end. Drawn
by hand, because matplotlib and what it needs are 60 MB for one picture at the end of a run; an SVG opens in
any browser and its text stays text. Where a line has many points, they are faint and a running mean is drawn
over them. Figures that belong to no panel (seconds, memory) stay in the log.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from moonshelf.errors import UserError

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """Figures whose names match `names` share a panel; `low`, `high` bound its axis, where they are known."""

    title: str
    names: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    smooth: bool = True


PANELS = (
    Panel(
        "Contrastive loss",
        r"title|phrase|synthetic|text|query|pair|cross|loss/contrastive",
        low=0,
    ),
    Panel("Loss", r"loss|total|policy|contrast|loss/(total|grpo|kl)|kl"),
    Panel("Rationale, loss per token", r"sft", low=0),
    Panel("Held-out retrieval", r".*R@\d+|score", 0, 1),
    Panel("Held-out rationales", r"written .*|valid", 0, 1),
    Panel("Rewards", r"reward|rewards?/.*"),
    Panel("Shares", r"zero_spread_groups|format_only|rationale/(closed|diversity)", 0, 1),
    Panel("Rationale, tokens", r"rationale/length", low=0),
    Panel("Gradient norm", r"norm|grad_norm|gradient/(?!cosine).*", log=True),
    Panel("Cosine of the two gradients", r"gradient/cosine", -1, 1),
    Panel("Entropy", r"entropy", low=0),
    Panel("Inverse temperature", r"scale", low=0),
    Panel("Learning rate", r"lr|learning_rate", low=0, smooth=False),
    Panel("Tokens per second", r"(.*/)?tokens_per_second", low=0),
)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b3468b", "#8a6d00", "#3a8fc2", "#555555")  # after Okabe and Ito
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 540, 240, 58, 168, 42, 34  # of a panel, and its margins
LINE = 15  # between labels
MANY = 40  # points from which a running mean is drawn


def plot(log: Path, out: Path | None = None) -> Path:
    """Draw the log of a run; returns the picture, `curves.svg` beside the log unless `out` is given.

    Raises `UserError` if there is no log or no figure in it.
    """
    try:
        records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{log} cannot be read as the log of a run: {error}") from None
    series = _series(records)
    panels = [
        (panel, found)
        for panel in PANELS
        if (found := {k: v for k, v in series.items() if re.fullmatch(panel.names, k)})
    ]
    if not panels:
        raise UserError(f"{log} holds no figure to draw: has the run done a step?")
    last = max(x for _, found in panels for points in found.values() for x, _ in points)
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = columns * WIDTH, rows * HEIGHT + 44
    body = "".join(
        f'<g transform="translate({i % columns * WIDTH},{i // columns * HEIGHT + 44})">'
        f"{_draw(panel, found, last)}</g>"
        for i, (panel, found) in enumerate(panels)
    )
    name = escape(log.resolve().parent.name)
    out = out or log.with_name("curves.svg")
    out.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="system-ui, Arial, sans-serif" font-size="12">'
        f'<title>Curves of {name}</title><rect width="{width}" height="{height}" fill="#fff"/>'
        f'<text x="16" y="28" font-size="16" font-weight="600" fill="#222">{name}'
        f'<tspan font-weight="400" fill="#666">  {last:,.0f} steps</tspan></text>{body}</svg>\n',
        encoding="utf-8",
    )
    return out


def _series(records: Sequence[dict[str, Any]]) -> dict[str, Points]:
    """(step, value) of every finite number in the log, in the order of the steps."""
    series: dict[str, Points] = {}
    for record in records:
        for key, value in record.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if key != "step" and number and "step" in record:
                series.setdefault(key, []).append((record["step"], float(value)))
    return {key: sorted(points) for key, points in series.items()}


def _draw(panel: Panel, found: dict[str, Points], last: float) -> str:
    """One panel: title, axes, lines, and their names where they end."""
    values = [y for points in found.values() for _, y in points if not panel.log or y > 0]
    if not values:
        return ""
    ticks = _log_ticks(values) if panel.log else _ticks(_low(panel, values), _high(panel, values))
    first, top = (math.log10(ticks[0]), math.log10(ticks[-1])) if panel.log else (ticks[0], ticks[-1])
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(step: float) -> float:
        return LEFT + (right - LEFT) * step / max(last, 1)

    def y(value: float) -> float:
        place = math.log10(max(value, ticks[0])) if panel.log else value
        return floor - (floor - TOP) * (place - first) / (top - first)

    parts = [
        f'<text x="{LEFT}" y="{TOP - 14}" font-size="13" font-weight="600" fill="#222">{panel.title}</text>'
    ]
    for tick in ticks:
        at = y(tick)
        colour = "#999" if tick == ticks[0] else "#e4e4e4"
        parts.append(
            f'<path d="M{LEFT} {at:.1f}H{right}" stroke="{colour}"/>'
            f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end" fill="#666">{_number(tick)}</text>'
        )
    steps = [tick for tick in _ticks(0, last, 5) if tick <= last]
    for tick in steps:
        word = ("step " if tick == 0 else "") + _number(tick)
        parts.append(
            f'<text x="{x(tick):.1f}" y="{floor + 18}" text-anchor="middle" fill="#666">{word}</text>'
        )
    means = {name: _mean(points) if panel.smooth else points for name, points in found.items()}
    # The largest last value first, so that the labels stand in the order of the lines.
    order = sorted(means.items(), key=lambda entry: -entry[1][-1][1])
    labels = _spread([y(mean[-1][1]) for _, mean in order], TOP, floor)
    for i, ((name, mean), label) in enumerate(zip(order, labels, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        if mean is not found[name]:
            parts.append(_line(found[name], x, y, colour, 'stroke-width="1" opacity="0.28"'))
        parts.append(_line(mean, x, y, colour, 'stroke-width="2"'))
        end = x(mean[-1][0]), y(mean[-1][1])
        parts.append(
            f'<circle cx="{end[0]:.1f}" cy="{end[1]:.1f}" r="2.5" fill="{colour}"/>'
            f'<path d="M{end[0] + 4:.1f} {end[1]:.1f}L{right + 10} {label:.1f}" stroke="{colour}" '
            'opacity="0.5"/>'
            f'<text x="{right + 14}" y="{label + 4:.1f}" fill="{colour}">{escape(_short(name))}'
            f'<tspan fill="#444"> {_number(mean[-1][1])}</tspan></text>'
        )
    return "".join(parts)


def _line(points: Points, x: Any, y: Any, colour: str, style: str) -> str:
    path = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
    return f'<path d="M{path}" fill="none" stroke="{colour}" stroke-linejoin="round" {style}/>'


def _mean(points: Points) -> Points:
    """Mean over a twentieth of the points around each, where there are many."""
    if len(points) < MANY:
        return points
    half = len(points) // 40
    return [
        (step, sum(v for _, v in near) / len(near))
        for i, (step, _) in enumerate(points)
        for near in [points[max(0, i - half) : i + half + 1]]
    ]


def _spread(places: list[float], low: float, high: float) -> list[float]:
    """Label heights, `LINE` apart and as near to falling `places` as that allows."""
    placed: list[float] = []
    for place in places:
        placed.append(max(place, placed[-1] + LINE) if placed else max(place, low))
    beyond = high
    for i in range(len(placed) - 1, -1, -1):
        placed[i] = min(placed[i], beyond)
        beyond = placed[i] - LINE
    return placed


def _low(panel: Panel, values: list[float]) -> float:
    return min(values) if panel.low is None else min(panel.low, min(values))


def _high(panel: Panel, values: list[float]) -> float:
    """Shares keep their whole scale only when they use it."""
    top = max(values)
    return top if panel.high is None or top < panel.high / 2 else max(panel.high, top)


def _ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from at most `low` to at least `high`."""
    span = max(high - low, abs(high) * 1e-6, 1e-9)  # a line that does not move still has a scale
    power = 10 ** math.floor(math.log10(span / about))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power * about >= span * 0.999)
    first, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, max(end, first + 1) + 1)]


def _log_ticks(values: list[float]) -> list[float]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**i for i in range(low, max(high, low + 1) + 1)]


def _number(value: float) -> str:
    """At most three significant digits, without zeros that say nothing."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e7):
        mantissa, power = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _short(name: str) -> str:
    """Names without what the panel's title says already."""
    name = re.sub(r"^(rewards?|gradient|rationale|loss|rollouts)/|title->photo ", "", name).replace("_", " ")
    return name if len(name) <= 20 else name[:19] + "…"


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m research.starter.plot FOLDER (or its log.jsonl)")
    path = Path(sys.argv[1])
    try:
        print(plot(path / "log.jsonl" if path.is_dir() else path))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()

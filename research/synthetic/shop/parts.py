"""What several shapes share: tints of a colour, the fall of cloth, ribs, buttons, zips."""

# Outlines are tables of points: one point a line would hide their shape.
# fmt: off
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from research.synthetic.shop.draw import RGB, Array, Canvas, Point, ellipse, noise, rounded
from research.synthetic.shop.spec import Spec
from research.synthetic.shop.surface import Surface, paint

BRASS: RGB = (0.86, 0.72, 0.40)
STEEL: RGB = (0.80, 0.81, 0.83)
Crease = tuple[float, float, float, float, float, float]  # x0 y0 x1 y1, half width, depth


def darker(rgb: RGB, by: float = 0.6) -> RGB:
    return rgb[0] * by, rgb[1] * by, rgb[2] * by


def lighter(rgb: RGB, by: float = 0.4) -> RGB:
    return rgb[0] + (1 - rgb[0]) * by, rgb[1] + (1 - rgb[1]) * by, rgb[2] + (1 - rgb[2]) * by


def thread(rgb: RGB) -> RGB:
    """A seam that shows on the colour: darker on light cloth, lighter on dark."""
    return darker(rgb, 0.72) if sum(rgb) > 0.9 else lighter(rgb, 0.28)


def surface_of(s: Spec, scale: float = 1.0, direction: str = "across",
               material: str | None = None) -> Surface:
    """What the product is covered with, by its attributes."""
    rgb = s.rgb
    if s["material"] == "denim" and sum(rgb) < 2.2:  # indigo never is a pure blue
        rgb = 0.76 * rgb[0] + 0.082, 0.76 * rgb[1] + 0.098, 0.76 * rgb[2] + 0.12
    return Surface(material or s["material"], rgb, s.attributes.get("pattern", "solid"), s.rgb2, scale,
                   direction, s.style % 4)


def drape(c: Canvas, seed: int, amount: float, creases: Sequence[Crease] = ()) -> Array:
    """Height of cloth: slow waves, mostly downwards, and the given creases on both sides of x = 0.5."""
    waves = noise(seed % 7, c.size, 7, 3) * (amount * 0.013)
    rng = np.random.default_rng(seed)
    for x0, y0, x1, y1, width, depth in creases:
        for side in (1, -1):
            ax, bx = (0.5 + side * (x - 0.5) for x in (x0, x1))
            bx, y1, depth = (bx + rng.uniform(-0.04, 0.04), y1 + rng.uniform(-0.04, 0.04),
                             depth * rng.uniform(0.3, 1.0))
            dx, dy = bx - ax, y1 - y0
            t = np.clip(((c.u - ax) * dx + (c.v - y0) * dy) / (dx * dx + dy * dy), 0, 1)
            far = (c.u - ax - t * dx) ** 2 + (c.v - y0 - t * dy) ** 2
            waves = waves + np.exp(-far / (1.7 * width * width)) * (1 - 0.85 * t) * depth * amount
    return waves.astype(np.float32)


def ribs(c: Canvas, mask: Array, skin: Surface, turn: float) -> None:
    a = math.radians(turn)
    across = c.u * math.cos(a) + c.v * math.sin(a)
    period = max(0.014, 3.2 / (c.size * c.zoom))
    paint(c, mask, skin.plain(material="cotton"), "thin", volume=0.6,
          bump=(np.abs(np.sin(across / period * math.pi)) * 0.006).astype(np.float32), contact=0.12)


def buttons(c: Canvas, rgb: RGB, points: Sequence[Point], radius: float = 0.011) -> None:
    discs = [ellipse(x, y, radius, radius) for x, y in points]
    paint(c, c.mask(*discs), Surface("plastic", rgb), "thin", volume=0.8, contact=0.5)
    holes = [ellipse(x + dx, y, 0.0022, 0.0022) for x, y in points for dx in (-0.0035, 0.0035)]
    c.ink(darker(rgb, 0.4), *holes, opacity=0.8)


def zipper(c: Canvas, cloth: RGB, line: list[Point], pull: Point) -> None:
    c.line(darker(cloth, 0.5), line, 0.022, 0.95)
    c.line(STEEL, line, 0.009, 1.0, 0.012)
    x, y = pull
    paint(c, c.mask(rounded(x - 0.009, y - 0.004, x + 0.009, y + 0.05, 0.007)), Surface("metal", STEEL),
          contact=0.5)

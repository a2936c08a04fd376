"""Trousers, jeans, shorts and skirts: two legs or one cone under a waistband. Product units, see `draw`."""

# Outlines are tables of points: one point a line would hide their shape.
# fmt: off
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from research.synthetic.shop.draw import RGB, Array, Canvas, mirror, noise, outline, rounded, smooth
from research.synthetic.shop.parts import Crease, buttons, darker, drape, lighter, ribs, surface_of, thread
from research.synthetic.shop.spec import Spec
from research.synthetic.shop.surface import Surface, paint


def waistband(c: Canvas, skin: Surface, half: float, y: float, depth: float, seam: RGB, loops: bool,
              within: Array) -> None:
    mask = c.mask(rounded(0.5 - half - 0.03, y - 0.01, 0.5 + half + 0.03, y + depth, 0.004)) * within
    paint(c, mask, skin.plain(), "thin", volume=0.6, contact=0.3)
    c.line(seam, [(0.5 - half, y + depth - 0.006), (0.5 + half, y + depth - 0.006)], 0.003, 0.8, within=mask)
    if loops:
        bars = [rounded(0.5 + x - 0.007, y - 0.006, 0.5 + x + 0.007, y + depth + 0.006,
                        0.003) for x in (-half * 0.62, half * 0.62)]
        paint(c, c.mask(*bars), skin.plain(), "thin", contact=0.35)


def legs(c: Canvas, s: Spec, back: bool, *, waist: float, top: float, hem: float, knee: float, ankle: float,
         gap: float) -> list[Array]:
    """Two trouser legs that overlap at the crotch; returns their masks (left, right)."""
    skin = surface_of(s, 0.75 if s["material"] == "wool" else 0.9, "down")
    crotch = top + 0.27
    masks = []
    creases: list[Crease] = [(0.53, crotch - 0.02, 0.62, crotch + 0.03, 0.011, 0.009),
                             (0.52, crotch, 0.60, crotch - 0.09, 0.012, 0.008),
                             (0.60, (crotch + hem) / 2, 0.55, (crotch + hem) / 2 + 0.03, 0.012, 0.006)]
    waves = drape(c, s.style, 1.1, creases)
    for side in (-1, 1):
        points = [
            (0.5 - side * 0.012, top, 1),
            (0.5 + side * waist, top, 1),
            (0.5 + side * (waist + 0.045), top + 0.16),
            (0.5 + side * knee, (crotch + hem) / 2),
            (0.5 + side * (gap + 0.028 + ankle * 2), hem, 1),
            (0.5 + side * (gap + 0.02), hem + 0.006, 1),
            (0.5 + side * (gap + 0.008), (crotch + hem) / 2),
            (0.5 - side * 0.012, crotch, 1),
        ]
        mask = c.mask(outline(points))
        paint(c, mask, skin, bump=waves, turn=-side * 3, origin=(0.5 + side * 0.1, top), contact=0.22)
        masks.append(mask)
    return masks


def _fly(c: Canvas, skin: Surface, top: float, seam: RGB, within: Array, back: bool) -> None:
    if back:
        for x in (0.385, 0.615):
            patch = [(x - 0.055, top + 0.10), (x + 0.055, top + 0.10), (x + 0.055, top + 0.19),
                     (x, top + 0.215), (x - 0.055, top + 0.19)]
            paint(c, c.mask(patch) * within, skin.plain(), "thin", volume=0.7, contact=0.4)
            c.line(seam, [*patch, patch[0]], 0.003, 0.9, 0.012, within=within)
        return
    c.line(seam, outline([(0.535, top + 0.04), (0.535, top + 0.17), (0.502, top + 0.225)], closed=False),
           0.0035, 0.85, within=within)
    for side in (1, -1):
        pocket = outline([(0.5 + side * 0.075, top + 0.04), (0.5 + side * 0.085, top + 0.085),
                          (0.5 + side * 0.18, top + 0.115)], closed=False)
        c.line(darker(skin.rgb, 0.55), pocket, 0.006, 0.75, within=within)
        c.line(seam, [(x, y + 0.009) for x, y in pocket], 0.003, 0.85, within=within)


def trousers(c: Canvas, s: Spec, back: bool) -> None:
    skin = surface_of(s)
    hem = 0.925 if s["length"] == "full length" else 0.76
    ankle, knee = {"slim leg": (0.034, 0.138), "straight leg": (0.056, 0.168),
                   "wide leg": (0.092, 0.205)}[s["leg"]]
    _trousers(c, s, skin, back, hem, ankle, knee, thread(s.rgb))
    if not back:  # pressed crease down each leg
        for side in (1, -1):
            c.line(darker(s.rgb, 0.6), [(0.5 + side * 0.115, 0.20),
                                        (0.5 + side * (0.06 + ankle), hem - 0.01)], 0.004, 0.5,
                                        within=c.alpha.copy())


def _trousers(c: Canvas, s: Spec, skin: Surface, back: bool, hem: float, ankle: float, knee: float,
              seam: RGB) -> Array:
    both = np.maximum(*legs(c, s, back, waist=0.125, top=0.075, hem=hem, knee=knee, ankle=ankle,
                            gap=0.03 if ankle < 0.09 else 0.018))
    _fly(c, skin, 0.075, seam, both, back)
    waistband(c, skin, 0.125, 0.075, 0.042, seam, True, both)
    if not back:
        buttons(c, (0.72, 0.5, 0.3) if s["material"] == "denim" else darker(s.rgb, 0.5), [(0.5, 0.097)],
                0.012)
    c.line(seam, [(0.2, hem - 0.018), (0.8, hem - 0.018)], 0.003, 0.7, within=both)
    return both


def jeans(c: Canvas, s: Spec, back: bool) -> None:
    skin = surface_of(s)
    ankle, knee = {"slim leg": (0.034, 0.138), "straight leg": (0.056, 0.168),
                   "flared leg": (0.092, 0.145)}[s["leg"]]
    seam = (0.88, 0.58, 0.22)
    both = _trousers(c, s, skin, back, 0.925, ankle, knee, seam)
    fade = noise(s.style % 7, c.size, 3, 4)
    thighs = ((np.abs(c.u - 0.5) - 0.105) / 0.04) ** 2 + ((c.v - 0.40) / 0.16) ** 2
    worn = np.exp(-thighs) * (0.75 + 0.25 * fade)
    c.lift(worn * both * 0.2)
    if s["finish"] == "ripped" and not back:
        for x, y, w in ((0.395, 0.53, 0.036), (0.61, 0.49, 0.032), (0.605, 0.585, 0.026)):
            hole = outline([(x - w, y), (x - w * 0.2, y - 0.02), (x + w, y - 0.004),
                            (x + w * 0.3, y + 0.022)])
            c.ink((0.90, 0.90, 0.91), hole, within=both)
            for i in range(4):
                yy = y - 0.012 + i * 0.008
                c.line((0.62, 0.66, 0.74), [(x - w * 0.8, yy), (x + w * 0.8, yy + 0.002)], 0.0028, 0.8,
                       within=both)
            c.line((0.97, 0.97, 0.98), [*hole, hole[0]], 0.006, 0.9, within=both)


def shorts(c: Canvas, s: Spec, back: bool) -> None:
    skin = surface_of(s, 0.9, "down")
    denim = s["material"] == "denim"
    seam = (0.88, 0.58, 0.22) if denim else thread(s.rgb)
    pair = legs(c, s, back, waist=0.20, top=0.24, hem=0.745, knee=0.268, ankle=0.122, gap=0.012)
    both = np.maximum(*pair)
    _fly(c, skin, 0.24, seam, both, back)
    string = s["waist"] == "drawstring"
    if string:
        ribs(c, c.mask(rounded(0.27, 0.23, 0.73, 0.292, 0.004)) * both, skin, 0)
    else:
        waistband(c, skin, 0.20, 0.24, 0.05, seam, True, both)
    if s["hem"] == "turned-up hem":
        for mask in pair:
            cuff = c.mask(rounded(0.1, 0.705, 0.9, 0.80, 0.002)) * mask
            paint(c, cuff, skin.plain(lighter(s.rgb, 0.18 if sum(s.rgb) > 0.5 else 0.1)), "thin", volume=0.9,
                  contact=0.45)
            c.line(darker(s.rgb, 0.5), [(0.1, 0.707), (0.9, 0.707)], 0.005, 0.8, within=cuff)
    else:
        c.line(seam, [(0.1, 0.733), (0.9, 0.733)], 0.0035, 0.7, within=both)
    if back:
        return
    if string:
        cord = (0.95, 0.94, 0.9) if sum(s.rgb) < 2.0 else (0.25, 0.25, 0.28)
        for side in (1, -1):
            c.line(cord, outline([(0.5, 0.266), (0.5 + side * 0.03, 0.30), (0.5 + side * 0.036, 0.40)],
                                 closed=False), 0.010)
            c.ink(cord, outline([(0.5, 0.266), (0.5 + side * 0.035, 0.25), (0.5 + side * 0.04, 0.276)]))
    else:
        buttons(c, (0.72, 0.5, 0.3) if denim else darker(s.rgb, 0.5), [(0.5, 0.265)], 0.013)


def skirt(c: Canvas, s: Spec, back: bool) -> None:
    skin = surface_of(s, 0.9, "down")
    hem = {"mini": 0.60, "midi": 0.77, "maxi": 0.92}[s["length"]]
    top, waist = (0.20, 0.14) if s["length"] == "mini" else (0.12, 0.13)
    if s["length"] == "mini":
        hem += 0.08
    length = hem - top
    hip, foot = {"a-line": (0.19, 0.16 + length * 0.26), "pencil": (0.185, 0.155),
                 "pleated": (0.185, 0.17 + length * 0.24)}[s["shape"]]
    pleated = s["shape"] == "pleated"
    lower: list[Sequence[float]] = [(0.5 + waist, top, 1)]
    if not pleated:
        lower.append((0.5 + hip, top + min(0.16, length * 0.4)))
    lower.append((0.5 + foot, hem, 1))
    if pleated:
        teeth = 9
        for i in range(teeth * 2 - 1, 0, -1):
            lower.append((0.5 + foot * (i / teeth - 1), hem + 0.012 + (0.012 if i % 2 else -0.004), 1))
        shape = outline([*lower, (0.5 - foot, hem, 1), (0.5 - waist, top, 1)])
    else:
        shape = outline(mirror([*lower, (0.5 + foot * 0.5, hem + 0.013), (0.5, hem + 0.017)]))
    mask = c.mask(shape)
    bump = drape(c, s.style, 0.7 if pleated else 1.2, [(0.5 + waist, top + 0.06, 0.56, top + 0.2, 0.014,
                                                        0.009)])
    paint(c, mask, skin, bump=bump, origin=(0.5, top))
    fan = (c.u - 0.5) / (waist + (c.v - top) / length * (foot - waist))
    if pleated:
        step = (fan * 4.5 + 0.5) % 1
        c.shade(smooth(step, 0.72, 1.0) * mask, 0.48)
        c.lift(smooth(step, 0.3, 0.0) * mask * 0.13)
    elif s["shape"] == "a-line":
        wave = np.sin(fan * 9 + noise(s.style % 7, c.size, 3, 3) * 1.8) * smooth(c.v, top + 0.12, hem)
        c.shade(np.clip(-wave, 0, 1) * mask, 0.26)
        c.lift(np.clip(wave, 0, 1) * mask * 0.10)
    elif not back:
        c.line(darker(s.rgb, 0.5), [(0.56, hem - 0.17), (0.565, hem + 0.02)], 0.006, 0.8, within=mask)
    seam = (0.88, 0.58, 0.22) if s["material"] == "denim" else thread(s.rgb)
    waistband(c, skin, waist, top, 0.042, seam, s["material"] == "denim", mask)
    if not pleated:
        c.line(seam, outline([(0.5 - foot, hem - 0.022), (0.5, hem - 0.006), (0.5 + foot, hem - 0.022)],
                             closed=False), 0.003, 0.6, within=mask)
    if s["material"] == "denim" and not back:
        _fly(c, skin, top, seam, mask, False)
        buttons(c, (0.72, 0.5, 0.3), [(0.5, top + 0.022)], 0.012)

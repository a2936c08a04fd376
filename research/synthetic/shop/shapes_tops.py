"""Garments for the upper body, and dresses, laid flat or as on an invisible mannequin.

All share `_top`, which draws the inside of the back, sleeves, body and neck; each part carries its own frame
so that stripes run along a sleeve and around a body. Numbers are product units (see `draw`).
"""

# Outlines are tables of points: one point a line would hide their shape.
# fmt: off
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from research.synthetic.shop.draw import Array, Canvas, Point, band, mirror, noise, outline, rounded, smooth
from research.synthetic.shop.parts import Crease, buttons, darker, drape, lighter, ribs, surface_of, thread
from research.synthetic.shop.spec import Spec
from research.synthetic.shop.surface import Surface, paint


def _neck(style: str, width: float, top: float, back: bool) -> tuple[list[Point], list[Point]]:
    """Opening of the neck as a hole, and the line along which its band runs."""
    depth = {"v-neck": 0.17, "square neck": 0.105, "round neck": 0.075}.get(style, 0.05)
    if back:
        depth, style = 0.03, "round neck"
    x, low = width, top + depth
    if style == "v-neck":
        line = outline([(0.5 - x, top), (0.5 - x * 0.55, top + depth * 0.45), (0.5, low - 0.012, 1),
                        (0.5 + x * 0.55, top + depth * 0.45), (0.5 + x, top)], closed=False)
    elif style == "square neck":
        line = [(0.5 - x, top), (0.5 - x * 0.9, low), (0.5 + x * 0.9, low), (0.5 + x, top)]
    else:
        line = outline([(0.5 - x, top), (0.5 - x * 0.62, low - depth * 0.24), (0.5, low),
                        (0.5 + x * 0.62, low - depth * 0.24), (0.5 + x, top)], closed=False)
    return [*line, (0.5 + x, top - 0.08), (0.5 - x, top - 0.08)], line


def _sleeve(kind: str, shoulder: float, armpit: float, top: float,
            loose: float) -> tuple[list[Sequence[float]], float]:
    """Right sleeve as outline points, and the angle (degrees) at which it hangs."""
    s, a = 0.5 + shoulder, 0.5 + armpit
    if kind == "short sleeve":
        return [(s - 0.06, top + 0.02, 1), (s, top + 0.035), (s + 0.075, top + 0.12),
                (s + 0.125, top + 0.235, 1), (s + 0.02 - loose, top + 0.285, 1), (a, top + 0.21, 1),
                (a - 0.05, top + 0.12, 1)], -28.0
    return [(s - 0.06, top + 0.02, 1), (s, top + 0.035), (s + 0.06, top + 0.16), (s + 0.105, top + 0.40),
            (s + 0.13, top + 0.64, 1), (s + 0.05 - loose * 0.5, top + 0.655, 1),
            (s + 0.02 - loose, top + 0.42), (a, top + 0.21, 1), (a - 0.05, top + 0.12, 1)], -9.0


def _flip(points: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    return [(1 - p[0], *p[1:]) for p in points]


def _top(
    c: Canvas, s: Spec, skin: Surface, *, neck: str, sleeve: str, back: bool, top: float = 0.13,
    hem: float = 0.86, body: Sequence[Sequence[float]] | None = None, neck_width: float = 0.085,
    loose: float = 0.0, fold: float = 1.0, ribbed: bool = False, relief: Array | None = None,
    frame: tuple[float, float] | None = None
) -> Array:
    """A top from shoulders to hem; returns the mask of its body."""
    sleeveless = sleeve == "sleeveless"
    shoulder, armpit = frame or ((0.17, 0.205) if sleeveless else (0.212 + loose * 0.4, 0.220))
    side = body or [(0.5 + armpit - 0.008 + loose, (top + hem) / 2 + 0.06), (0.5 + armpit + loose, hem, 1)]
    half = [(0.5 + neck_width, top - 0.005, 1), (0.5 + shoulder, top + (0.032 if sleeveless else 0.045), 1),
            (0.5 + (min(shoulder, armpit) - 0.018 if sleeveless else armpit - 0.012), top + 0.13),
            (0.5 + armpit, top + 0.23, 1), *side]
    last = half[-1]
    hem_line = [(0.5 + (last[0] - 0.5) * 0.5, last[1] + 0.012), (0.5, last[1] + 0.016)]
    hole, line = _neck(neck, neck_width, top - 0.006, back)
    shape = outline(mirror([*half, *hem_line]))
    body_mask = c.mask(shape, holes=[hole])
    # the inside of the back shows through the neck
    inside = c.mask(outline(mirror([(0.5 + neck_width + 0.012, top - 0.004, 1),
                                    (0.5 + neck_width, top + 0.12), (0.5, top + 0.19)])))
    inside *= c.mask(rounded(0.5 - neck_width - 0.02, top - 0.018, 0.5 + neck_width + 0.02, top + 0.2, 0.02))
    if not back:
        lining = darker(skin.rgb, 0.62) if sum(skin.rgb) > 0.6 else lighter(skin.rgb, 0.2)
        paint(c, inside, skin.plain(lining), "flat", contact=0)
        c.line(darker(lining, 0.7), [(0.5 - neck_width, top + 0.012), (0.5, top + 0.022),
                                        (0.5 + neck_width, top + 0.012)], 0.006)
    creases: list[Crease] = [(0.5 + armpit - 0.01, top + 0.22, 0.5 + 0.06, top + 0.33, 0.012, 0.010),
                             (0.5 + armpit, top + 0.27, 0.5 + 0.09, hem - 0.12, 0.016, 0.010),
                             (0.5 + armpit * 0.9, hem - 0.03, 0.5 + 0.08, hem - 0.2, 0.014, 0.007)]
    waves = drape(c, s.style, fold, creases)
    if relief is not None:
        waves = waves + relief
    if not sleeveless:
        points, angle = _sleeve(sleeve, shoulder, armpit, top, loose)
        for points_side, turn, x in ((points, angle, 0.5 + shoulder),
                                     (_flip(points), -angle, 0.5 - shoulder)):
            sleeve_mask = c.mask(outline(points_side))
            paint(c, sleeve_mask, skin, volume=1.0, bump=waves, turn=turn, origin=(x, top + 0.05),
                  contact=0.2)
            cuff = [p for p in points_side if len(p) > 2][1:3]
            (x0, y0), (x1, y1) = cuff[0][:2], cuff[1][:2]
            drop = 0.045 if ribbed else 0.018
            ends = [(x0, y0 - drop), (x1, y1 - drop)]
            if ribbed:
                cuff_mask = c.mask([(x0, y0), (x1, y1), (x1, y1 - drop), (x0, y0 - drop)]) * sleeve_mask
                ribs(c, cuff_mask, skin, turn)
            else:
                c.line(thread(skin.rgb), ends, 0.004, 0.55, within=sleeve_mask)
    paint(c, body_mask, skin, bump=waves, origin=(0.5, top + (hem - top) * 0.42), contact=0.3)
    if ribbed:
        ribs(c, c.mask(rounded(0.1, hem - 0.045, 0.9, hem + 0.05, 0.01)) * body_mask, skin, 0)
    else:
        y = hem - 0.022
        c.line(thread(skin.rgb), outline([(1 - last[0], y), (0.5, y + 0.016), (last[0], y)], closed=False),
               0.004, 0.5, within=body_mask)
    if neck in ("round neck", "v-neck", "square neck") or back:
        collar = c.mask(band(line, 0.024 if not ribbed else 0.034))
        if neck == "v-neck" and not back:  # close the mitre at the tip
            tip = line[len(line) // 2]
            collar = np.maximum(collar, c.mask([(tip[0] - 0.016, tip[1] - 0.016),
                                                (tip[0] + 0.016, tip[1] - 0.016), (tip[0], tip[1] + 0.02)]))
        collar *= c.mask(rounded(0.5 - neck_width - 0.012, top - 0.012, 0.5 + neck_width + 0.012, top + 0.3,
                                 0.005))
        trim = skin.plain(skin.rgb2 if skin.pattern == "colour blocked" else skin.rgb)
        paint(c, collar, trim, "thin", volume=0.7, contact=0.3)
    return body_mask


def _collar(c: Canvas, skin: Surface, top: float, width: float = 0.088, long: float = 0.085) -> None:
    """Two turned-down leaves that meet at the throat."""
    stand = c.mask(outline([*mirror([(0.5 + width, top - 0.012), (0.5 + width * 0.6, top - 0.03),
                                     (0.5, top - 0.036)]), (0.5 - width, top + 0.02, 1),
                                     (0.5, top + 0.055, 1), (0.5 + width, top + 0.02, 1)]))
    paint(c, stand, skin.plain(darker(skin.rgb, 0.78)), "flat", contact=0)
    for side in (1, -1):
        leaf = [(0.5, top + 0.055, 1), (0.5 + side * width * 0.72, top + 0.008),
                (0.5 + side * (width + 0.004), top - 0.026, 1), (0.5 + side * (width + 0.036), top + 0.02),
                (0.5 + side * (width + 0.012), top + 0.055 + long * 0.35, 1),
                (0.5 + side * 0.042, top + 0.055 + long, 1)]
        mask = c.mask(outline(leaf))
        paint(c, mask, skin, "thin", volume=0.7, turn=-side * 38, contact=0.35)


def tshirt(c: Canvas, s: Spec, back: bool) -> None:
    skin = surface_of(s)
    body = _top(c, s, skin, neck=s["neckline"], sleeve=s["sleeve"], back=back, hem=0.81)
    if s["neckline"] == "polo collar" and not back:
        placket = c.mask(rounded(0.478, 0.16, 0.522, 0.335, 0.004)) * body
        paint(c, placket, skin.plain(), "thin", volume=0.5, contact=0.25)
        _collar(c, skin.plain(skin.rgb2), 0.13, long=0.05)
        buttons(c, lighter(skin.rgb, 0.75) if sum(skin.rgb) < 1.8 else darker(skin.rgb, 0.5),
                [(0.5, 0.235), (0.5, 0.295)], 0.009)


def sweater(c: Canvas, s: Spec, back: bool) -> None:
    skin = surface_of(s, 1.15)
    turtle = s["neckline"] == "turtleneck"
    _top(c, s, skin, neck=s["neckline"], sleeve=s["sleeve"], back=back, top=0.175 if turtle else 0.14,
         loose=0.012, fold=1.1, ribbed=True, hem=0.83)
    if turtle:
        roll = c.mask(outline([*mirror([(0.5 + 0.072, 0.085), (0.5 + 0.086, 0.13), (0.5 + 0.098, 0.19),
                                        (0.5 + 0.06, 0.225), (0.5, 0.235)]), (0.5, 0.078)]))
        ribs(c, roll, skin, 0)
        c.line(darker(skin.rgb, 0.62), outline([(0.422, 0.128), (0.5, 0.150), (0.578, 0.128)], closed=False),
               0.005, 0.6)


def shirt(c: Canvas, s: Spec, back: bool) -> None:
    skin = surface_of(s, 0.62, "down")
    body = _top(c, s, skin, neck="shirt", sleeve=s["sleeve"], back=back, hem=0.84, fold=1.25,
                neck_width=0.08, body=[(0.5 + 0.208, 0.58), (0.5 + 0.222, 0.77, 1), (0.5 + 0.17, 0.835)])
    seam = (0.86, 0.55, 0.2) if s["material"] == "denim" else thread(skin.rgb)
    if back:
        c.line(seam, outline([(0.30, 0.25), (0.5, 0.262), (0.70, 0.25)], closed=False), 0.004, 0.7,
               within=body)
        return
    for x in (0.476, 0.524):
        c.line(seam, [(x, 0.16), (x, 0.89)], 0.0035, 0.7, within=body)
    button = (0.95, 0.94, 0.9) if sum(skin.rgb) < 2.2 else (0.55, 0.5, 0.45)
    if s["pocket"] == "chest pocket":
        pocket = c.mask([(0.565, 0.335), (0.655, 0.335), (0.655, 0.425), (0.61, 0.45), (0.565, 0.425)])
        paint(c, pocket, skin, "thin", volume=0.6, contact=0.45)
        c.line(darker(skin.rgb, 0.55), [(0.565, 0.349), (0.655, 0.349)], 0.004, 0.7)
        c.line(seam, [(0.565, 0.335), (0.565, 0.425), (0.61, 0.45), (0.655, 0.425), (0.655, 0.335)], 0.0035,
               0.8)
    buttons(c, button, [(0.5, y) for y in (0.285, 0.385, 0.485, 0.585, 0.685, 0.785)], 0.0095)
    if s["neckline"] == "spread collar":
        _collar(c, skin, 0.13, 0.084)
        buttons(c, button, [(0.5, 0.20)], 0.009)
    else:
        line = outline([(0.415, 0.122), (0.43, 0.165), (0.5, 0.198), (0.57, 0.165), (0.585, 0.122)],
                       closed=False)
        ring = c.mask(band(line, 0.034)) * c.mask(rounded(0.409, 0.117, 0.591, 0.3, 0.004))
        paint(c, ring, skin.plain(), "thin", volume=0.8, contact=0.4)
        buttons(c, button, [(0.5, 0.196)], 0.009)


def jacket(c: Canvas, s: Spec, back: bool) -> None:
    skin = surface_of(s)
    denim, quilted = s["material"] == "denim", s["material"] == "nylon"
    hood = s["neckline"] == "hood"
    if hood:
        shape = outline(mirror([(0.5, 0.075), (0.5 + 0.10, 0.095), (0.5 + 0.145, 0.17), (0.5 + 0.125, 0.25),
                                (0.5 + 0.05, 0.30)]))
        paint(c, c.mask(shape), skin, volume=1.2)
        if not back:
            opening = outline(mirror([(0.5, 0.115), (0.5 + 0.075, 0.14), (0.5 + 0.092, 0.195),
                                      (0.5 + 0.05, 0.29), (0.5, 0.33)]))
            paint(c, c.mask(opening), skin.plain(darker(skin.rgb, 0.5)), "flat", contact=0.3)
    top = 0.185 if hood else 0.155
    relief = None
    if quilted:  # baffles: rows of stitching with down between them
        row = np.abs(((c.v - top) / 0.078) % 1 - 0.5) * 2
        relief = (0.020 * np.sqrt(np.clip(1 - row * row, 0, 1))).astype(np.float32)
    body = _top(c, s, skin, neck="jacket", sleeve="long sleeve", back=back and not hood, top=top, hem=0.80,
                loose=0.022, fold=0.5 if quilted else 1.25, neck_width=0.088, relief=relief)
    seam = (0.86, 0.55, 0.2) if denim else thread(skin.rgb)
    hem_band = c.mask(rounded(0.2, 0.765, 0.8, 0.84, 0.01)) * body
    if denim:
        paint(c, hem_band, skin, "thin", volume=0.6, contact=0.3)
        c.line(seam, [(0.29, 0.775), (0.5, 0.785), (0.71, 0.775)], 0.003, 0.9, 0.011, within=body)
        for x in (0.40, 0.60):
            c.line(seam, [(x + (x - 0.5) * 0.25, 0.36), (x, 0.76)], 0.003, 0.9, 0.011, within=body)
        c.line(seam, [(0.3, 0.352), (0.5, 0.36), (0.7, 0.352)], 0.003, 0.9, 0.011, within=body)
    else:
        ribs(c, hem_band, skin, 0)
    if back:
        return
    if denim:
        for x in (0.385, 0.615):
            flap = [(x - 0.045, 0.362), (x + 0.045, 0.362), (x + 0.045, 0.395), (x, 0.413),
                    (x - 0.045, 0.395)]
            paint(c, c.mask(flap), skin, "thin", volume=0.7, contact=0.45)
    else:
        for side in (1, -1):
            c.line(darker(skin.rgb, 0.45), [(0.5 + side * 0.085, 0.60), (0.5 + side * 0.13, 0.70)], 0.012)
            c.line((0.75, 0.76, 0.78), [(0.5 + side * 0.087, 0.605), (0.5 + side * 0.128, 0.695)], 0.004, 0.9)
    if s["closure"] == "zip":
        c.line(darker(skin.rgb, 0.5), [(0.5, top + 0.045), (0.5, 0.812)], 0.024, within=None)
        c.line((0.80, 0.81, 0.83), [(0.5, top + 0.045), (0.5, 0.812)], 0.011, 1.0, 0.012)
        paint(c, c.mask(rounded(0.491, top + 0.06, 0.509, top + 0.115, 0.006)),
              Surface("metal", (0.8, 0.81, 0.83)), contact=0.5)
    else:
        for x in (0.474, 0.526):
            c.line(seam, [(x, top + 0.05), (x, 0.80)], 0.0035, 0.8, 0.011 if denim else 0.0, within=body)
        metal = (0.72, 0.52, 0.32) if denim else darker(skin.rgb, 0.45) if sum(skin.rgb) > 1 else (0.72,
                0.72, 0.74)
        buttons(c, metal, [(0.5, top + 0.09 + i * 0.105) for i in range(6)], 0.0135)
    if s["neckline"] == "spread collar":
        _collar(c, skin, top, 0.096, 0.10)
    elif s["neckline"] == "stand collar":
        for side in (1, -1):
            leaf = outline([(0.5 + side * 0.006, top + 0.065, 1), (0.5 + side * 0.055, top + 0.03),
                            (0.5 + side * 0.082, top - 0.012), (0.5 + side * 0.098, top - 0.022),
                            (0.5 + side * 0.116, top + 0.01), (0.5 + side * 0.09, top + 0.06),
                            (0.5 + side * 0.008, top + 0.115, 1)])
            paint(c, c.mask(leaf), skin.plain(), "puff", volume=0.9, contact=0.35)
    else:
        for side in (1, -1):
            c.line((0.93, 0.92, 0.88) if sum(skin.rgb) < 2.2 else (0.4, 0.4, 0.4),
                   outline([(0.5 + side * 0.05, 0.275), (0.5 + side * 0.058, 0.36),
                            (0.5 + side * 0.05, 0.43)], closed=False), 0.008)


def dress(c: Canvas, s: Spec, back: bool) -> None:
    skin = surface_of(s, 0.8)
    hem = {"mini": 0.665, "midi": 0.80, "maxi": 0.93}[s["length"]]
    rng = np.random.default_rng(s.style)
    flare = {"mini": 0.205, "midi": 0.22, "maxi": 0.235}[s["length"]] + rng.uniform(-0.015, 0.03)
    waist = 0.375
    body: list[Sequence[float]] = [(0.5 + 0.112, waist), (0.5 + 0.150, waist + 0.10), (0.5 + flare, hem, 1)]
    mask = _dress_body(c, s, skin, back, body, hem)
    belt = c.mask(rounded(0.3, waist - 0.012, 0.7, waist + 0.016, 0.004)) * mask
    paint(c, belt, skin.plain(darker(skin.rgb, 0.8) if sum(skin.rgb) > 0.6 else lighter(skin.rgb, 0.15)),
          "thin", volume=0.7)


def _dress_body(c: Canvas, s: Spec, skin: Surface, back: bool, body: list[Sequence[float]],
                hem: float) -> Array:
    """A top whose skirt falls in folds that fan out from the waist."""
    mask = _top(c, s, skin, neck=s["neckline"], sleeve=s["sleeve"], back=back, top=0.09, hem=hem, body=body,
                neck_width=0.072, fold=0.9, frame=(0.125, 0.14) if s["sleeve"] == "sleeveless" else (0.155,
                        0.15))
    fan = (c.u - 0.5) / np.maximum(0.115 + (c.v - 0.375) * 0.5, 0.08)
    down = smooth(c.v, 0.385, 0.58)
    wave = np.sin(fan * 13 + noise(s.style % 7, c.size, 3, 3) * 1.6)
    c.shade(np.clip(-wave, 0, 1) * down * mask, 0.26)
    c.lift(np.clip(wave, 0, 1) * down * mask * 0.09)
    return mask

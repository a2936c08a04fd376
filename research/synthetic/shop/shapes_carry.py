"""Bags and accessories: backpacks, handbags, watches, sunglasses, caps."""

# Outlines are tables of points: one point a line would hide their shape.
# fmt: off
from __future__ import annotations

import math

import numpy as np

from research.synthetic.shop.draw import RGB, Canvas, Point, band, ellipse, mirror, outline, rounded
from research.synthetic.shop.parts import BRASS, STEEL, darker, lighter, surface_of, thread, zipper
from research.synthetic.shop.spec import COLOURS, Spec
from research.synthetic.shop.surface import Surface, paint


def backpack(c: Canvas, s: Spec, back: bool) -> None:
    blocked = s.attributes.get("pattern") == "colour blocked"
    skin = surface_of(s, 0.95, "across")
    plain = skin.plain()
    strap = Surface("nylon" if s["material"] != "leather" else "leather",
                    darker(s.rgb, 0.72) if sum(s.rgb) > 0.7 else lighter(s.rgb, 0.14))
    grab = outline([(0.43, 0.165), (0.435, 0.085), (0.5, 0.066), (0.565, 0.085), (0.57, 0.165)], closed=False)
    paint(c, c.mask(band(grab, 0.03)), strap, "puff", contact=0)
    for side in (1, -1):  # shoulder straps peep out
        loop = outline([(0.5 + side * 0.19, 0.22), (0.5 + side * 0.285, 0.36), (0.5 + side * 0.30, 0.58),
                        (0.5 + side * 0.235, 0.82)], closed=False)
        paint(c, c.mask(band(loop, 0.04)), strap, "puff", contact=0)
    half = [(0.5, 0.125), (0.5 + 0.13, 0.14), (0.5 + 0.215, 0.21), (0.5 + 0.235, 0.36), (0.5 + 0.25, 0.62),
            (0.5 + 0.245, 0.82), (0.5 + 0.20, 0.875), (0.5, 0.885)]
    mask = c.mask(outline(mirror(half)))
    paint(c, mask, skin, volume=1.15, origin=(0.5, 0.52 if blocked else 0.5), contact=0.2)
    if back:
        for side in (1, -1):
            loop = outline([(0.5 + side * 0.07, 0.19), (0.5 + side * 0.13, 0.36), (0.5 + side * 0.15, 0.6),
                            (0.5 + side * 0.19, 0.83)], closed=False)
            paint(c, c.mask(band(loop, 0.075)), strap, "puff", contact=0.4)
        return
    seam = thread(s.rgb)
    flap = s["closure"] == "flap"
    if not flap:
        arc = outline([(0.275, 0.52), (0.285, 0.36), (0.315, 0.235), (0.40, 0.18), (0.5, 0.172),
                       (0.60, 0.18), (0.685, 0.235), (0.715, 0.36), (0.725, 0.52)], closed=False)
        zipper(c, s.rgb, arc, (0.40, 0.178))
    pocket = s["pocket"]
    low = 0.6 if flap else 0.565
    if pocket == "front pocket":
        paint(c, c.mask(rounded(0.315, low, 0.685, 0.84, 0.045)), skin, volume=0.9, contact=0.45)
        zipper(c, s.rgb, outline([(0.335, low + 0.05), (0.5, low + 0.038), (0.665, low + 0.05)],
                                 closed=False), (0.38, low + 0.048))
    elif pocket == "two pockets":
        for x in (0.385, 0.615):
            paint(c, c.mask(rounded(x - 0.098, low + 0.04, x + 0.098, 0.84, 0.035)),
                  plain if blocked else skin, volume=0.9, contact=0.45)
            cover = outline([(x - 0.104, low + 0.028, 1), (x + 0.104, low + 0.028, 1),
                             (x + 0.10, low + 0.09), (x, low + 0.115), (x - 0.10, low + 0.09)])
            paint(c, c.mask(cover), plain, "thin", contact=0.45)
            paint(c, c.mask(ellipse(x, low + 0.09, 0.013, 0.013)), Surface("metal", BRASS), contact=0.5)
    if flap:
        cover = outline(mirror([(0.5, 0.118), (0.5 + 0.14, 0.132), (0.5 + 0.228, 0.21), (0.5 + 0.252, 0.40),
                                (0.5 + 0.225, 0.49), (0.5 + 0.12, 0.515), (0.5, 0.52)]))
        cover_mask = c.mask(cover)
        paint(c, cover_mask, skin, volume=1.0, origin=(0.5, 0.52 if blocked else 0.5), contact=0.55)
        c.line(seam, outline([(0.27, 0.42), (0.30, 0.475), (0.40, 0.497), (0.5, 0.50), (0.60, 0.497),
                              (0.70, 0.475), (0.73, 0.42)], closed=False), 0.0035, 0.8, 0.014)
        belt = Surface("leather", (0.55, 0.33, 0.18) if s["material"] == "canvas" else strap.rgb)
        for x in (0.405, 0.595):
            paint(c, c.mask(rounded(x - 0.019, 0.38, x + 0.019, 0.60, 0.008)), belt, "thin", contact=0.45)
            buckle = c.mask(rounded(x - 0.032, 0.525, x + 0.032, 0.575, 0.008),
                            holes=[rounded(x - 0.02, 0.537, x + 0.02, 0.563, 0.004)])
            paint(c, buckle, Surface("metal", BRASS), "thin", contact=0.45)
    c.line(seam, outline([(0.265, 0.60), (0.262, 0.80), (0.31, 0.858), (0.5, 0.866), (0.69, 0.858),
                          (0.738, 0.80), (0.735, 0.60)], closed=False), 0.0035, 0.5, 0.014, within=mask)


def handbag(c: Canvas, s: Spec, back: bool) -> None:
    skin = surface_of(s, 0.9, "across")
    trim_rgb = darker(s.rgb, 0.78) if sum(s.rgb) > 0.7 else lighter(s.rgb, 0.12)
    trim = Surface("leather", (0.50, 0.30, 0.17) if s["material"] in ("canvas", "straw") else trim_rgb)
    shape = s["shape"]
    if shape == "trapeze":
        half = [(0.5 + 0.235, 0.44, 1), (0.5 + 0.29, 0.62), (0.5 + 0.345, 0.80), (0.5 + 0.32, 0.832),
                (0.5, 0.836)]
        top, rim = 0.44, 0.235
    elif shape == "rectangular":
        half = [(0.5 + 0.315, 0.47, 1), (0.5 + 0.325, 0.65), (0.5 + 0.32, 0.80), (0.5 + 0.29, 0.832),
                (0.5, 0.836)]
        top, rim = 0.47, 0.315
    else:
        half = [(0.5 + 0.335, 0.49, 1), (0.5 + 0.345, 0.60), (0.5 + 0.27, 0.755), (0.5 + 0.13, 0.825),
                (0.5, 0.836)]
        top, rim = 0.49, 0.335
    handle = s["handle"]
    if handle == "top handle":
        loop = outline([(0.5 - rim * 0.55, top + 0.02), (0.5 - rim * 0.5, 0.27), (0.5 - rim * 0.2, 0.175),
                        (0.5 + rim * 0.2, 0.175), (0.5 + rim * 0.5, 0.27), (0.5 + rim * 0.55, top + 0.02)],
                        closed=False)
        paint(c, c.mask(band(loop, 0.036)), trim, "puff", volume=1.1, contact=0)
    elif handle == "double handles":
        for dy, dark in ((-0.035, 0.72), (0.0, 1.0)):
            loop = outline([(0.5 - rim * 0.5, top + 0.03), (0.5 - rim * 0.44, 0.27 + dy),
                            (0.5 - rim * 0.18, 0.165 + dy), (0.5 + rim * 0.18, 0.165 + dy),
                            (0.5 + rim * 0.44, 0.27 + dy), (0.5 + rim * 0.5, top + 0.03)], closed=False)
            paint(c, c.mask(band(loop, 0.026)), trim.plain(darker(trim.rgb, dark)), "puff", contact=0.2)
    else:
        curve = outline([(0.5 - rim * 0.92, top + 0.02), (0.5 - rim * 0.80, 0.24), (0.5 - rim * 0.3, 0.115),
                         (0.5 + rim * 0.3, 0.115), (0.5 + rim * 0.80, 0.24), (0.5 + rim * 0.92, top + 0.02)],
                         closed=False)
        p = np.asarray(curve)
        along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(p, axis=0).T))])
        count = int(along[-1] / 0.026)
        rings, holes = [], []
        for i in range(count):
            t = (i + 0.5) / count * along[-1]
            x, y = float(np.interp(t, along, p[:, 0])), float(np.interp(t, along, p[:, 1]))
            wide = i % 2 == 0
            rings.append(ellipse(x, y, 0.0165 if wide else 0.009, 0.0165 if wide else 0.012))
            if wide:
                holes.append(ellipse(x, y, 0.0075, 0.0075))
        paint(c, c.mask(*rings, holes=holes), Surface("metal", BRASS), "thin", contact=0)
    open_top = s["closure"] == "open top"
    if open_top:  # the inside and the far edge
        inside = outline(mirror([(0.5, top - 0.035), (0.5 + rim * 0.8, top - 0.028),
                                 (0.5 + rim, top + 0.006, 1), (0.5 + rim * 0.8, top + 0.02),
                                 (0.5, top + 0.03)]))
        paint(c, c.mask(inside), skin.plain(darker(s.rgb, 0.45) if sum(s.rgb) > 0.6 else (0.34, 0.30, 0.28),
                                            "cotton"), "flat", contact=0)
    body = c.mask(outline([(0.5, top + (0.018 if open_top else 0.004)), *half,
                           *[(1 - p[0], *p[1:]) for p in reversed(half[:-1])]]))
    paint(c, body, skin, volume=1.2, origin=(0.5, 0.63), contact=0.2)
    seam = thread(s.rgb)
    edge = [(p[0] + (0.5 - p[0]) * 0.055, p[1] - 0.018) for p in half]
    c.line(seam, outline([*edge, *[(1 - x, y) for x, y in reversed(edge[:-1])]], closed=False), 0.0035, 0.7,
           0.014, within=body)
    if s["material"] in ("canvas", "straw"):
        base = c.mask(rounded(0.05, 0.775, 0.95, 0.86, 0.01)) * body
        paint(c, base, trim, "thin", volume=0.8, contact=0.3)
    if handle in ("top handle", "double handles"):
        for side in (1, -1):
            x = 0.5 + side * rim * (0.55 if handle == "top handle" else 0.5)
            tab = rounded(x - 0.022, top + 0.005, x + 0.022, top + 0.105, 0.012)
            paint(c, c.mask(tab), trim, "thin", contact=0.4)
            ring = c.mask(ellipse(x, top + 0.03, 0.02, 0.02), holes=[ellipse(x, top + 0.03, 0.011, 0.011)])
            paint(c, ring, Surface("metal", BRASS), "thin", contact=0.4)
    if back:
        c.line(darker(s.rgb, 0.5), [(0.36, 0.60), (0.64, 0.60)], 0.006, 0.7)
        return
    if s["closure"] == "flap":
        spread = rim + (0.02 if shape == "trapeze" else 0.008)
        cover = outline(mirror([(0.5, top - 0.012), (0.5 + rim * 0.9, top - 0.008),
                                (0.5 + rim + 0.004, top + 0.02), (0.5 + spread, top + 0.11),
                                (0.5 + spread * 0.72, top + 0.19), (0.5 + 0.06, top + 0.215),
                                (0.5, top + 0.217)]))
        paint(c, c.mask(cover), skin, volume=0.9, origin=(0.5, 0.63), contact=0.55)
        lower = outline([(0.5 - spread * 0.97, top + 0.10), (0.5 - spread * 0.70, top + 0.172),
                         (0.5, top + 0.20), (0.5 + spread * 0.70, top + 0.172),
                         (0.5 + spread * 0.97, top + 0.10)], closed=False)
        c.line(seam, lower, 0.0035, 0.8, 0.014)
        paint(c, c.mask(rounded(0.465, top + 0.175, 0.535, top + 0.245, 0.016)), Surface("metal", BRASS),
              contact=0.55)
        c.ink(darker(BRASS, 0.45), rounded(0.494, top + 0.195, 0.506, top + 0.225, 0.005))
    elif s["closure"] == "zip":
        zipper(c, s.rgb, outline([(0.5 - rim * 0.9, top + 0.022), (0.5, top + 0.024),
                                  (0.5 + rim * 0.9, top + 0.022)], closed=False),
                                  (0.5 - rim * 0.62, top + 0.026))
    else:
        band_line = outline([(0.5 - rim, top + 0.008), (0.5, top + 0.03), (0.5 + rim, top + 0.008)],
                            closed=False)
        paint(c, c.mask(band(band_line, 0.024)) * np.maximum(body, 0.001),
              trim if s["material"] in ("straw", "canvas") else skin.plain(), "thin", contact=0.3)


_DIALS: dict[str, tuple[RGB, RGB]] = {"white dial": ((0.96, 0.955, 0.94), (0.14, 0.14, 0.16)),
                                      "black dial": ((0.09, 0.09, 0.10), (0.95, 0.94, 0.90)),
                                      "blue dial": ((0.12, 0.24, 0.50), (0.96, 0.95, 0.92))}
# numerals as strokes in a 2×3 box, enough for 12, 3, 6 and 9
_DIGITS: dict[str, list[list[Point]]] = {
    "12": [[(-1.3, -1.0), (-0.8, -1.5), (-0.8, 1.5)], [(0.0, -0.9), (0.5, -1.5), (1.2, -1.0), (0.9, 0.0),
                                                       (0.0, 1.5), (1.4, 1.5)]],
    "3": [[(-0.7, -1.2), (0.0, -1.5), (0.7, -1.1), (0.5, -0.2), (-0.1, 0.0), (0.7, 0.4), (0.6, 1.2),
           (-0.1, 1.5), (-0.8, 1.1)]],
    "6": [[(0.6, -1.4), (-0.2, -1.0), (-0.7, 0.3), (-0.4, 1.3), (0.2, 1.5), (0.7, 0.9), (0.3, 0.1),
           (-0.5, 0.4)]],
    "9": [[(-0.6, 1.4), (0.2, 1.0), (0.7, -0.3), (0.4, -1.3), (-0.2, -1.5), (-0.7, -0.9), (-0.3, -0.1),
           (0.5, -0.4)]],
}


def watch(c: Canvas, s: Spec, back: bool) -> None:
    metal_strap = s["material"] == "metal"
    case_rgb = COLOURS[s["colour"]] if metal_strap else BRASS if s.style % 3 == 0 else STEEL
    skin, case = surface_of(s), Surface("metal", case_rgb)
    square = s["shape"] == "square"
    for sign in (-1, 1):

        def y(v: float, sign: int = sign) -> float:
            return 0.5 + sign * v

        outline_strap = outline([(0.5 - 0.10, y(0.14), 1), (0.5 - 0.092, y(0.28)), (0.5 - 0.074, y(0.42), 1),
                                 (0.5, y(0.43)), (0.5 + 0.074, y(0.42), 1), (0.5 + 0.092, y(0.28)),
                                 (0.5 + 0.10, y(0.14), 1)])
        mask = c.mask(outline_strap)
        if metal_strap:
            rows = np.abs(((c.v - 0.5) / 0.036) % 1 - 0.5) * 2
            joint = np.abs(np.abs(c.u - 0.5) - 0.034) < 0.004
            links = (np.minimum(rows * 3, 1) * 0.006 - 0.004 * joint).astype(np.float32)
            paint(c, mask, skin, "thin", volume=1.0, bump=links, contact=0)
            c.shade((rows < 0.14) * mask, 0.35)
            c.shade(joint * mask, 0.25)
        else:
            paint(c, mask, skin, "puff", volume=0.9, contact=0)
            if s["material"] == "leather":
                for side in (1, -1):
                    c.line(lighter(s.rgb, 0.5) if sum(s.rgb) < 1.6 else darker(s.rgb, 0.7),
                           [(0.5 + side * 0.082, y(0.17)), (0.5 + side * 0.062, y(0.41))], 0.0035, 0.9, 0.014)
            if sign > 0:
                c.ink(darker(s.rgb, 0.35) if sum(s.rgb) > 0.6 else (0.5, 0.5, 0.5),
                      *[ellipse(0.5, y(v), 0.007, 0.009) for v in (0.29, 0.325, 0.36, 0.395)])
    if not metal_strap:
        buckle = c.mask(rounded(0.408, 0.052, 0.592, 0.118, 0.018),
                        holes=[rounded(0.428, 0.072, 0.572, 0.100, 0.006)])
        paint(c, buckle, case, "thin", contact=0.3)
    for x in (0.40, 0.60):
        paint(c, c.mask(rounded(x - 0.026, 0.315, x + 0.026, 0.685, 0.012)), case, "thin", contact=0.2)
    r = 0.195
    paint(c, c.mask(rounded(0.5 + r - 0.01, 0.478, 0.5 + r + 0.036, 0.522, 0.008)), case, contact=0)

    def frame(k: float) -> list[Point]:
        if square:
            return rounded(0.5 - k, 0.5 - k, 0.5 + k, 0.5 + k, 0.045)
        return ellipse(0.5, 0.5, k, k)

    r = 0.18 if square else r
    paint(c, c.mask(frame(r)), case, "puff", volume=1.3, contact=0.35)
    if back:
        paint(c, c.mask(frame(r * 0.82)), case, "thin", volume=0.6, contact=0.3)
        return
    face, ink = _DIALS[s["dial"]]
    paint(c, c.mask(frame(r * 0.84)), Surface("plastic", darker(face, 0.86)), "flat", contact=0)
    paint(c, c.mask(frame(r * 0.80)), Surface("paper", face), "flat", contact=0)
    rim = r * 0.70

    def at(hour: float, far: float) -> Point:
        a = math.radians(hour * 30 - 90)
        dx, dy = math.cos(a), math.sin(a)
        k = far / max(abs(dx), abs(dy)) if square else far
        return 0.5 + dx * k, 0.5 + dy * k

    if s["markers"] == "numerals":
        for text, hour in (("12", 12), ("3", 3), ("6", 6), ("9", 9)):
            mx, my = at(hour, rim * 0.80)
            for stroke in _DIGITS[text]:
                c.line(ink, [(mx + px * 0.0155, my + py * 0.0165) for px, py in stroke], 0.008)
        for hour in (1, 2, 4, 5, 7, 8, 10, 11):
            c.line(ink, [at(hour, rim * 0.97), at(hour, rim * 1.06)], 0.005)
    elif s["markers"] == "dots":
        c.ink(ink, *[ellipse(*at(hour, rim * 0.94), 0.0105, 0.0105) for hour in range(12)])
    else:
        for hour in range(12):
            c.line(ink, [at(hour, rim * (0.72 if hour % 3 == 0 else 0.80)), at(hour, rim * 1.04)],
                   0.012 if hour % 3 == 0 else 0.008)
    for time, length, width in ((10.1, 0.44, 0.014), (2.05, 0.72, 0.010)):
        a = math.radians(time * 30 - 90)
        tip = (0.5 + math.cos(a) * rim * length, 0.5 + math.sin(a) * rim * length)
        c.line(ink, [(0.5, 0.5), tip], width)
    c.line((0.80, 0.20, 0.18), [(0.5 - 0.02, 0.5 - 0.035), (0.5 + 0.05, 0.5 + 0.095)], 0.004)
    c.ink(ink, ellipse(0.5, 0.5, 0.011, 0.011))
    gleam = c.mask(frame(r * 0.80)) * c.mask([(0.25, 0.58), (0.58, 0.25), (0.66, 0.25), (0.25, 0.66)])
    c.lift(gleam * 0.10)


def sunglasses(c: Canvas, s: Spec, back: bool) -> None:
    material = s["material"]
    frame = surface_of(s)
    thin = material == "metal"
    w = 0.011 if thin else 0.026
    lens_rgb = {"dark lens": (0.12, 0.12, 0.13), "brown lens": (0.44, 0.25, 0.12),
                "blue lens": (0.16, 0.36, 0.66)}[s["lens"]]
    shape = s["shape"]
    if shape == "round":
        right = ellipse(0.695, 0.505, 0.128, 0.128)
    elif shape == "aviator":
        right = outline([(0.575, 0.42), (0.69, 0.398), (0.83, 0.415), (0.862, 0.475), (0.825, 0.585),
                         (0.735, 0.645), (0.64, 0.605), (0.575, 0.50)])
    elif shape == "square":
        right = rounded(0.568, 0.395, 0.842, 0.605, 0.045)
    else:
        right = outline([(0.565, 0.445), (0.66, 0.415), (0.79, 0.392), (0.895, 0.345, 1), (0.880, 0.47),
                         (0.815, 0.585), (0.70, 0.612), (0.605, 0.575)])
    cx = sum(p[0] for p in right) / len(right)
    cy = sum(p[1] for p in right) / len(right)

    def grow(k: float) -> list[Point]:
        return [(x + (x - cx) / math.hypot(x - cx, y - cy) * k,
                 y + (y - cy) / math.hypot(x - cx, y - cy) * k) for x, y in right]

    def both(points: list[Point]) -> tuple[list[Point], list[Point]]:
        return points, [(1 - x, y) for x, y in points]

    for side in (1, -1):  # arms, folded back behind
        arm = outline([(0.5 + side * 0.355, 0.44), (0.5 + side * 0.385, 0.425), (0.5 + side * 0.33, 0.36),
                       (0.5 + side * 0.22, 0.335)], closed=False)
        paint(c, c.mask(band(arm, [w * 1.3, w * 1.2] + [w * 0.9] * (len(arm) - 2))),
              frame.plain(darker(s.rgb, 0.8)), "thin", contact=0)
    lens_mask = c.mask(*both(grow(0.003)))
    paint(c, lens_mask, Surface("plastic", lens_rgb), "puff", volume=0.5, contact=0)
    fade = np.clip((c.v - 0.40) / 0.24, 0, 1) * lens_mask
    c.lift(fade * (0.38 if s["lens"] != "dark lens" else 0.16), lighter(lens_rgb, 0.5))
    for x in (0.235, 0.625):
        gleam = c.mask([(x, 0.56), (x + 0.11, 0.38), (x + 0.155, 0.38), (x + 0.045, 0.56)]) * lens_mask
        c.lift(gleam * 0.16)
    bridge = outline([(0.44, 0.475), (0.46, 0.45), (0.5, 0.442), (0.54, 0.45), (0.56, 0.475)], closed=False)
    paint(c, c.mask(band(bridge, w * 1.25)), frame, "thin", contact=0.2)
    if shape == "aviator":
        bar = outline([(0.42, 0.408), (0.5, 0.400), (0.58, 0.408)], closed=False)
        paint(c, c.mask(band(bar, w * 1.2)), frame, "thin", contact=0.2)
    rims = c.mask(*both(grow(w)), holes=both(right))
    paint(c, rims, frame, "thin" if thin else "puff", volume=1.1, contact=0.3)
    for side in (1, -1):
        hinge = rounded(0.5 + side * 0.352 - 0.018, 0.43, 0.5 + side * 0.352 + 0.022, 0.43 + w * 1.3, 0.006)
        paint(c, c.mask(hinge), frame, "thin", contact=0.2)
    if back:
        for side in (1, -1):
            arm = outline([(0.5 + side * 0.36, 0.44), (0.5 + side * 0.30, 0.50), (0.5 + side * 0.10, 0.60),
                           (0.5 - side * 0.02, 0.655)], closed=False)
            paint(c, c.mask(band(arm, w * 1.1)), frame.plain(darker(s.rgb, 0.85)), "thin", contact=0.4)


def cap(c: Canvas, s: Spec, back: bool) -> None:
    if back:
        c.look(c.camera @ np.array([[-1.0, 0, 1], [0, 1, 0], [0, 0, 1]]))
    skin = surface_of(s, 0.85, "across")
    blocked = s.attributes.get("pattern") == "colour blocked"
    if blocked:
        skin = skin.plain()
    crown = outline([(0.245, 0.625, 1), (0.242, 0.50), (0.285, 0.385), (0.40, 0.295), (0.56, 0.270),
                     (0.72, 0.315), (0.825, 0.42), (0.858, 0.56), (0.856, 0.655, 1), (0.70, 0.690),
                     (0.50, 0.695), (0.34, 0.668)])
    mask = c.mask(crown)
    paint(c, mask, skin, volume=1.5, origin=(0.5, 0.5), contact=0)
    seam = thread(s.rgb)
    for line in ([(0.555, 0.272), (0.46, 0.40), (0.415, 0.54), (0.41, 0.70)],
                 [(0.555, 0.272), (0.64, 0.40), (0.665, 0.55), (0.655, 0.70)]):
        c.line(seam, outline(line, closed=False), 0.0045, 0.85, within=mask)
    for x, y in ((0.345, 0.445), (0.545, 0.40), (0.735, 0.43)):
        c.ink(darker(s.rgb, 0.4) if sum(s.rgb) > 0.7 else lighter(s.rgb, 0.4), ellipse(x, y, 0.010, 0.010),
              within=mask)
    if s["brim"] == "curved brim":
        brim = outline([(0.250, 0.585, 1), (0.33, 0.605), (0.45, 0.635), (0.545, 0.695, 1), (0.44, 0.700),
                        (0.30, 0.685), (0.16, 0.700), (0.075, 0.735, 1), (0.085, 0.665), (0.15, 0.61)])
    else:
        brim = outline([(0.245, 0.598, 1), (0.36, 0.625), (0.47, 0.655), (0.55, 0.695, 1), (0.36, 0.703),
                        (0.18, 0.685), (0.050, 0.662, 1), (0.055, 0.640), (0.14, 0.610)])
    brim_mask = c.mask(brim)
    paint(c, brim_mask, skin.plain(s.rgb2) if blocked else skin, "puff", volume=0.9, turn=12, contact=0.5)
    stitched = [(0.5 + (x - 0.42) * k + (-0.08), 0.66 + (y - 0.66) * k) for k in (0.82,) for x, y in brim]
    c.line(seam, stitched, 0.0035, 0.6, 0.014, within=brim_mask)
    paint(c, c.mask(ellipse(0.557, 0.268, 0.022, 0.013)), skin.plain(s.rgb2) if blocked else skin.plain(),
          contact=0.3)
    emblem = s["emblem"]
    if emblem == "no emblem" or back:
        return
    ink = (0.96, 0.95, 0.92) if sum(s.rgb) < 1.7 else (0.16, 0.18, 0.26)
    if s.attributes.get("pattern", "solid") not in ("solid", "colour blocked"):
        paint(c, c.mask(ellipse(0.385, 0.49, 0.082, 0.088)), skin.plain(darker(ink,
                0.25) if sum(ink) > 2 else (0.96, 0.95, 0.92)), "thin", contact=0.35)
    x, y = 0.385, 0.49
    if emblem == "star":
        shape = [(x + 0.066 * (1.0 if i % 2 == 0 else 0.42) * math.sin(i * math.pi / 5),
                  y - 0.07 * (1.0 if i % 2 == 0 else 0.42) * math.cos(i * math.pi / 5)) for i in range(10)]
        shapes = [shape]
    elif emblem == "mountain":
        shapes = [[(x - 0.075, y + 0.05), (x - 0.025, y - 0.055), (x + 0.008, y + 0.002),
                   (x + 0.03, y - 0.032), (x + 0.075, y + 0.05)]]
    else:
        shapes = [band([(x - 0.045, y + 0.06), (x - 0.045, y - 0.06), (x, y + 0.015), (x + 0.045, y - 0.06),
                        (x + 0.045, y + 0.06)], 0.024)]
    paint(c, c.mask(*shapes), Surface("cotton", ink), "thin", volume=1.0, contact=0.4)

"""Things for the home: mugs, bottles, lamps, chairs, cushions, vases.

Round things are bodies of revolution: a profile from top to bottom, lit row by row as cylinders. The back
view of most of them is the front without what sits on one side.
"""

# Outlines are tables of points: one point a line would hide their shape.
# fmt: off
from __future__ import annotations

import math

import numpy as np

from research.synthetic.shop.draw import RGB, Array, Canvas, Point, band, ellipse, outline, rounded, smooth
from research.synthetic.shop.parts import darker, lighter, surface_of, thread
from research.synthetic.shop.spec import COLOURS, Spec
from research.synthetic.shop.surface import Surface, paint


def _turned(half: list[tuple[float, ...]], dip: float = 0.0) -> list[Point]:
    """Outline of a body of revolution from its right profile; `dip` rounds the bottom like a seen ellipse."""
    foot = half[-1]
    bottom = [(0.5 + (foot[0] - 0.5) * math.cos(a), foot[1] + dip * math.sin(a)) for a in np.linspace(0.15,
            math.pi - 0.15, 9)]
    left = [(1 - p[0], *p[1:]) for p in reversed(half)]
    return outline([*half, *bottom, *left])


def _mouth(c: Canvas, x: float, y: float, rx: float, ry: float, surface: Surface, inner: RGB,
           lip: float = 0.010) -> None:
    """Rim of a vessel: the lip as a ring, and the dark inside that is lit on the far wall."""
    if surface.material == "glass":  # two bright lips and the far wall between them
        far = c.mask(ellipse(x, y, rx, ry))
        paint(c, far, surface.plain(lighter(surface.rgb, 0.3)), "flat", contact=0)
        ring = c.mask(ellipse(x, y, rx, ry), holes=[ellipse(x, y, rx - 0.008, max(ry - 0.006, 0.002))])
        paint(c, ring, Surface("ceramic", lighter(surface.rgb, 0.45)), "thin", volume=0.8, contact=0)
        return
    hole = c.mask(ellipse(x, y, rx - lip, max(ry - lip * 0.75, 0.003)))
    paint(c, hole, Surface("paper", inner), "flat", contact=0)
    c.shade(hole * smooth(c.u, x + rx, x - rx) * 0.9, 0.45)
    ring = c.mask(ellipse(x, y, rx, ry), holes=[ellipse(x, y, rx - lip, max(ry - lip * 0.75, 0.003))])
    paint(c, ring, surface.plain(lighter(surface.rgb, 0.12)), "thin", volume=0.8, contact=0)


def mug(c: Canvas, s: Spec, back: bool) -> None:
    if back:
        c.look(c.camera @ np.array([[-1.0, 0, 1], [0, 1, 0], [0, 0, 1]]))
    skin = surface_of(s, 0.9, "across")
    shape = s["shape"]
    x0 = 0.44
    top, bottom, r = 0.285, 0.79, 0.235
    if shape == "straight":
        half = [(0.5 + r, top, 1), (0.5 + r, 0.55), (0.5 + r * 0.985, bottom - 0.03),
                (0.5 + r * 0.95, bottom, 1)]
    elif shape == "tapered":
        half = [(0.5 + r * 1.06, top, 1), (0.5 + r * 0.9, 0.55), (0.5 + r * 0.72, bottom - 0.02),
                (0.5 + r * 0.69, bottom, 1)]
    else:
        half = [(0.5 + r * 0.88, top, 1), (0.5 + r * 1.06, 0.46), (0.5 + r * 1.07, 0.60),
                (0.5 + r * 0.78, bottom - 0.01), (0.5 + r * 0.72, bottom, 1)]
    half = [(p[0] + x0 - 0.5, *p[1:]) for p in half]

    def edge(y: float) -> float:
        return float(np.interp(y, [p[1] for p in half], [p[0] for p in half]))

    hx = edge(0.5)
    handle_y0, handle_y1 = 0.385, 0.655
    if s["handle"] == "round handle":
        loop = outline([(edge(handle_y0) - 0.02, handle_y0), (hx + 0.09, handle_y0 - 0.005),
                        (hx + 0.155, 0.50), (hx + 0.10, 0.63), (edge(handle_y1) - 0.02, handle_y1)],
                        closed=False)
    else:
        loop = [(edge(handle_y0) - 0.02, handle_y0), (hx + 0.10, handle_y0),
                *ellipse(hx + 0.10, handle_y0 + 0.04, 0.04, 0.04, 270, 360),
                *ellipse(hx + 0.10, handle_y1 - 0.04, 0.04, 0.04, 0, 90), (edge(handle_y1) - 0.02, handle_y1)]
    paint(c, c.mask(band(loop, 0.05 if s["material"] != "enamel" else 0.04)), skin.plain(), "puff",
          volume=1.5, contact=0)
    foot = half[-1]
    arc = [(x0 + (foot[0] - x0) * math.cos(a), foot[1] + 0.032 * math.sin(a)) for a in np.linspace(0.15,
            math.pi - 0.15, 9)]
    body = outline([*half, *arc, *[(2 * x0 - p[0], *p[1:]) for p in reversed(half)]])
    mask = c.mask(body, ellipse(x0, top, half[0][0] - x0, 0.045))
    paint(c, mask, skin, "round", origin=(x0, 0.53), contact=0.3)
    if s["material"] == "stoneware":  # bare clay foot
        clay = c.mask(rounded(0, 0.735, 1, 0.9, 0.001)) * mask
        paint(c, clay, Surface("stoneware", (0.80, 0.67, 0.52)), "round", contact=0)
    inner = (0.93, 0.92, 0.90) if s["material"] in ("enamel", "ceramic") else darker(s.rgb, 0.8)
    if s["material"] == "glass":
        c.line(lighter(s.rgb, 0.75), outline([(edge(0.76) - 0.03, 0.765), (x0, 0.795),
                                              (2 * x0 - edge(0.76) + 0.03, 0.765)], closed=False), 0.006, 0.7)
    rim = skin.plain((0.20, 0.24, 0.36) if sum(s.rgb) > 1.2 else (0.92, 0.92,
            0.9)) if s["material"] == "enamel" else skin
    _mouth(c, x0, top, half[0][0] - x0, 0.045, rim, inner, 0.013)


def bottle(c: Canvas, s: Spec, back: bool) -> None:
    skin = surface_of(s, 0.8, "across")
    shape = s["shape"]
    if shape == "slim":
        half = [(0.5 + 0.062, 0.235, 1), (0.5 + 0.075, 0.27), (0.5 + 0.112, 0.345), (0.5 + 0.118, 0.42),
                (0.5 + 0.118, 0.86), (0.5 + 0.108, 0.89, 1)]
        neck, top = 0.062, 0.235
    elif shape == "wide mouth":
        half = [(0.5 + 0.128, 0.285, 1), (0.5 + 0.165, 0.335), (0.5 + 0.168, 0.40), (0.5 + 0.168, 0.85),
                (0.5 + 0.155, 0.885, 1)]
        neck, top = 0.128, 0.285
    else:
        half = [(0.5 + 0.052, 0.235, 1), (0.5 + 0.056, 0.315), (0.5 + 0.135, 0.375), (0.5 + 0.148, 0.43),
                (0.5 + 0.138, 0.86), (0.5 + 0.126, 0.888, 1)]
        neck, top = 0.052, 0.235
    clear = s["material"] == "glass"
    mask = c.mask(_turned(half, 0.016))
    if clear:  # water inside
        level = c.mask(rounded(0.2, 0.46, 0.8, 0.95, 0.001)) * c.mask(_turned([(0.5 + (p[0] - 0.5) * 0.9,
                *p[1:]) for p in half], 0.010))
        paint(c, level, Surface("glass", lighter(s.rgb, 0.35)), "round", contact=0)
    paint(c, mask, skin, "round", origin=(0.5, 0.60), contact=0)
    if not clear:
        c.line(darker(s.rgb, 0.6), [(0.5 - 0.2, 0.845), (0.5 + 0.2, 0.845)], 0.004, 0.6, within=mask)
    cap_rgb: RGB = (0.16, 0.16, 0.17) if sum(s.rgb) > 0.8 else (0.80, 0.81, 0.83)
    wood = clear and s["lid"] == "screw lid"
    lid = Surface("wood", (0.74, 0.55, 0.36)) if wood else Surface("plastic", cap_rgb)
    k = neck + 0.014
    if s["lid"] == "screw lid":
        paint(c, c.mask(_turned([(0.5 + k, top - 0.095, 1), (0.5 + k, top - 0.05),
                                 (0.5 + k, top + 0.012, 1)], 0.010)), lid, "round", contact=0.3)
        ridges = (np.abs(np.sin(np.arcsin(np.clip((c.u - 0.5) / k, -1, 1)) * 14)) * 0.004).astype(np.float32)
        grip = c.mask(rounded(0.5 - k, top - 0.062, 0.5 + k, top - 0.005, 0.004))
        if not wood:
            paint(c, grip, lid, "round", bump=ridges, contact=0)
        _lid_top(c, k, top - 0.095, lid)
    elif s["lid"] == "loop lid":
        ring = c.mask(ellipse(0.5, top - 0.098, 0.072, 0.07), holes=[ellipse(0.5, top - 0.098, 0.044, 0.042)])
        paint(c, ring, lid, "thin", volume=1.3, contact=0)
        paint(c, c.mask(_turned([(0.5 + k, top - 0.058, 1), (0.5 + k, top - 0.02),
                                 (0.5 + k, top + 0.012, 1)], 0.010)), lid, "round", contact=0.3)
    else:
        straw = outline([(0.5 + 0.012, top - 0.05), (0.5 + 0.012, top - 0.105), (0.5 + 0.045, top - 0.140),
                         (0.5 + 0.10, top - 0.148)], closed=False)
        paint(c, c.mask(band(straw, 0.036)), Surface("silicone",
                                                     lighter(cap_rgb,
                                                             0.35) if sum(cap_rgb) < 1 else darker(cap_rgb,
                                                                     0.75)), "puff", volume=1.2, contact=0)
        paint(c, c.mask(_turned([(0.5 + k * 0.75, top - 0.065, 1), (0.5 + k, top - 0.04),
                                 (0.5 + k, top + 0.012, 1)], 0.010)), lid, "round", contact=0.3)


def _lid_top(c: Canvas, k: float, y: float, lid: Surface) -> None:
    paint(c, c.mask(ellipse(0.5, y, k, 0.012)), lid.plain(lighter(lid.rgb, 0.12)), "flat", contact=0)


def lamp(c: Canvas, s: Spec, back: bool) -> None:
    skin = surface_of(s)
    base = s["base"]
    neck_y = 0.455
    if base == "round base":
        half = [(0.5 + 0.016, neck_y, 1), (0.5 + 0.020, 0.50), (0.5 + 0.09, 0.555), (0.5 + 0.155, 0.68),
                (0.5 + 0.12, 0.81), (0.5 + 0.072, 0.855), (0.5 + 0.085, 0.885, 1)]
    elif base == "column base":
        half = [(0.5 + 0.020, neck_y, 1), (0.5 + 0.045, 0.49), (0.5 + 0.042, 0.56), (0.5 + 0.048, 0.80),
                (0.5 + 0.070, 0.845, 1), (0.5 + 0.150, 0.855), (0.5 + 0.152, 0.885, 1)]
    else:
        half = [(0.5 + 0.022, neck_y, 1), (0.5 + 0.030, 0.49), (0.5 + 0.085, 0.54), (0.5 + 0.050, 0.62),
                (0.5 + 0.075, 0.68), (0.5 + 0.145, 0.76), (0.5 + 0.115, 0.85), (0.5 + 0.10, 0.886, 1)]
    c.line((0.25, 0.24, 0.24), outline([(0.5 + 0.08, 0.882), (0.68, 0.893), (0.80, 0.872), (0.90, 0.888)],
                                       closed=False), 0.007, 0.9)
    pole = c.mask(rounded(0.492, 0.36, 0.508, 0.50, 0.003))
    paint(c, pole, Surface("metal", (0.80, 0.68, 0.42)), "round", contact=0)
    paint(c, c.mask(_turned(half, 0.016)), skin, "round", contact=0.15)
    paint(c, c.mask(rounded(0.475, neck_y - 0.012, 0.525, neck_y + 0.012, 0.005)),
          Surface("metal", (0.80, 0.68, 0.42)), "round", contact=0.2)
    cloth = Surface("linen", COLOURS[s["shade colour"]], seed=s.style % 4)
    shade = s["shade"]
    if shade == "cone shade":
        profile = [(0.5 + 0.115, 0.10, 1), (0.5 + 0.18, 0.26), (0.5 + 0.245, 0.42, 1)]
        low, wide = 0.42, 0.245
    elif shade == "drum shade":
        profile = [(0.5 + 0.205, 0.13, 1), (0.5 + 0.212, 0.28), (0.5 + 0.218, 0.42, 1)]
        low, wide = 0.42, 0.218
    else:
        profile = [(0.5 + 0.02, 0.115), (0.5 + 0.12, 0.135), (0.5 + 0.205, 0.23), (0.5 + 0.248, 0.40, 1)]
        low, wide = 0.40, 0.248
    mask = c.mask(_turned(profile, 0.022))
    paint(c, mask, cloth, "round", volume=0.75, contact=0.35)
    far = ((c.u - 0.5) / 0.15) ** 2 + ((c.v - 0.32) / 0.13) ** 2
    glow = np.exp(-far) * mask * (0.08 if s["shade colour"] == "black" else 0.38)
    c.lift(glow, (1.0, 0.90, 0.66))
    trim = darker(cloth.rgb, 0.80) if s["shade colour"] != "black" else lighter(cloth.rgb, 0.18)
    c.line(trim, outline([(0.5 - wide + 0.003, low - 0.012), (0.5, low + 0.014),
                          (0.5 + wide - 0.003, low - 0.012)], closed=False), 0.008, 0.9, within=mask)
    if shade != "dome shade":
        y, r = profile[0][1], profile[0][0] - 0.5
        paint(c, c.mask(ellipse(0.5, y, r, 0.018)), Surface("paper", lighter(cloth.rgb, 0.45)), "flat",
              contact=0)
    else:
        paint(c, c.mask(ellipse(0.5, 0.108, 0.018, 0.018)), Surface("metal", (0.80, 0.68, 0.42)), contact=0.2)


def chair(c: Canvas, s: Spec, back: bool) -> None:
    """Seen from the front and a little from above and the left."""
    soft = s["material"] in ("velvet", "leather")
    skin = surface_of(s)
    wooden = Surface("wood", (0.52, 0.34, 0.20), seed=s.style % 4)
    frame = skin if s["material"] in ("wood", "metal") else wooden
    legs = s["legs"]
    thin = 0.014 if s["material"] == "metal" else 0.024
    seat_y, front_y, back_y = 0.585, 0.625, 0.545
    fl, fr, bl, br = (0.265, front_y), (0.735, front_y), (0.325, back_y), (0.70, back_y)
    iron = Surface("metal", (0.20, 0.20, 0.21)) if s["material"] not in ("metal",) else skin
    if legs == "tapered legs":
        for (px, py), foot in ((bl, (0.300, 0.845)), (br, (0.728, 0.845)), (fl, (0.232, 0.905)),
                               (fr, (0.768, 0.905))):
            leg = band([(px + (0.5 - px) * 0.08, py), foot], [0.042, 0.020])
            shade = 0.72 if py == back_y else 1.0
            paint(c, c.mask(leg), frame.plain(darker(frame.rgb, shade)), "puff", volume=1.2, contact=0)
    elif legs == "hairpin legs":
        for (px, py), foot in ((bl, (0.310, 0.845)), (br, (0.720, 0.845)), (fl, (0.245, 0.905)),
                               (fr, (0.755, 0.905))):
            for dx in (-0.035, 0.035):
                paint(c, c.mask(band([(px + dx + (0.5 - px) * 0.12, py), foot], 0.011)), iron, "thin",
                      contact=0)
    else:
        for front, rear, foot_f, foot_r in ((fl, bl, (0.245, 0.895), (0.315, 0.845)),
                                            (fr, br, (0.755, 0.895), (0.715, 0.845))):
            loop = outline([front, (*foot_f, 1), (*foot_r, 1), rear], closed=False)
            paint(c, c.mask(band(loop, 0.020)), iron if s["material"] != "wood" else frame, "thin",
                  volume=1.2, contact=0)
        paint(c, c.mask(band([(0.245, 0.893), (0.755, 0.893)], 0.016)),
              iron if s["material"] != "wood" else frame, "thin", contact=0)
    style = s["back"]
    top = 0.11
    posts = [((0.325, back_y + 0.01), (0.305, top + 0.03)), ((0.70, back_y + 0.01), (0.715, top + 0.03))]
    if style == "slatted back":
        for a, b in posts:
            paint(c, c.mask(band([a, b], thin * 1.5)), skin, "puff", volume=1.2, contact=0)
        for i in range(5):
            at = 0.375 + i * 0.0675
            paint(c, c.mask(band([(at, back_y), (at + (at - 0.51) * 0.08, top + 0.05)], thin * 0.95)), skin,
                  "puff", contact=0)
        rail = outline([(0.285, top + 0.075), (0.288, top + 0.012), (0.51, top - 0.018),
                        (0.732, top + 0.012), (0.735, top + 0.075), (0.51, top + 0.05)])
        paint(c, c.mask(rail), skin, "puff", volume=1.1, contact=0.3)
    elif style == "solid back":
        panel = outline([(0.32, back_y + 0.005, 1), (0.298, 0.33), (0.292, top + 0.05), (0.345, top),
                         (0.51, top - 0.012), (0.675, top), (0.728, top + 0.05), (0.722, 0.33),
                         (0.703, back_y + 0.005, 1)])
        panel_mask = c.mask(panel)
        bump = None
        if soft:  # three channels
            bump = (-np.exp(-(((np.abs(c.u - 0.51) - 0.068) / 0.008) ** 2)) * 0.012).astype(np.float32)
        paint(c, panel_mask, skin, "puff", volume=1.3 if soft else 0.8, bump=bump, contact=0)
    else:
        ring = outline([(0.315, back_y + 0.01, 1), (0.295, 0.33), (0.290, top + 0.06), (0.345, top),
                        (0.51, top - 0.012), (0.675, top), (0.730, top + 0.06), (0.725, 0.33),
                        (0.708, back_y + 0.01, 1)])
        hole_low = 0.36 if soft else 0.34
        hole = outline([(0.352, 0.47), (0.342, hole_low), (0.342, top + 0.085), (0.38, top + 0.055),
                        (0.51, top + 0.045), (0.64, top + 0.055), (0.68, top + 0.085), (0.68, hole_low),
                        (0.67, 0.47), (0.51, 0.475)])
        paint(c, c.mask(ring, holes=[hole]), skin, "puff", volume=1.3, contact=0)
    seat = outline([(0.248, 0.595), (0.30, 0.535), (0.40, 0.518), (0.62, 0.518), (0.725, 0.535),
                    (0.755, 0.595), (0.752, 0.632), (0.70, 0.655), (0.5, 0.662), (0.30, 0.655),
                    (0.25, 0.632)])
    seat_mask = c.mask(seat)
    paint(c, seat_mask, skin, "puff", volume=1.3 if soft else 0.7, contact=0.35)
    apron = c.mask(rounded(0.2, seat_y + 0.026, 0.8, 0.7, 0.001)) * seat_mask
    c.shade(apron * smooth(c.v, seat_y + 0.02, 0.655), 0.42)
    c.line(lighter(s.rgb, 0.3), outline([(0.262, 0.612), (0.40, 0.624), (0.6, 0.624), (0.742, 0.612)],
                                        closed=False), 0.005, 0.5, within=seat_mask)
    if s["arms"] == "armrests":
        for side in (1, -1):

            def x(v: float, side: int = side) -> float:
                return 0.505 + side * v

            post = band([(x(0.225), 0.60), (x(0.245), 0.425)], 0.026)
            paint(c, c.mask(post), frame, "puff", volume=1.2, contact=0.1)
            rest = outline([(x(0.205), 0.385), (x(0.235), 0.375), (x(0.268), 0.41), (x(0.272), 0.44),
                            (x(0.225), 0.442), (x(0.20), 0.41)])
            paint(c, c.mask(rest), skin if soft else frame, "puff", volume=1.4, contact=0.35)


def cushion(c: Canvas, s: Spec, back: bool) -> None:
    skin = surface_of(s, 1.1, "across")
    shape, edge = s["shape"], s["edge"]
    if shape == "round":
        body = ellipse(0.5, 0.5, 0.315, 0.315)
        corners: list[Point] = []
    else:
        w, h = (0.315, 0.315) if shape == "square" else (0.375, 0.225)
        body = outline(
            [
                (0.5 - w, 0.5 - h, 1),
                (0.5 - w * 0.5, 0.5 - h * 0.93),
                (0.5, 0.5 - h * 0.91),
                (0.5 + w * 0.5, 0.5 - h * 0.93),
                (0.5 + w, 0.5 - h, 1),
                (0.5 + w * 0.93, 0.5 - h * 0.5),
                (0.5 + w * 0.915, 0.5),
                (0.5 + w * 0.93, 0.5 + h * 0.5),
                (0.5 + w, 0.5 + h, 1),
                (0.5 + w * 0.5, 0.5 + h * 0.94),
                (0.5, 0.5 + h * 0.92),
                (0.5 - w * 0.5, 0.5 + h * 0.94),
                (0.5 - w, 0.5 + h, 1),
                (0.5 - w * 0.93, 0.5 + h * 0.5),
                (0.5 - w * 0.915, 0.5),
                (0.5 - w * 0.93, 0.5 - h * 0.5),
            ]
        )
        corners = [(0.5 + a * w, 0.5 + b * h) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    trim = skin.rgb2 if skin.pattern != "solid" else lighter(s.rgb,
            0.55) if sum(s.rgb) < 1.7 else darker(s.rgb, 0.6)
    if edge == "fringe":
        p = np.asarray(body)
        step = np.hypot(*np.diff(np.vstack([p, p[:1]]), axis=0).T)
        along = np.concatenate([[0], np.cumsum(step)])
        count = int(along[-1] / 0.017)
        closed = np.vstack([p, p[:1]])
        strands = []
        for i in range(count):
            t = i / count * along[-1]
            x, y = float(np.interp(t, along, closed[:, 0])), float(np.interp(t, along, closed[:, 1]))
            dx, dy = x - 0.5, y - 0.5
            if shape != "round":
                dx, dy = (math.copysign(1, dx), 0.12 * dy) if abs(dx / w) > abs(dy / h) else (0.12 * dx,
                        math.copysign(1, dy))
            k = 0.050 / math.hypot(dx, dy)
            strands.append(band([(x, y), (x + dx * k, y + dy * k + 0.004)], 0.009))
        paint(c, c.mask(*strands), Surface("cotton", trim), "thin", contact=0)
    if edge == "tassels":
        for x, y in corners:
            sx, sy = math.copysign(1, x - 0.5), math.copysign(1, y - 0.5)
            dx, dy = (0.80 * sx, 0.60 * sy) if sy < 0 else (0.62 * sx, 0.78)
            base, tip = (x + sx * 0.016, y + sy * 0.016), (x + dx * 0.105, y + dy * 0.105)
            tail = band([base, ((base[0] + tip[0]) / 2, (base[1] + tip[1]) / 2), tip], [0.018, 0.036, 0.050])
            paint(c, c.mask(tail), Surface("corduroy", trim), "puff", turn=math.degrees(math.atan2(-dx, dy)),
                  contact=0)
            paint(c, c.mask(ellipse(x + sx * 0.014, y + sy * 0.014, 0.021, 0.021)), Surface("cotton", trim),
                  contact=0)
    mask = c.mask(body)
    bump = np.zeros_like(c.alpha)
    for x, y in corners:
        dx, dy = (0.5 - x) * 0.55, (0.5 - y) * 0.55
        for spread in (-0.35, 0.35):
            ex, ey = dx - dy * spread, dy + dx * spread
            t = np.clip(((c.u - x) * ex + (c.v - y) * ey) / (ex * ex + ey * ey), 0, 1)
            far = (c.u - x - t * ex) ** 2 + (c.v - y - t * ey) ** 2
            bump -= np.exp(-far / 0.016**2) * (1 - t) * 0.010
    paint(c, mask, skin, "puff", volume=1.7, bump=bump.astype(np.float32), origin=(0.5, 0.5), contact=0.3)
    if edge == "piped edge":
        half = len(body) // 2
        piping = band(body[: half + 2], 0.020), band([*body[half - 1 :], *body[:2]], 0.020)
        paint(c, c.mask(*piping), Surface("cotton", trim), "thin", volume=1.2, contact=0.25)
    if shape == "round" and not back:
        paint(c, c.mask(ellipse(0.5, 0.5, 0.022, 0.022)), Surface("cotton", trim), volume=1.3, contact=0.7)
        spokes = [band([(0.5 + 0.03 * math.cos(a), 0.5 + 0.03 * math.sin(a)),
                        (0.5 + 0.11 * math.cos(a), 0.5 + 0.11 * math.sin(a))],
                        [0.008, 0.001]) for a in np.linspace(0, 2 * math.pi, 11)[:-1]]
        c.shade(c.mask(*spokes), 0.25)
    if back and shape != "round":
        c.line(thread(s.rgb), [(0.5 - 0.24, 0.5 + 0.12), (0.5 + 0.24, 0.5 + 0.12)], 0.006, 0.8)


def vase(c: Canvas, s: Spec, back: bool) -> None:
    skin = surface_of(s, 0.9, "across")
    shape = s["shape"]
    profiles: dict[str, list[tuple[float, ...]]] = {
        "bottle": [(0.5 + 0.062, 0.155, 1), (0.5 + 0.045, 0.20), (0.5 + 0.045, 0.40), (0.5 + 0.12, 0.52),
                   (0.5 + 0.185, 0.67), (0.5 + 0.165, 0.80), (0.5 + 0.115, 0.865, 1)],
        "bulb": [(0.5 + 0.10, 0.30, 1), (0.5 + 0.085, 0.345), (0.5 + 0.15, 0.41), (0.5 + 0.245, 0.56),
                 (0.5 + 0.225, 0.74), (0.5 + 0.13, 0.85), (0.5 + 0.12, 0.868, 1)],
        "cylinder": [(0.5 + 0.135, 0.185, 1), (0.5 + 0.133, 0.40), (0.5 + 0.133, 0.80),
                     (0.5 + 0.128, 0.865, 1)],
        "amphora": [(0.5 + 0.085, 0.145, 1), (0.5 + 0.062, 0.19), (0.5 + 0.066, 0.27), (0.5 + 0.155, 0.36),
                    (0.5 + 0.192, 0.49), (0.5 + 0.12, 0.70), (0.5 + 0.07, 0.80), (0.5 + 0.105, 0.868, 1)],
    }
    half = profiles[shape]
    if s["handle"] == "two handles":
        for side in (1, -1):

            def x(v: float, side: int = side) -> float:
                return 0.5 + side * v

            loops = {
                "bottle": [(x(0.035), 0.26), (x(0.13), 0.245), (x(0.175), 0.36), (x(0.12), 0.54)],
                "bulb": [(x(0.16), 0.42), (x(0.26), 0.385), (x(0.315), 0.48), (x(0.225), 0.60)],
                "cylinder": [(x(0.12), 0.30), (x(0.225), 0.295), (x(0.235), 0.42), (x(0.12), 0.47)],
                "amphora": [(x(0.05), 0.215), (x(0.165), 0.195), (x(0.225), 0.29), (x(0.165), 0.42)],
            }
            paint(c, c.mask(band(outline(loops[shape], closed=False), 0.032)), skin.plain(), "puff",
                  volume=1.4, contact=0)
    mask: Array = c.mask(_turned(half, 0.018))
    paint(c, mask, skin, "round", origin=(0.5, 0.58), contact=0.3)
    if s["material"] == "stoneware":
        clay = c.mask(rounded(0, 0.77, 1, 0.95, 0.001)) * mask
        paint(c, clay, Surface("stoneware", (0.80, 0.67, 0.52)), "round", contact=0)
    r = half[0][0] - 0.5
    _mouth(c, 0.5, half[0][1], r, 0.11 * r + 0.008, skin, darker(s.rgb, 0.32), 0.012)

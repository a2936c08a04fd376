"""Shoes in profile, toe to the left: sneakers, heels, boots. The back view is the mirrored inner side."""

# Outlines are tables of points: one point a line would hide their shape.
# fmt: off
from __future__ import annotations

import numpy as np

from research.synthetic.shop.draw import RGB, Canvas, Point, band, ellipse, outline, rounded
from research.synthetic.shop.parts import darker, lighter, surface_of, thread
from research.synthetic.shop.spec import Spec
from research.synthetic.shop.surface import Surface, paint

_FLIP = np.array([[-1.0, 0, 1], [0, 1, 0], [0, 0, 1]])


def _turn(c: Canvas, back: bool) -> None:
    if back:
        c.look(c.camera @ _FLIP)


def _laces(c: Canvas, rgb: RGB, start: Point, end: Point, count: int, reach: float, bow: bool = True) -> None:
    """Laces across a throat that runs from `start` up to `end`, with eyelets on the near side."""
    (x0, y0), (x1, y1) = start, end
    for i in range(count):
        t = i / (count - 1)
        x, y = x0 + (x1 - x0) * t, y0 + (y1 - y0) * t
        line = outline([(x + reach, y + reach * 0.85), (x, y - 0.006), (x - reach * 0.42, y - reach * 0.12)],
                       closed=False)
        paint(c, c.mask(band(line, 0.017)), Surface("cotton", rgb), "thin", contact=0.4)
        c.ink((0.25, 0.25, 0.27), ellipse(x + reach, y + reach * 0.85, 0.008, 0.008))
    if bow:
        loop = outline([(x1, y1), (x1 - 0.055, y1 - 0.02), (x1 - 0.06, y1 + 0.03), (x1 - 0.005, y1 + 0.012),
                        (x1 + 0.05, y1 + 0.055), (x1 + 0.066, y1 + 0.02)], closed=False)
        paint(c, c.mask(band(loop, 0.012)), Surface("cotton", rgb), "thin", contact=0.4)


def sneaker(c: Canvas, s: Spec, back: bool) -> None:
    _turn(c, back)
    blocked = s.attributes.get("pattern") == "colour blocked"
    skin = surface_of(s, 0.75, "down")
    if blocked:
        skin = skin.plain()
    high = s["shape"] == "high top"
    if high:
        upper = [(0.095, 0.69, 1), (0.10, 0.625), (0.17, 0.568), (0.30, 0.535), (0.40, 0.49), (0.50, 0.37),
                 (0.545, 0.235), (0.585, 0.205, 1), (0.62, 0.25), (0.72, 0.262), (0.825, 0.228, 1),
                 (0.845, 0.28), (0.842, 0.45), (0.875, 0.60), (0.87, 0.69, 1)]
        inner = [(0.60, 0.235), (0.70, 0.205), (0.82, 0.222), (0.78, 0.27), (0.65, 0.275)]
        throat = ((0.355, 0.515), (0.535, 0.265), 7)
    else:
        upper = [(0.095, 0.69, 1), (0.10, 0.625), (0.17, 0.568), (0.30, 0.535), (0.42, 0.475), (0.51, 0.39),
                 (0.565, 0.372, 1), (0.60, 0.425), (0.68, 0.468), (0.76, 0.445), (0.835, 0.375, 1),
                 (0.862, 0.43), (0.872, 0.56), (0.872, 0.69, 1)]
        inner = [(0.565, 0.385), (0.68, 0.402), (0.83, 0.378), (0.76, 0.46), (0.67, 0.48), (0.60, 0.44)]
        throat = ((0.345, 0.517), (0.515, 0.402), 5)
    top_y = throat[1][1]
    tongue = outline([(throat[1][0] - 0.03, top_y + 0.01), (throat[1][0] + 0.01, top_y - 0.055),
                      (throat[1][0] + 0.085, top_y - 0.045), (throat[1][0] + 0.10, top_y + 0.08),
                      (0.42, 0.53)])
    if s["closure"] != "slip-on":
        paint(c, c.mask(tongue), skin.plain(darker(s.rgb, 0.85)), volume=0.8)
    paint(c, c.mask(outline(inner)), Surface("cotton", (0.30, 0.29, 0.29) if sum(s.rgb) > 0.9 else (0.45,
            0.45, 0.47)), "flat")
    mask = c.mask(outline(upper))
    paint(c, mask, skin, volume=1.15, origin=(0.5, 0.55), contact=0.15)
    # panels: toe cap, heel counter, eyestay
    trim = skin.plain(s.rgb2) if blocked else skin.plain(darker(s.rgb, 0.9))
    toe = c.mask(outline([(0.06, 0.72, 1), (0.06, 0.54, 1), (0.20, 0.545, 1), (0.245, 0.60),
                          (0.235, 0.70, 1)])) * mask
    counter = c.mask(outline([(0.92, 0.72, 1), (0.92, 0.46, 1), (0.80, 0.50, 1), (0.735, 0.57),
                              (0.72, 0.70, 1)])) * mask
    leather = s["material"] != "canvas"
    for panel in (toe, counter):
        if blocked or leather:
            paint(c, panel, trim, "thin", volume=0.7, contact=0.3)
    if s["material"] == "canvas" and not blocked:  # rubber toe cap
        cap = c.mask(outline([(0.06, 0.73, 1), (0.06, 0.60, 1), (0.13, 0.59), (0.195, 0.625),
                              (0.20, 0.70, 1)])) * mask
        paint(c, cap, Surface("rubber", (0.94, 0.93, 0.90)), "thin", volume=0.8, contact=0.3)
    c.line(thread(s.rgb), outline([(0.26, 0.69), (0.33, 0.60), (0.55, 0.585), (0.735, 0.62)], closed=False),
           0.0035, 0.8, 0.014, within=mask)
    if (leather and not back) or blocked:
        swoosh = outline([(0.44, 0.665), (0.50, 0.60), (0.60, 0.555), (0.64, 0.555), (0.58, 0.60),
                          (0.53, 0.665)])
        paint(c, c.mask(swoosh) * mask, skin.plain(s.rgb2 if blocked else thread(s.rgb)), "thin", volume=0.5,
              contact=0.2)
    rubber = {"white sole": (0.95, 0.945, 0.93), "gum sole": (0.72, 0.48, 0.27),
              "black sole": (0.13, 0.13, 0.14)}[s["sole"]]
    sole = outline([(0.08, 0.70), (0.085, 0.668, 1), (0.15, 0.664), (0.32, 0.672), (0.55, 0.668),
                    (0.75, 0.655), (0.885, 0.648, 1), (0.895, 0.70), (0.88, 0.742, 1), (0.70, 0.746),
                    (0.45, 0.742), (0.16, 0.744), (0.095, 0.73)])
    paint(c, c.mask(sole), Surface("rubber", rubber), "thin", volume=0.9, contact=0.3)
    c.line(thread(rubber), outline([(0.085, 0.694), (0.32, 0.70), (0.55, 0.697), (0.89, 0.682)],
                                   closed=False), 0.004, 0.7)
    if s["closure"] == "lace-up":
        lace = (0.96, 0.96, 0.95) if sum(s.rgb) < 2.4 else (0.35, 0.36, 0.38)
        stay = outline([(throat[0][0] - 0.01, throat[0][1] - 0.005), (throat[1][0] + 0.005, top_y - 0.01),
                        (throat[1][0] + 0.055, top_y + 0.035), (throat[0][0] + 0.06, throat[0][1] + 0.05)],
                        closed=True, steps=4)
        paint(c, c.mask(stay) * mask, trim, "thin", volume=0.6, contact=0.3)
        _laces(c, lace, throat[0], throat[1], throat[2], 0.046)
    elif s["closure"] == "velcro":
        for t in (0.12, 0.42, 0.74) if high else (0.2, 0.72):
            x, y = (throat[0][i] + (throat[1][i] - throat[0][i]) * t for i in (0, 1))
            run = outline([(x - 0.022, y - 0.020), (x + 0.03, y - 0.004), (x + 0.085, y + 0.048),
                           (x + 0.118, y + 0.092)], closed=False)
            strap = band(run, 0.052)
            paint(c, c.mask(strap, ellipse(x + 0.116, y + 0.090, 0.026, 0.026)), trim, "flat", volume=1.2,
                  contact=0.5)
            patch = outline([(x + 0.062, y + 0.002), (x + 0.105, y + 0.046), (x + 0.128, y + 0.082)],
                            closed=False)
            c.line(thread(s.rgb), patch, 0.0035, 0.8, 0.014)
            c.line(thread(s.rgb), [(a - 0.032, b + 0.026) for a, b in patch], 0.0035, 0.8, 0.014)
    else:
        gore = c.mask(outline([(0.41, 0.50, 1), (0.50, 0.425, 1), (0.56, 0.49), (0.50, 0.565, 1)])) * mask
        ribs = (np.abs(np.sin((c.u + c.v) / 0.018 * np.pi)) * 0.006).astype(np.float32)
        paint(c, gore, Surface("cotton", darker(s.rgb, 0.55) if sum(s.rgb) > 0.7 else lighter(s.rgb, 0.25)),
              "thin", bump=ribs, contact=0.2)
    if not high:
        paint(c, c.mask(outline([(0.83, top_y - 0.03), (0.85, top_y - 0.045), (0.875, top_y + 0.02),
                                 (0.87, top_y + 0.09), (0.85, top_y + 0.09)])), trim, "thin", contact=0.2)


def heel(c: Canvas, s: Spec, back: bool) -> None:
    _turn(c, back)
    skin = surface_of(s)
    dark = Surface("leather" if s["material"] == "suede" else s["material"], darker(s.rgb, 0.8))
    kind, toe, strap = s["heel"], s["toe"], s["strap"] == "ankle strap"
    if strap:  # the far half of the loop
        ring = outline([(0.60, 0.345), (0.66, 0.315), (0.76, 0.310), (0.83, 0.335)], closed=False)
        paint(c, c.mask(band(ring, 0.026)), skin.plain(darker(s.rgb, 0.7)), "thin", contact=0)
    if kind == "stiletto":
        post = outline([(0.775, 0.585, 1), (0.868, 0.545, 1), (0.862, 0.66), (0.850, 0.795, 1),
                        (0.826, 0.795, 1), (0.822, 0.69)])
    elif kind == "block heel":
        post = outline([(0.715, 0.615, 1), (0.870, 0.545, 1), (0.868, 0.795, 1), (0.742, 0.795, 1),
                        (0.735, 0.70)])
    else:
        post = outline([(0.30, 0.786, 1), (0.45, 0.755), (0.60, 0.675), (0.74, 0.605), (0.870, 0.545, 1),
                        (0.868, 0.798, 1), (0.30, 0.80, 1)])
    cork = kind == "wedge" and s["material"] == "suede"
    body = Surface("straw", (0.80, 0.63, 0.42)) if cork else dark
    paint(c, c.mask(post), body, "round" if kind == "stiletto" else "puff", volume=0.8, contact=0)
    if kind != "wedge":
        tip = rounded(0.826 if kind == "stiletto" else 0.742, 0.788, 0.851 if kind == "stiletto" else 0.868,
                      0.800, 0.002)
        c.ink((0.16, 0.15, 0.15), tip)
    tip_x = {"pointed toe": 0.075, "round toe": 0.115, "open toe": 0.125}[toe]
    sole = outline([(tip_x + 0.01, 0.782, 1), (0.30, 0.785), (0.45, 0.755), (0.60, 0.675), (0.74, 0.605),
                    (0.872, 0.545, 1), (0.868, 0.57, 1), (0.75, 0.63), (0.60, 0.70), (0.46, 0.778),
                    (0.30, 0.803), (tip_x + 0.03, 0.80, 1)])
    lining = outline([(0.335, 0.675), (0.47, 0.612), (0.64, 0.50), (0.80, 0.395), (0.845, 0.392),
                      (0.80, 0.52), (0.62, 0.63), (0.48, 0.69)])
    paint(c, c.mask(lining), Surface("leather", (0.90, 0.80, 0.68)), "flat", contact=0)
    if toe == "pointed toe":
        front: list[tuple[float, ...]] = [(0.075, 0.786, 1), (0.16, 0.735), (0.26, 0.69)]
    elif toe == "round toe":
        front = [(0.118, 0.79, 1), (0.108, 0.755), (0.145, 0.705), (0.23, 0.668)]
    else:
        front = [(0.205, 0.79, 1), (0.185, 0.735), (0.205, 0.70), (0.25, 0.672)]
    if toe == "open toe":
        paint(c, c.mask(outline([(0.128, 0.79, 1), (0.13, 0.765), (0.20, 0.742), (0.24, 0.79, 1)])),
              Surface("leather", (0.90, 0.80, 0.68)), "flat")
    upper = outline([*front, (0.335, 0.668, 1), (0.42, 0.685), (0.56, 0.628), (0.69, 0.525), (0.79, 0.425),
                     (0.838, 0.385, 1), (0.868, 0.415), (0.880, 0.49), (0.873, 0.55, 1), (0.74, 0.61),
                     (0.60, 0.682), (0.46, 0.762), (0.30, 0.79, 1)])
    mask = c.mask(upper)
    paint(c, mask, skin, volume=1.1, contact=0.2)
    if toe == "open toe":
        c.ink((0.22, 0.15, 0.12), outline([(0.165, 0.782), (0.185, 0.752), (0.215, 0.745), (0.235, 0.775),
                                           (0.21, 0.79)]), opacity=0.55)
    paint(c, c.mask(sole), Surface("leather", darker(s.rgb, 0.5) if sum(s.rgb) > 0.6 else (0.55, 0.38,
            0.25)), "thin", volume=0.6, contact=0.2)
    edge = outline([(0.335, 0.672), (0.42, 0.689), (0.56, 0.632), (0.69, 0.529), (0.79, 0.429),
                    (0.838, 0.389)], closed=False)
    c.line(lighter(s.rgb, 0.35) if sum(s.rgb) < 1.6 else darker(s.rgb, 0.75), edge, 0.005, 0.7)
    if strap:
        near = outline([(0.60, 0.345), (0.645, 0.385), (0.74, 0.395), (0.815, 0.37), (0.835, 0.335)],
                       closed=False)
        paint(c, c.mask(band(outline([(0.842, 0.40), (0.832, 0.37), (0.836, 0.32)], closed=False), 0.036)),
              skin, "thin", contact=0.3)
        paint(c, c.mask(band(near, 0.027)), skin, "thin", contact=0.3)
        buckle = c.mask(rounded(0.700, 0.370, 0.748, 0.418, 0.008),
                        holes=[rounded(0.711, 0.381, 0.737, 0.407, 0.004)])
        paint(c, buckle, Surface("metal", (0.87, 0.74, 0.42)), "thin", contact=0.4)


def boot(c: Canvas, s: Spec, back: bool) -> None:
    _turn(c, back)
    skin = surface_of(s)
    knee = s["shaft"] == "knee high"
    rise = s["heel"] == "block heel"
    f = 0.8 if knee else 1.0  # a tall boot leaves less room for the foot
    floor = 0.862

    def x(v: float) -> float:
        return 0.5 + (v - 0.5) * f

    def y(v: float) -> float:
        return floor - (floor - v) * f

    top = 0.095 if knee else 0.30
    lift = 0.055 if rise else 0.0
    flare = 0.035 if knee else 0.0
    shaft_l, shaft_r = x(0.485), x(0.815)
    collar = outline([(shaft_l - flare, top, 1), ((shaft_l + shaft_r) / 2, top - 0.028),
                      (shaft_r + flare, top, 1), ((shaft_l + shaft_r) / 2, top + 0.03)])
    paint(c, c.mask(collar), Surface("cotton", darker(s.rgb, 0.38) if sum(s.rgb) > 0.6 else (0.36, 0.33,
            0.31)), "flat")
    upper = outline(
        [
            (x(0.088), y(0.815), 1),
            (x(0.085), y(0.745)),
            (x(0.14), y(0.675)),
            (x(0.27), y(0.645)),
            (x(0.40), y(0.595)),
            (x(0.475), y(0.50)),
            (shaft_l, (y(0.50) + top) / 2),
            (shaft_l - flare, top, 1),
            ((shaft_l + shaft_r) / 2, top + 0.026),
            (shaft_r + flare, top, 1),
            (shaft_r + 0.006, (y(0.50) + top) / 2),
            (x(0.822), y(0.55)),
            (x(0.865), y(0.70 - lift * 0.5)),
            (x(0.862), y(0.815 - lift), 1),
        ]
    )
    mask = c.mask(upper)
    height = np.zeros_like(c.alpha)
    for k, (x0, y0, x1, y1) in enumerate(((0.46, 0.60, 0.60, 0.55), (0.50, 0.53, 0.62, 0.525),
                                          (0.83, 0.58, 0.72, 0.55))):
        dx, dy = x(x1) - x(x0), y(y1) - y(y0)
        t = np.clip(((c.u - x(x0)) * dx + (c.v - y(y0)) * dy) / (dx * dx + dy * dy), 0, 1)
        far = (c.u - x(x0) - t * dx) ** 2 + (c.v - y(y0) - t * dy) ** 2
        height -= np.exp(-far / (0.013 - k * 0.002) ** 2) * (1 - 0.8 * t) * 0.010
    paint(c, mask, skin, volume=1.2, bump=height.astype(np.float32) if s["material"] != "rubber" else None,
          contact=0.1)
    rubber = (0.15, 0.14, 0.14) if s["material"] != "rubber" else darker(s.rgb, 0.62)
    if s["material"] in ("suede", "leather") and not rise and s["closure"] == "lace-up":
        rubber = (0.80, 0.62, 0.38) if sum(s.rgb) > 1.0 and s["material"] == "suede" else rubber
    under = [
        (x(0.075), y(0.835)),
        (x(0.082), y(0.805), 1),
        (x(0.30), y(0.808)),
        (x(0.52), y(0.806 - lift * 0.55)),
        (x(0.70), y(0.80 - lift)),
        (x(0.868), y(0.80 - lift), 1),
        (x(0.872), y(0.86), 1),
        (x(0.645), y(0.86), 1),
        (x(0.630), y(0.835 - lift * 0.5)),
        (x(0.50), y(0.848 - lift * 0.4)),
        (x(0.40), y(0.86)),
        (x(0.12), y(0.86)),
        (x(0.085), y(0.852)),
    ]
    paint(c, c.mask(outline(under)), Surface("rubber", rubber), "thin", contact=0.3)
    if rise:
        block = outline([(x(0.650), y(0.80), 1), (x(0.872), y(0.775), 1), (x(0.862), floor, 1),
                         (x(0.665), floor, 1)])
        paint(c, c.mask(block), Surface("rubber", lighter(rubber, 0.05)), "puff", contact=0.2)
        c.line(lighter(rubber, 0.25), [(x(0.655), y(0.80)), (x(0.872), y(0.79))], 0.004, 0.8)
    c.line(thread(s.rgb), outline([(x(0.09), y(0.795)), (x(0.30), y(0.797)),
                                   (x(0.52), y(0.793 - lift * 0.55)), (x(0.865), y(0.788 - lift))],
                                   closed=False), 0.0035, 0.8, 0.013)
    c.line(thread(s.rgb), outline([(x(0.86), y(0.64)), (x(0.74), y(0.635)), (x(0.66), y(0.72)),
                                   (x(0.655), y(0.80))], closed=False), 0.0035, 0.8, 0.013, within=mask)
    if s["closure"] == "lace-up":
        lace = (0.92, 0.90, 0.86) if sum(s.rgb) < 1.2 else (0.25, 0.22, 0.2)
        start = (x(0.335), y(0.61))
        mid = (x(0.468), y(0.485))
        _laces(c, lace, start, mid, 4, 0.05 * f, bow=False)
        _laces(c, lace, (shaft_l + 0.001, mid[1] - 0.04), (shaft_l - flare * 0.7, top + 0.04),
               8 if knee else 4, 0.05 * f)
    elif s["closure"] == "zip":
        zx = x(0.66)
        line = outline([(zx, top + 0.045), (zx, y(0.60)), (x(0.64), y(0.77))], closed=False)
        c.line(darker(s.rgb, 0.5), line, 0.026, 0.95)
        c.line((0.84, 0.82, 0.75), line, 0.012, 1.0, 0.013)
        paint(c, c.mask(rounded(zx - 0.011, top + 0.05, zx + 0.011, top + 0.115, 0.006)),
              Surface("metal", (0.83, 0.82, 0.78)), contact=0.5)
    else:
        for px in (shaft_l + 0.045, shaft_r - 0.05):
            loop = outline([(px - 0.015, top + 0.075), (px - 0.015, top - 0.025), (px + 0.015, top - 0.025),
                            (px + 0.015, top + 0.075)], closed=False)
            paint(c, c.mask(band(loop, 0.013)), skin.plain(thread(s.rgb)), "thin", contact=0.3)
        if s["material"] == "rubber":
            paint(
                c,
                c.mask(outline([(shaft_l - flare - 0.004, top + 0.002, 1),
                                ((shaft_l + shaft_r) / 2, top + 0.032),
                                (shaft_r + flare + 0.004, top + 0.002, 1), (shaft_r + flare, top + 0.035, 1),
                                ((shaft_l + shaft_r) / 2, top + 0.066), (shaft_l - flare, top + 0.035, 1)])),
                skin.plain(darker(s.rgb, 0.8)),
                "thin",
                contact=0.2,
            )
        else:
            gore = c.mask(outline([(x(0.60), top + 0.02, 1), (x(0.73), top + 0.02, 1), (x(0.70), y(0.57)),
                                   (x(0.63), y(0.57))])) * mask
            ribs = (np.abs(np.sin(c.u / 0.016 * np.pi)) * 0.006).astype(np.float32)
            paint(c, gore, Surface("cotton", darker(s.rgb, 0.55) if sum(s.rgb) > 0.7 else lighter(s.rgb,
                    0.22)), "thin", bump=ribs, contact=0.2)

"""Backgrounds and people-free props of the simulated creatives.

Every background has numbered styles (tint, pattern, scene), of which `construction.styles` keeps some for
validation and test. From number `DRAWN` on, tints, colourways and figures are drawn from the number itself,
for training alone: who has seen five patterns knows five patterns, and not what a pattern is (domain
randomisation, 1703.06907). None of their figures is one that is kept. Props are small drawings of everyday
things. Sprites and backgrounds are cached, for a stream of creatives uses some of them again and again.
Pixels follow from the arguments alone.
"""

from __future__ import annotations

import colorsys
import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from research.synthetic.campaigns.construction import DRAWN
from research.synthetic.shop.photo import backdrop

Colour = tuple[int, int, int]

_PLAIN: tuple[Colour, ...] = (
    (240, 214, 205), (205, 222, 238), (212, 231, 210), (244, 230, 190), (226, 212, 238), (250, 205, 170),
    (190, 220, 220), (222, 214, 202), (206, 206, 212), (245, 190, 200), (172, 202, 232), (198, 214, 160),
    (238, 200, 226), (180, 226, 205), (232, 205, 150), (196, 200, 240),
)  # fmt: skip
_DARK: tuple[Colour, ...] = (
    (34, 36, 42), (22, 32, 58), (20, 46, 40), (58, 22, 34), (46, 34, 26), (44, 26, 58),
    (16, 48, 60), (60, 40, 20), (30, 30, 30), (40, 46, 30),
)  # fmt: skip
_WARM = ((0, 0, 0), (0, -1, -3), (-3, -1, 0), (-1, -1, -2), (-2, -1, -1), (-1, -2, -1))
_WAYS: tuple[tuple[Colour, Colour, Colour], ...] = (  # ground and two figures that stand out from it
    ((250, 236, 200), (226, 82, 60), (40, 110, 140)),
    ((40, 70, 130), (250, 205, 60), (240, 240, 240)),
    ((235, 110, 140), (255, 240, 235), (90, 30, 80)),
    ((60, 140, 110), (245, 235, 190), (230, 120, 50)),
)
_PATTERNS = ("stripes", "checks", "dots", "zigzag", "confetti")  # of training: each in all colourways
_RESERVED = ("rings", "diamonds")  # of validation, of test; five colourways each
_RESERVED_WAYS: tuple[tuple[Colour, Colour, Colour], ...] = (
    ((245, 225, 235), (200, 50, 110), (60, 60, 120)),
    ((30, 110, 120), (250, 190, 90), (235, 245, 240)),
    ((250, 215, 90), (60, 60, 70), (220, 80, 60)),
    ((225, 238, 248), (40, 90, 190), (240, 140, 60)),
    ((90, 50, 110), (240, 170, 200), (250, 225, 120)),
)

_FIGURES = (  # of drawn styles, beside those of training
    "triangles", "pentagons", "hexagons", "stars", "crosses", "frames", "bricks", "waves", "domes",
)  # fmt: skip
_CORNERS = {"triangles": 3, "pentagons": 5, "hexagons": 6, "stars": 10}


def background(name: str, style: int, size: tuple[int, int], horizon: float, standing: bool) -> Image.Image:
    """A new RGB picture of `size` (width, height). A table begins at `horizon` (0 … 1 of the height)."""
    if name == "plain":
        return Image.new("RGB", size, _PLAIN[style] if style < DRAWN else _pale(_rng(style)))
    # Few horizons are told apart, so that scenes come from the cache; the others do not depend on it.
    step = round(horizon * 12) / 12 if name == "scene" and standing else 0.0
    return _background(name, style, size, step, standing and name == "scene").copy()


@lru_cache(maxsize=160)
def _background(name: str, style: int, size: tuple[int, int], horizon: float, standing: bool) -> Image.Image:
    width, height = size
    if name == "busy":
        return _busy(style, size)
    if name == "scene":
        side = max(size)
        top = (side - height) // 2
        pixels = backdrop("scene", side, 100 + style, (top + horizon * height) / side, standing)
        left = (side - width) // 2
        pixels = pixels[top : top + height, left : left + width] * 255
        return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))
    x = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    drawn, rng = style >= DRAWN, _rng(style)
    if name == "white":
        warm = _WARM[style] if not drawn else rng.uniform(-3, 0, 3)
        glow = 1 - 0.035 * ((x - 0.5) ** 2 + (y - 0.5) ** 2) * (1 + style % 3)
        pixels = 254 * glow[..., None] + np.array(warm)
    elif name == "dark":
        tone = _DARK[style] if not drawn else _colour(rng, (0.1, 0.7), (0.1, 0.26))
        glow = np.exp(-((x - 0.5) ** 2 + (y - 0.45) ** 2) / 0.35)[..., None]
        pixels = np.array(tone, np.float32) * (0.65 + 0.75 * glow)
    else:
        second = style * 7 + 3 + style // 16 * 5  # the last four are other mixtures than the first four
        ends = (_pale(rng), _pale(rng)) if drawn else (_PLAIN[style % 16], _PLAIN[second % 16])
        one, other = (np.array(end, np.float32) for end in ends)
        angle = float(rng.uniform(0, math.tau)) if drawn else (0.0, 0.6, 1.57, 2.4)[style % 4]
        along = (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle) + 0.5
        share = np.clip(along, 0, 1)[..., None]
        pixels = (one * 0.86) * (1 - share) + np.minimum(other * 1.08, 255) * share
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def _rng(style: int) -> np.random.Generator:
    return np.random.default_rng([style, 61])


def _colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Colour:
    r, g, b = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return round(255 * r), round(255 * g), round(255 * b)


def _pale(rng: np.random.Generator) -> Colour:
    return _colour(rng, (0.05, 0.4), (0.78, 0.98))


def _way(rng: np.random.Generator) -> tuple[Colour, Colour, Colour]:
    """A ground and two figures that stand out from it."""
    ground = _colour(rng, (0.05, 0.8), (0.3, 1.0))
    figures = list[Colour]()
    while len(figures) < 2:
        figure = _colour(rng, (0.05, 0.85), (0.2, 1.0))
        if sum(abs(a - b) for a, b in zip(figure, ground, strict=True)) > 180:
            figures.append(figure)
    return ground, figures[0], figures[1]


def _busy(style: int, size: tuple[int, int]) -> Image.Image:
    trained, cell = len(_PATTERNS) * len(_WAYS), 88
    if style >= DRAWN:
        rng = _rng(style)
        pattern, way = (*_PATTERNS, *_FIGURES)[style % (len(_PATTERNS) + len(_FIGURES))], _way(rng)
        cell = 2 * int(rng.integers(30, 60))
    elif style < trained:
        pattern, way = _PATTERNS[style % len(_PATTERNS)], _WAYS[style // len(_PATTERNS)]
    else:
        pattern = _RESERVED[(style - trained) // len(_RESERVED_WAYS)]
        way = _RESERVED_WAYS[(style - trained) % len(_RESERVED_WAYS)]
    width, height = size[0] * 2, size[1] * 2  # drawn at twice the size against stair steps
    picture = Image.new("RGB", (width, height), way[0])
    pen = ImageDraw.Draw(picture)
    if pattern == "stripes":
        for k, x in enumerate(range(-height, width + cell, cell // 2)):
            if k % 2:
                slant = [(x, height), (x + height, 0), (x + height + cell // 2, 0), (x + cell // 2, height)]
                pen.polygon(slant, way[1 + k // 2 % 2])
    elif pattern == "confetti":
        rng = np.random.default_rng(style)
        for _ in range(width * height // 5200):
            u, v, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(9, 22)
            turn = rng.uniform(0, math.tau)
            corners = [
                (u + r * math.cos(turn + a), v + 0.6 * r * math.sin(turn + a)) for a in (0, 1, 3.1, 4.1)
            ]
            pen.polygon(corners, way[1 + int(rng.integers(2))])
    else:
        for row in range(-1, height // cell + 2):
            for column in range(-1, width // cell + 2):
                _tile(pen, pattern, row, column, cell, way)
    return picture.reduce(2)


def _tile(
    pen: ImageDraw.ImageDraw, pattern: str, row: int, column: int, cell: int, way: tuple[Colour, ...]
) -> None:
    ink = way[1 + (row + column) % 2]
    x, y = float(column * cell), float(row * cell)
    half = cell // 2
    shift = half if row % 2 else 0  # of every second row, where a pattern has it
    if pattern == "checks":
        if (row + column) % 2:
            pen.rectangle((x, y, x + cell - 1, y + cell - 1), way[1])
        elif row % 2:
            quarter = cell // 4
            pen.rectangle((x + quarter, y + quarter, x + cell - quarter - 1, y + cell - quarter - 1), way[2])
    elif pattern == "dots":
        pen.ellipse((x + shift, y, x + shift + cell * 0.6, y + cell * 0.6), ink)
    elif pattern == "zigzag":
        points = [(x, y), (x + half, y + half), (x + cell, y)]
        pen.line(points, way[1 + row % 2], width=cell // 4, joint="curve")
    elif pattern == "rings":
        pen.ellipse((x + shift, y, x + shift + cell * 0.85, y + cell * 0.85), outline=ink, width=12)
    elif pattern == "diamonds":
        x += shift
        pen.polygon([(x + half, y), (x + cell - 6, y + half), (x + half, y + cell), (x + 6, y + half)], ink)
    elif pattern in _CORNERS:
        turn, r = 0.4 * (row % 3), 0.42 * cell
        count = _CORNERS[pattern]
        reach = [r * (0.45 if pattern == "stars" and k % 2 else 1) for k in range(count)]
        angles = [turn + math.tau * k / count for k in range(count)]
        corners = [
            (x + half + far * math.sin(a), y + half - far * math.cos(a))
            for far, a in zip(reach, angles, strict=True)
        ]
        pen.polygon(corners, ink)
    elif pattern == "crosses":
        thick = cell // 10
        pen.rectangle((x + half - thick, y + thick, x + half + thick, y + cell - thick), ink)
        pen.rectangle((x + thick, y + half - thick, x + cell - thick, y + half + thick), ink)
    elif pattern == "frames":
        edge = cell // 7
        pen.rectangle((x + edge, y + edge, x + cell - edge, y + cell - edge), outline=ink, width=cell // 9)
    elif pattern == "bricks":
        x += shift
        pen.rectangle((x + 4, y + cell // 4, x + cell - 5, y + cell - cell // 4), ink)
    elif pattern == "waves":
        points = [(x + cell * k / 8, y + half + cell / 4 * math.sin(math.tau * k / 8)) for k in range(9)]
        pen.line(points, way[1 + row % 2], width=cell // 5, joint="curve")
    else:  # domes
        x += shift
        pen.pieslice((x, y + cell // 5, x + cell - 6, y + cell // 5 + cell - 6), 180, 360, fill=ink)


# --- props ----------------------------------------------------------------------------------------------

PROPS = ("sprig", "pebbles", "box", "ball", "books", "flower", "pot", "candle")
_TINTS: tuple[tuple[Colour, Colour], ...] = (
    ((96, 138, 92), (214, 120, 92)),
    ((120, 150, 110), (92, 126, 170)),
    ((84, 120, 100), (226, 182, 90)),
    ((140, 156, 98), (178, 108, 140)),
)


@lru_cache(maxsize=64)
def prop(name: str, tint: int) -> Image.Image:
    """One prop on a transparent square of 192 px; its foot is at the lower edge."""
    n = 384
    picture = Image.new("RGBA", (n, n))
    pen = ImageDraw.Draw(picture)
    green, colour = _TINTS[tint % len(_TINTS)]
    shade = tuple(int(v * 0.74) for v in colour)
    light = tuple(int(v + (255 - v) * 0.5) for v in colour)
    pen.ellipse((60, 340, 324, 383), fill=(0, 0, 0, 46))
    if name == "sprig":
        pen.line([(190, 370), (200, 200), (180, 40)], tuple(int(v * 0.7) for v in green), 9, "curve")
        for k in range(6):
            y, side = 320 - 50 * k, -1 if k % 2 else 1
            _leaf(
                pen,
                194,
                y,
                side * (0.9 - 0.05 * k),
                112 - 9 * k,
                green if k % 3 else tuple(int(v * 0.85) for v in green),
            )
    elif name == "pebbles":
        for x0, y0, x1, y1, grey in (
            (40, 250, 210, 376, 150),
            (170, 280, 340, 378, 178),
            (120, 190, 260, 290, 200),
        ):
            pen.ellipse((x0, y0, x1, y1), fill=(grey, grey - 5, grey - 12))
            pen.ellipse((x0 + 24, y0 + 16, x0 + 80, y0 + 44), fill=(grey + 26, grey + 22, grey + 16))
    elif name == "box":
        pen.rectangle((70, 170, 314, 376), fill=colour)
        pen.rectangle((56, 140, 328, 196), fill=light)
        pen.rectangle((172, 140, 212, 376), fill=(250, 244, 230))
        for side in (-1, 1):
            pen.ellipse(
                (192 + side * 52 - 48, 78, 192 + side * 52 + 48, 146), outline=(250, 244, 230), width=18
            )
    elif name == "ball":
        for k in range(12):
            share = k / 11
            tone = tuple(int(s * (1 - share) + t * share) for s, t in zip(shade, light, strict=True))
            r = 150 * (1 - share * 0.82)
            u, v = 192 - share * 46, 226 - share * 52
            pen.ellipse((u - r, v - r, u + r, v + r), fill=tone)
    elif name == "books":
        for k, tone in enumerate((shade, light, colour, green)):
            top = 312 - 62 * k
            pen.rounded_rectangle((40 + 14 * k, top, 340 - 10 * k, top + 60), 10, fill=tone)
            pen.rectangle((300 - 10 * k, top + 10, 340 - 10 * k, top + 50), fill=(246, 240, 226))
    elif name == "flower":
        pen.line([(192, 372), (186, 190)], green, 12)
        _leaf(pen, 190, 320, 0.7, 110, green)
        for k in range(7):
            a = k * math.tau / 7
            u, v = 186 + 70 * math.cos(a), 120 + 70 * math.sin(a)
            pen.ellipse((u - 52, v - 52, u + 52, v + 52), fill=light if k % 2 else colour)
        pen.ellipse((142, 76, 230, 164), fill=(236, 190, 70))
    elif name == "pot":
        for k in range(7):
            _leaf(
                pen,
                192,
                230,
                (k - 3) * 0.42,
                190 - 12 * abs(k - 3),
                green if k % 2 else tuple(int(v * 0.8) for v in green),
                True,
            )
        pen.polygon([(96, 222), (288, 222), (262, 376), (122, 376)], fill=colour)
        pen.rectangle((84, 206, 300, 244), fill=light)
    else:
        pen.rectangle((120, 150, 264, 376), fill=(244, 236, 220))
        pen.rectangle((216, 150, 264, 376), fill=(224, 212, 192))
        pen.ellipse((120, 130, 264, 172), fill=(250, 246, 234))
        pen.line([(192, 150), (192, 112)], (70, 60, 50), 8)
        pen.polygon([(192, 34), (222, 96), (192, 124), (162, 96)], fill=(250, 178, 60))
    return picture.reduce(2)


def _leaf(
    pen: ImageDraw.ImageDraw, x: float, y: float, turn: float, length: float, tone: tuple[int, ...],
    upright: bool = False,
) -> None:  # fmt: skip
    """A leaf from (x, y); `turn` leans it to a side, in radians from the horizontal or the vertical."""
    if upright:
        angle = -math.pi / 2 + turn
    else:
        angle = -0.6 if turn > 0 else math.pi + 0.6
        length *= abs(turn)
    ax, ay = math.cos(angle), math.sin(angle)
    points = []
    for k in range(13):
        t = k / 12
        wide = 0.2 * math.sin(math.pi * t) * length
        points.append((x + ax * t * length - ay * wide, y + ay * t * length + ax * wide))
    for k in range(12, -1, -1):
        t = k / 12
        wide = -0.2 * math.sin(math.pi * t) * length
        points.append((x + ax * t * length - ay * wide, y + ay * t * length + ax * wide))
    pen.polygon(points, fill=tone)

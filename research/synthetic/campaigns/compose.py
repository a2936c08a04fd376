"""From a `Construction` to a picture: background, props, product, words, badge.

The layout follows from the construction: words that do not cover the product get a strip of their own (in the
wide format beside a product that stands to one side, the other half), the product gets the rest. Letters are
at least `LETTER` px high, so that they survive shrinking to 256 px. The only font is the one that Pillow
brings, so no system font is needed; weight and capitals vary it. Pixels follow from the construction and
from the version of Pillow, nothing else.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from research.synthetic.campaigns.construction import Construction, item
from research.synthetic.campaigns.scenery import PROPS, background, prop
from research.synthetic.shop.draw import Light
from research.synthetic.shop.photo import SHAPES, View, render

Colour = tuple[int, int, int]

SIZES: dict[str, tuple[int, int]] = {"1:1": (384, 384), "4:5": (344, 430), "1.91:1": (520, 272)}  # px
LETTER = 31  # least size of the words in px: capitals are then 22 px high
_LARGEST = 48
_STRIP = 0.22  # share of the height that words beside the product get
_SCALE = {"small": 0.40, "medium": 0.60, "large": 0.84}  # of the room that the product could have
_HIDDEN = 0.34  # share of its box that a cropped product loses
_ACCENTS: tuple[Colour, ...] = ((178, 24, 44), (20, 70, 160), (14, 104, 72), (112, 36, 132), (168, 72, 8))
_INK: tuple[Colour, Colour] = ((24, 24, 28), (252, 252, 250))


class Box(NamedTuple):
    """Pixels: left, top, right, bottom."""

    left: int
    top: int
    right: int
    bottom: int


class Plan(NamedTuple):
    """Where things are."""

    size: tuple[int, int]
    product: Box  # of the whole product, which may reach out of the picture
    words: Box | None  # room for the words
    foot: int  # lowest line of the product


@lru_cache(maxsize=48)
def _cutout(key: tuple[Any, ...], colour: str) -> Image.Image:
    """The product on a transparent ground, as large as it gets and cut to its outline."""
    product = item(*key)
    rng = np.random.default_rng([key[0], 33, key[2]])
    light = Light(rng.uniform(-0.55, -0.3), rng.uniform(-0.7, -0.5), rng.uniform(0.7, 0.9))
    layer = render(product.spec(colour), View("front", yaw=product.yaw, light=light), 416)
    box = layer.getchannel("A").point(lambda a: 255 * (a > 24)).getbbox()
    return layer.crop(box)


def plan(construction: Construction) -> Plan:
    """The layout of a creative; draws no more than the product alone."""
    c = construction
    width, height = SIZES[c.format]
    wide = width > 1.5 * height
    jitter = np.random.default_rng([c.seed, 1]).uniform(-1, 1, 3)
    left, top, right, bottom = 0, 0, width, height
    words: Box | None = None
    margin = round(0.03 * min(width, height))
    if c.says and c.covers == "no":
        strip = round(_STRIP * height)
        if wide and c.position != "centre":
            half = round(0.54 * width)
            words = Box(half, margin, width - margin, height - margin)
            if c.position == "right":
                words = Box(margin, margin, width - half, height - margin)
        elif c.place == "top":
            words, top = Box(margin, margin, width - margin, strip), strip
        else:
            words, bottom = Box(margin, height - strip, width - margin, height - margin), height - strip
    cutout = _cutout(c.item, c.colour)
    # The room is that of a picture without words: adding words moves the product, but never shrinks it.
    room = (0.56 if wide else 0.92) * width, (1 - _STRIP) * height / 0.86
    fit = _SCALE[c.scale] * (1 + 0.02 * jitter[0])
    factor = min(fit * room[0] / cutout.width, fit * room[1] / cutout.height)
    factor = min(factor, (bottom - top - 10) / cutout.height) if c.crop == "whole" else factor
    w, h = round(cutout.width * factor), round(cutout.height * factor)
    x = (left + right - w) / 2 + jitter[1] * 0.01 * width
    if c.position == "left":
        x = 0.04 * width
    elif c.position == "right":
        x = 0.96 * width - w
    y = (
        top
        + (bottom - top - h) * (0.62 if SHAPES[c.product.kind].stands else 0.5)
        + jitter[2] * 0.01 * height
    )
    if c.crop == "cropped":
        if c.position == "left":
            x = -_HIDDEN * w
        elif c.position == "right":
            x = width - (1 - _HIDDEN) * w
        elif c.says and c.covers == "no" and c.place == "bottom":
            y = -_HIDDEN * h
        else:
            y = height - (1 - _HIDDEN) * h
    elif c.says and c.covers == "yes":
        y = min(max(y, 0), height - h)
    product = Box(round(x), round(y), round(x) + w, round(y) + h)
    return Plan((width, height), product, words, product.bottom)


def draw(construction: Construction) -> Image.Image:
    """The creative as an RGB picture of the size of its format (`SIZES`)."""
    c = construction
    where = plan(c)
    height = where.size[1]
    shape = SHAPES[c.product.kind]
    box = where.product
    horizon = min(0.92, max(0.3, (where.foot - 0.12 * (box.bottom - box.top)) / height))
    picture = background(c.background, c.style, where.size, horizon, shape.stands)
    cutout = _cutout(c.item, c.colour).resize(
        (box.right - box.left, box.bottom - box.top), Image.Resampling.BICUBIC, reducing_gap=2.0
    )
    if c.props == "clutter":
        _clutter(picture, c, where, behind=True)
    _shadow(picture, cutout, box, shape.stands)
    picture.paste(cutout, (box.left, box.top), cutout)
    if c.props == "clutter":
        _clutter(picture, c, where, behind=False)
    elif c.props == "few":
        _few(picture, c, where)
    if c.says:
        _words(picture, c, where)
    if c.badge != "none":
        _badge(picture, c, where)
    return picture


# --- product and props ----------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _spot() -> Image.Image:
    y, x = np.mgrid[-1:1:48j, -1:1:192j]
    return Image.fromarray((150 * np.clip(1 - np.sqrt(x * x + y * y), 0, 1) ** 0.8).astype(np.uint8))


def _shadow(picture: Image.Image, cutout: Image.Image, box: Box, stands: bool) -> None:
    w, h = cutout.size
    if stands:
        spot = _spot().resize((max(2, round(w * 1.12)), max(2, round(0.10 * h + 0.05 * w))))
        at = (box.left - round(0.06 * w), box.bottom - round(spot.height * 0.56))
        picture.paste((18, 16, 16), (*at, at[0] + spot.width, at[1] + spot.height), spot)
        return
    pad = 4
    small = Image.new("L", (w // 4 + 2 * pad, h // 4 + 2 * pad))
    small.paste(cutout.getchannel("A").resize((w // 4, h // 4), Image.Resampling.BOX), (pad, pad))
    soft = small.filter(ImageFilter.GaussianBlur(1.8)).point(lambda a: a * 0.42)
    soft = soft.resize((soft.width * 4, soft.height * 4), Image.Resampling.BILINEAR)
    at = (box.left - 4 * pad + round(0.02 * w) + 2, box.top - 4 * pad + round(0.025 * h) + 2)
    picture.paste((18, 16, 16), (*at, at[0] + soft.width, at[1] + soft.height), soft)


def _put(picture: Image.Image, name: str, tint: int, x: float, y: float, side: int, turn: float = 0) -> None:
    """A prop with the middle of its foot at (x, y)."""
    sprite = prop(name, tint).resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    if turn:
        sprite = sprite.rotate(turn, Image.Resampling.BILINEAR)
    picture.paste(sprite, (round(x - side / 2), round(y - side)), sprite)


def _few(picture: Image.Image, c: Construction, where: Plan) -> None:
    """Two or three that stand at the product's feet, none of them over the words."""
    rng = np.random.default_rng([c.seed // 1000, 2])
    width, height = where.size
    tint = int(rng.integers(4))
    names = [PROPS[int(i)] for i in rng.permutation(len(PROPS))]
    floor = height - 4 if where.words is None or where.words.top == 0 or c.place == "top" else where.words.top
    foot = min(floor, where.foot + 0.02 * height)
    short = min(width, height)
    for name, side in zip(names, (-1, 1, 1)[: int(rng.integers(2, 4))], strict=False):
        size = round(short * rng.uniform(0.2, 0.26))
        edge = where.product.left if side < 0 else where.product.right
        x = edge + side * size * rng.uniform(0.1, 0.35)
        x = min(max(x, size * 0.5), width - size * 0.5)
        _put(picture, name, tint, x, foot + rng.uniform(-0.01, 0.02) * height, size)


def _clutter(picture: Image.Image, c: Construction, where: Plan, behind: bool) -> None:
    """A dozen of all kinds around the product: most behind it, three that lap over its edge."""
    rng = np.random.default_rng([c.seed // 1000, 3 + behind])
    width, height = where.size
    short = min(width, height)
    left, top, right, bottom = where.product
    for k in range(10 if behind else 3):
        name, tint = PROPS[int(rng.integers(len(PROPS)))], int(rng.integers(4))
        size = round(short * rng.uniform(0.2, 0.3))
        turn = float(rng.uniform(-35, 35))
        if behind:
            across, down = rng.uniform(0.02, 0.98), rng.uniform(0.2, 1.0)
            x, y = width * across, height * down
        else:
            size = min(size, round(0.42 * max(right - left, bottom - top)))  # a small product stays visible
            x = left - rng.uniform(0, 0.3) * size if k % 2 else right + rng.uniform(0, 0.3) * size
            y = bottom - (bottom - top) * rng.uniform(-0.03, 0.35)
            y = min(y, height + 0.05 * short)
        _put(picture, name, tint, x, y, size, turn)


# --- words ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _font(size: int) -> Any:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this build of Pillow has no FreeType, which drawing words needs")
    return font


def _broken(text: str, lines: int) -> list[str]:
    """The text in at most `lines` lines of about equal length."""
    words = text.split()
    if lines == 1 or len(words) == 1:
        return [text]
    if lines >= len(words):
        return words
    best = min(range(1, len(words)), key=lambda k: max(len(" ".join(words[:k])), len(" ".join(words[k:]))))
    return [" ".join(words[:best]), " ".join(words[best:])]


def _fitted(text: str, room: Box, stroke: int) -> tuple[list[str], int]:
    """Lines and size: the largest letters that fit, on as few lines as keep them large."""
    best: tuple[int, list[str]] | None = None
    for lines in (1, 2, 3):
        broken = _broken(text, lines)
        longest = max(_font(100).getlength(line) for line in broken) / 100
        across = (room.right - room.left - 2 * stroke - 16) / longest
        down = (room.bottom - room.top - 10) / (1.14 * len(broken))
        size = int(min(across, down, _LARGEST))
        if best is None or size > best[0] + 3:
            best = size, broken
    assert best is not None
    return best[1], max(best[0], LETTER)


def _luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance of WCAG 2, 0 … 1, of an sRGB colour of 0 … 255."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Contrast ratio of WCAG 2, 1 … 21."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _words(picture: Image.Image, c: Construction, where: Plan) -> None:
    text = c.says.upper() if c.font == "capitals" else c.says[:1].upper() + c.says[1:]
    stroke = 1 if c.font == "bold" else 0
    width, height = where.size
    box = where.product
    if where.words is not None:
        room = where.words
    else:  # over the middle of what is seen of the product
        x = (max(box.left, 0) + min(box.right, width)) / 2
        y = (max(box.top, 0) + min(box.bottom, height)) / 2
        half = 0.46 * width if width < 1.5 * height else 0.25 * width
        room = Box(round(x - half), round(y - 0.16 * height), round(x + half), round(y + 0.16 * height))
    lines, size = _fitted(text, room, stroke + 2)
    font = _font(size)
    step = round(size * 1.14)
    x, y = (room.left + room.right) / 2, (room.top + room.bottom - step * len(lines)) / 2
    long = max(font.getlength(line) for line in lines)
    if where.words is None:  # as near to the product as the edges of the picture allow
        x = min(max(x, long / 2 + 12), width - long / 2 - 12)
    plate = Box(
        max(2, round(x - long / 2 - 10)), max(2, round(y - 3)),
        min(width - 2, round(x + long / 2 + 10)), min(height - 2, round(y + step * len(lines) + 5)),
    )  # fmt: skip
    mean = np.asarray(picture.crop(plate).resize((1, 1), Image.Resampling.BOX))[0, 0]
    ground: Colour = (int(mean[0]), int(mean[1]), int(mean[2]))
    accent = _ACCENTS[c.seed % len(_ACCENTS)]
    pen = ImageDraw.Draw(picture, "RGBA")
    outline, outlined = ground, 0
    if c.legible == "faint":
        veil = (*ground, 200)
        pen.rounded_rectangle(plate, 8, fill=veil)
        ink = _faint(ground)
        stroke = 0
    elif c.band:
        fill = accent if c.ink == "accent" else _INK[_luminance(ground) < 0.3]
        ink = _INK[1] if contrast(fill, _INK[1]) > 4 else _INK[0]
        pen.rounded_rectangle(plate, 8, fill=fill)
    else:
        dark = contrast(ground, _INK[0]) > contrast(ground, _INK[1])
        ink = _INK[0] if dark else _INK[1]
        if c.ink == "accent":
            tinted = accent if dark else _pale(accent)
            ink = tinted if contrast(tinted, ground) > 4 or c.background == "busy" else ink
        if c.background in ("busy", "scene") or c.props == "clutter" or c.covers == "yes":
            outline, outlined = (_INK[1] if dark else _INK[0]), 3
    for k, line in enumerate(lines):
        at = (x, y + step * k + step * 0.5)
        if outlined:
            pen.text(at, line, outline, font, "mm", stroke_width=outlined + stroke, stroke_fill=outline)
        pen.text(at, line, ink, font, "mm", stroke_width=stroke, stroke_fill=ink)


def _pale(colour: Colour) -> Colour:
    r, g, b = (int(v + (255 - v) * 0.74) for v in colour)
    return r, g, b


def _faint(ground: Colour) -> Colour:
    """A colour that barely stands out: contrast ratio about 1.8."""
    goal = _INK[0] if _luminance(ground) > 0.2 else _INK[1]
    for share in range(8, 100, 4):
        r, g, b = (int(v + (w - v) * share / 100) for v, w in zip(ground, goal, strict=True))
        if contrast((r, g, b), ground) >= 1.8:
            break
    return r, g, b


_BADGES: dict[str, tuple[str, Colour]] = {
    "sale": ("SALE", (206, 26, 40)),
    "new": ("NEW", (18, 122, 84)),
    "-30%": ("-30%", (222, 92, 10)),
}


def _badge(picture: Image.Image, c: Construction, where: Plan) -> None:
    """A disc in a corner that the words do not use."""
    width, height = where.size
    text, colour = _BADGES[c.badge]
    side = round(0.12 * min(width, height) + 32)
    right, low = c.corner == "right", c.place == "top" and bool(c.says)
    if where.words is not None and where.words.bottom - where.words.top > 0.5 * height:
        right = c.position == "right"  # the words have the other half
    x, y = (width - side - 6 if right else 6), (height - side - 6 if low else 6)
    disc = Image.new("RGBA", (side * 2, side * 2))
    pen = ImageDraw.Draw(disc)
    pen.ellipse((0, 0, side * 2 - 1, side * 2 - 1), fill=(255, 255, 255))
    pen.ellipse((5, 5, side * 2 - 6, side * 2 - 6), fill=colour)
    size = int(min(0.34, 0.84 / (_font(100).getlength(text) / 100)) * 2 * side)
    pen.text(
        (side, side), text, (255, 255, 255), _font(size), "mm", stroke_width=2, stroke_fill=(255, 255, 255)
    )
    disc = disc.reduce(2)
    picture.paste(disc, (x, y), disc)

"""From a specification to a photo: the view, the layer, its shadow, the background, the JPEG.

`render` gives the product alone on a transparent layer, for whoever composes it elsewhere; `photograph`
stands it in a small studio. Views: `front` is the main photo and shows every attribute; `turned` swings
the camera, `back` shows the other side, `detail` comes close. The pixels follow from the arguments alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from research.synthetic.shop import shapes_bottoms, shapes_carry, shapes_home, shapes_shoes, shapes_tops
from research.synthetic.shop.draw import RGB, Array, Canvas, Light, blur, noise, smooth
from research.synthetic.shop.spec import Spec

VIEWS = ("front", "turned", "back", "detail")
BACKGROUNDS = ("white", "grey", "gradient", "scene")


@dataclass(frozen=True)
class View:
    """Where the camera stands and where the light comes from."""

    name: str = "front"  # one of VIEWS
    yaw: float = 0.0  # degrees
    roll: float = 0.0  # degrees
    zoom: float = 1.0
    light: Light = field(default_factory=Light)


@dataclass(frozen=True)
class Shape:
    """How a kind is drawn, how it rests, and where its detail is."""

    draw: Callable[[Canvas, Spec, bool], None]
    stands: bool = True  # on a surface; else it hangs before a wall or lies flat
    ground: float = 0.88  # its lowest line, product units
    focus: tuple[float, float] = (0.5, 0.35)
    round: bool = False  # looks much the same from all sides: a turned view is a mild one


_T, _B, _S, _C, _H = shapes_tops, shapes_bottoms, shapes_shoes, shapes_carry, shapes_home
SHAPES: dict[str, Shape] = {
    "tshirt": Shape(_T.tshirt, False, focus=(0.5, 0.27)),
    "shirt": Shape(_T.shirt, False, focus=(0.53, 0.3)),
    "sweater": Shape(_T.sweater, False, focus=(0.5, 0.27)),
    "jacket": Shape(_T.jacket, False, focus=(0.5, 0.3)),
    "dress": Shape(_T.dress, False, focus=(0.5, 0.27)),
    "trousers": Shape(_B.trousers, False, focus=(0.5, 0.25)),
    "jeans": Shape(_B.jeans, False, focus=(0.5, 0.25)),
    "shorts": Shape(_B.shorts, False, focus=(0.5, 0.38)),
    "skirt": Shape(_B.skirt, False, focus=(0.5, 0.3)),
    "sneaker": Shape(_S.sneaker, True, 0.745, (0.55, 0.52)),
    "heel": Shape(_S.heel, True, 0.80, (0.6, 0.62)),
    "boot": Shape(_S.boot, True, 0.865, (0.45, 0.6)),
    "backpack": Shape(_C.backpack, True, 0.885, (0.5, 0.5)),
    "handbag": Shape(_C.handbag, True, 0.835, (0.5, 0.5)),
    "watch": Shape(_C.watch, False, focus=(0.5, 0.5)),
    "sunglasses": Shape(_C.sunglasses, True, 0.635, (0.35, 0.5)),
    "cap": Shape(_C.cap, True, 0.70, (0.45, 0.45)),
    "mug": Shape(_H.mug, True, 0.82, (0.55, 0.45), True),
    "bottle": Shape(_H.bottle, True, 0.905, (0.5, 0.25), True),
    "lamp": Shape(_H.lamp, True, 0.905, (0.5, 0.35), True),
    "chair": Shape(_H.chair, True, 0.905, (0.5, 0.4)),
    "cushion": Shape(_H.cushion, True, 0.82, (0.35, 0.4)),
    "vase": Shape(_H.vase, True, 0.885, (0.5, 0.35), True),
}


def camera(spec: Spec, view: View) -> np.ndarray:
    """3×3 homography of a view: a turn about the vertical with perspective, a roll, a zoom on the detail."""
    shape = SHAPES[spec.kind]
    yaw = math.radians(view.yaw * (0.25 if shape.round else 1.0))
    roll = math.radians(view.roll)
    turn = np.array([[math.cos(yaw), 0, 0], [0, 1, 0], [0.55 * math.sin(yaw), 0, 1]])
    spin = np.array([[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
    scale = np.diag([view.zoom, view.zoom, 1.0])
    fx, fy = shape.focus if view.name == "detail" else (0.5, 0.5)
    here = np.array([[1, 0, -fx], [0, 1, -fy], [0, 0, 1]])
    there = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    return there @ spin @ scale @ turn @ here


def _layer(spec: Spec, view: View, size: int) -> Canvas:
    canvas = Canvas(size, view.light, camera(spec, view))
    SHAPES[spec.kind].draw(canvas, spec, view.name == "back")
    return canvas


def render(spec: Spec, view: View | str = "front", size: int = 320) -> Image.Image:
    """The product alone: a `size`×`size` RGBA picture, transparent around it (and through glass)."""
    return _layer(spec, View(view) if isinstance(view, str) else view, size).image()


# --- studio ---------------------------------------------------------------------------------------------

_TINTS: tuple[RGB, ...] = (
    (0.93, 0.88, 0.84),
    (0.86, 0.90, 0.93),
    (0.88, 0.92, 0.87),
    (0.94, 0.91, 0.83),
    (0.91, 0.87, 0.92),
    (0.93, 0.86, 0.86),
    (0.84, 0.90, 0.90),
)


def backdrop(name: str, size: int, seed: int, horizon: float, standing: bool) -> Array:
    """Background (size, size, 3); `horizon` is where a table or floor begins, in 0 … 1 from the top."""
    rng = np.random.default_rng(seed)
    at: Array = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = at[:, None], at[None]
    glow = np.exp(-((x - 0.45) ** 2 + (y - 0.42) ** 2) / 0.45)
    if name == "white":
        return np.repeat((0.965 + 0.035 * glow)[..., None], 3, axis=2).astype(np.float32)
    if name == "grey":
        return ((0.70 + 0.16 * glow)[..., None] * np.array([0.995, 1.0, 1.01])).astype(np.float32)
    tint = np.array(_TINTS[int(rng.integers(len(_TINTS)))], np.float32)
    sweep = tint * (0.90 + 0.10 * glow[..., None])
    if name == "gradient":
        return (sweep * (1.02 - 0.13 * y[..., None])).astype(np.float32)
    if not standing:  # laid on linen or on a wooden board
        if rng.random() < 0.5:
            weave = noise(seed % 5 + 1, size, size // 4, 12) + noise(seed % 5 + 2, size, 12, size // 4)
            return (sweep * (1 + 0.02 * weave)[..., None]).astype(np.float32)
        return _boards(size, seed, x, y, rng) * (0.92 + 0.1 * glow[..., None])
    wall = sweep * (1 + 0.012 * noise(seed % 5, size, 9, 9))[..., None]
    if rng.random() < 0.6:
        table = _boards(size, seed, x, (y - horizon) * 2.2, rng)
    else:
        table = np.broadcast_to(tint * np.array([0.93, 0.91, 0.88], np.float32), wall.shape)
    table = table * (0.84 + 0.2 * smooth(y, horizon, 1.0))[..., None]
    edge = smooth(y + 0 * x, horizon - 0.008, horizon + 0.008)[..., None]
    wall = wall * (1 - 0.10 * np.exp(-np.abs(y + 0 * x - horizon) / 0.04))[..., None]
    return (wall * (1 - edge) + table * edge).astype(np.float32)


def _boards(size: int, seed: int, x: Array, y: Array, rng: np.random.Generator) -> Array:
    tones = ((0.80, 0.68, 0.54), (0.86, 0.79, 0.70), (0.70, 0.58, 0.46))
    tone = np.array(tones[int(rng.integers(len(tones)))], np.float32)
    grain = noise(seed % 5 + 3, size, 5, size // 3) * 0.045 + noise(seed % 5 + 4, size, 9, size // 2) * 0.02
    row = (y + 0 * x) / 0.24
    gap = smooth(np.abs(row - np.round(row)), 0.012, 0.03)
    plank = np.sin(np.floor(row + 0.5) * 12.9) * 0.03
    return (tone * ((1 + grain + plank) * (0.8 + 0.2 * gap))[..., None]).astype(np.float32)


def _shadow(alpha: Array, standing: bool, ground: float, light: Light) -> Array:
    """Shadow on the backdrop, 0 … 1."""
    size = alpha.shape[0]
    lx, ly, _ = light.direction
    if not standing:
        near, far = blur(alpha, 0.012 * size), blur(alpha, 0.035 * size)
        near, far = (
            np.roll(a, (round(-ly * d * size), round(-lx * d * size)), axis=(0, 1))
            for a, d in ((near, 0.014), (far, 0.034))
        )
        return 0.26 * near + 0.20 * far
    # fold the silhouette onto the ground, sheared away from the light
    rows = np.arange(size, dtype=np.float32)
    base = ground * size
    squash = 0.20
    source = base - (base - rows) / squash  # rows above the ground line hold the folded silhouette
    valid = (source >= 0) & (source < size) & (rows <= base)
    folded = np.zeros_like(alpha)
    for row in np.flatnonzero(valid):
        line = alpha[int(source[row])]
        folded[row] = np.roll(line, round(float(-lx * 1.1 * (base - rows[row]))))
    cast = blur(folded, 0.02 * size)
    feet = alpha * smooth(rows, base - 0.075 * size, base)[:, None]
    pressed = np.roll(blur(feet, 0.008 * size), round(0.008 * size), axis=0)
    wide = np.roll(blur(feet, 0.028 * size), round(0.014 * size), axis=0)
    return np.clip(0.24 * cast + 0.42 * pressed + 0.36 * wide, 0, 0.75)


def compose(spec: Spec, view: View, background: str, size: int, seed: int) -> Image.Image:
    """The product in its surroundings: RGB, `size`×`size`."""
    shape = SHAPES[spec.kind]
    canvas = _layer(spec, view, size)
    standing = shape.stands
    m = canvas.camera
    ground = float(
        (m[1, 1] * shape.ground + m[1, 0] * 0.5 + m[1, 2])
        / (m[2, 0] * 0.5 + m[2, 1] * shape.ground + m[2, 2])
    )
    horizon = min(0.97, max(0.5, ground - 0.16))
    scene = backdrop(background, size, seed, horizon, standing)
    if view.name != "detail" or ground < 1:
        scene = scene * (1 - _shadow(canvas.alpha, standing, ground, view.light))[..., None]
    picture = canvas.rgb + scene * (1 - canvas.alpha)[..., None]
    warm = view.light.warmth
    picture = picture * np.array([1 + 0.035 * warm, 1.0, 1 - 0.05 * warm], np.float32)
    grain = np.random.default_rng(seed).normal(0, 0.006, (size, size, 1)).astype(np.float32)
    pixels = np.clip((picture + grain) * 255 + 0.5, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels, "RGB")


def draw_view(rng: np.random.Generator, spec: Spec, index: int) -> tuple[View, str]:
    """View and background of photo number `index`: the first is the main one, the others vary more."""
    side = -1.0 if rng.random() < 0.8 else 1.0
    light = Light(
        side * rng.uniform(0.3, 0.6),
        rng.uniform(-0.75, -0.45),
        rng.uniform(0.65, 0.9),
        rng.uniform(-0.7, 1.0),
    )
    if index == 0:
        background = "white" if rng.random() < 0.5 else ("grey", "gradient", "scene")[int(rng.integers(3))]
        return View(
            "front", rng.uniform(-4, 4), rng.uniform(-1, 1), rng.uniform(0.94, 1.0), light
        ), background
    background = BACKGROUNDS[int(rng.choice(4, p=(0.2, 0.2, 0.25, 0.35)))]
    name = ("turned", "detail", "back")[(index - 1 + (rng.random() < 0.35)) % 3]
    flat = not SHAPES[spec.kind].stands
    if name == "turned":
        yaw = rng.uniform(18, 34) * (1 if rng.random() < 0.5 else -1)
        return View(
            name, yaw, rng.uniform(-6, 6) if flat else 0.0, rng.uniform(0.86, 0.96), light
        ), background
    if name == "back":
        return View(
            name, rng.uniform(-10, 10), rng.uniform(-3, 3) if flat else 0.0, rng.uniform(0.9, 1.0), light
        ), background
    return View(
        name, rng.uniform(-12, 12), rng.uniform(-4, 4) if flat else 0.0, rng.uniform(1.7, 2.2), light
    ), background


def photograph(spec: Spec, index: int, seed: tuple[int, ...], size: int = 320) -> bytes:
    """JPEG of photo number `index`. Its bytes depend on the Pillow version, its pixels do not."""
    rng = np.random.default_rng([*seed, index])
    view, background = draw_view(rng, spec, index)
    picture = compose(spec, view, background, size, int(rng.integers(1 << 30)))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()

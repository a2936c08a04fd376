"""What covers a shape: colour, pattern and material, and how light falls on it.

`paint` turns a mask into a lit surface. The volume comes from the mask itself (`puff`: the sum of its
blurs is a height; `round`: each row of pixels is a cylinder; `flat`: a bevelled sheet), the material adds
fine relief, gloss or see-through, and the pattern lies in a frame that a part may turn (a sleeve) and
that follows the volume. A face towards the viewer keeps exactly its colour, so colour names stay true.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from research.synthetic.shop.draw import RGB, Array, Canvas, blur, bounds, noise, smooth

CELL = 0.011  # finest texture period in product units; at small sizes it grows so that it never flickers


@dataclass(frozen=True)
class Finish:
    """How a material answers light."""

    contrast: float = 0.55  # share of the light that depends on the slope
    gloss: float = 0.0  # strength of the highlight
    sharp: float = 12.0  # its exponent
    mirror: float = 0.0  # strength of bands that reflect the studio (metal, glaze)
    rim: float = 0.0  # light caught by fibres at the edge (velvet, wool)
    clear: float = 0.0  # see-through share (glass)
    relief: float = 0.0  # depth of the texture
    tint: float = 0.0  # lightness change of the texture
    texture: str = ""


FINISHES: dict[str, Finish] = {
    "cotton": Finish(contrast=0.5, relief=0.1, tint=0.015, texture="grain"),
    "linen": Finish(contrast=0.5, relief=0.25, tint=0.085, texture="slub"),
    "denim": Finish(contrast=0.55, relief=0.2, tint=0.13, texture="twill"),
    "knit": Finish(contrast=0.55, relief=1.0, tint=0.14, rim=0.08, texture="knit"),
    "wool": Finish(contrast=0.5, relief=0.5, tint=0.10, rim=0.2, texture="fleck"),
    "corduroy": Finish(contrast=0.55, relief=1.3, tint=0.16, rim=0.08, texture="wale"),
    "satin": Finish(contrast=0.62, gloss=0.5, sharp=7, relief=1.0, texture="liquid"),
    "velvet": Finish(contrast=0.75, rim=0.55, relief=0.15, tint=0.04, texture="grain"),
    "leather": Finish(contrast=0.6, gloss=0.36, sharp=14, relief=0.24, tint=0.015, texture="pebble"),
    "patent leather": Finish(contrast=0.6, gloss=0.5, sharp=26, mirror=1.0, texture=""),
    "suede": Finish(contrast=0.5, relief=0.2, tint=0.065, rim=0.16, texture="nap"),
    "canvas": Finish(contrast=0.5, relief=0.4, tint=0.06, texture="weave"),
    "nylon": Finish(contrast=0.8, gloss=0.34, sharp=8, relief=0.1, tint=0.02, texture="grain"),
    "mesh": Finish(contrast=0.55, relief=0.4, tint=0.17, texture="holes"),
    "straw": Finish(contrast=0.55, relief=1.0, tint=0.2, texture="basket"),
    "rubber": Finish(contrast=0.65, gloss=0.35, sharp=10, mirror=0.25, texture=""),
    "silicone": Finish(contrast=0.5, gloss=0.15, sharp=8, texture=""),
    "plastic": Finish(contrast=0.6, gloss=0.42, sharp=26, mirror=0.12, texture=""),
    "metal": Finish(
        contrast=0.75, gloss=0.4, sharp=24, mirror=1.0, relief=0.05, tint=0.03, texture="brushed"
    ),
    "ceramic": Finish(contrast=0.6, gloss=0.3, sharp=30, mirror=0.55, texture=""),
    "stoneware": Finish(contrast=0.55, gloss=0.1, sharp=8, relief=0.15, tint=0.12, texture="speckle"),
    "enamel": Finish(contrast=0.6, gloss=0.4, sharp=30, mirror=0.45, texture=""),
    "glass": Finish(contrast=0.3, gloss=0.6, sharp=40, mirror=0.5, clear=0.72, texture=""),
    "wood": Finish(contrast=0.5, gloss=0.08, sharp=8, relief=0.12, tint=0.17, texture="woodgrain"),
    "paper": Finish(contrast=0.4, texture=""),
}


@dataclass(frozen=True)
class Surface:
    """Material, colours and pattern of one part."""

    material: str = "cotton"
    rgb: RGB = (0.8, 0.8, 0.8)
    pattern: str = "solid"
    rgb2: RGB = (1.0, 1.0, 1.0)
    scale: float = 1.0  # size of the pattern
    direction: str = "down"  # how stripes run
    seed: int = 0

    def plain(self, rgb: RGB | None = None, material: str | None = None) -> Surface:
        """The same without the pattern, in another colour or material where given."""
        return replace(self, pattern="solid", rgb=rgb or self.rgb, material=material or self.material)


def paint(
    canvas: Canvas,
    mask: Array,
    surface: Surface,
    form: str = "puff",
    volume: float = 1.0,
    bump: Array | None = None,
    turn: float = 0.0,
    origin: tuple[float, float] = (0.5, 0.5),
    contact: float = 0.25,
    light: float = 1.0,
) -> None:
    """Cover `mask` (size, size) with a lit surface, over what the canvas holds.

    `volume` scales the height, `bump` adds to it (product units), `turn` (degrees) and `origin` lay the
    pattern, `contact` is the strength of the soft shadow thrown on what is below, `light` dims the part.
    """
    box = bounds(mask)
    if box is None:
        return
    finish = FINISHES[surface.material]
    size, zoom = canvas.size, canvas.zoom
    lx, ly, lz = canvas.light.direction
    if contact:
        _contact(canvas, mask, box, contact)
    m = mask[box]
    u, v = canvas.u[box], canvas.v[box]
    nx, ny, along = _slopes(m, form, volume, size * zoom, u)

    # the frame of the pattern: turned with the part, drawn tighter where the surface turns away
    a = math.radians(turn)
    fu = (u - origin[0]) * math.cos(a) + (v - origin[1]) * math.sin(a)
    fv = -(u - origin[0]) * math.sin(a) + (v - origin[1]) * math.cos(a)
    if along is not None:
        fu = along
    else:
        fu, fv = fu + 0.012 * nx * volume, fv + 0.012 * ny * volume
    wide = np.float32(max(1.0, 3.2 / (CELL * size * zoom)))  # texture cells never under about 3 pixels
    relief, tint = _texture(finish.texture, fu, fv, CELL * float(wide), surface.seed, size, box)
    height = np.zeros_like(m) if bump is None else bump[box] * (size * zoom)
    if finish.relief:
        height = height + relief * (finish.relief * 0.16)
    if bump is not None or finish.relief:
        gy, gx = np.gradient(height) if min(height.shape) > 1 else (height * 0, height * 0)
        nx, ny = nx - gx, ny - gy
    norm = 1 / np.sqrt(nx * nx + ny * ny + 1)
    nx, ny, nz = nx * norm, ny * norm, norm

    base = _albedo(surface, fu, fv, size, zoom, box)
    # the second term is for black, which a factor alone leaves without texture
    weave = (finish.tint * tint)[..., None]
    base = np.clip(base * (1 + weave) + 0.07 * weave, 0, 1)
    slope = (nx * lx + ny * ly + nz * lz) / lz
    lit = np.clip(1 - finish.contrast + finish.contrast * slope, 0.30, 1.30) * light
    # light darkens towards richer colour, not towards grey; what is over one goes towards white
    dark = np.minimum(lit, 1)[..., None]
    rgb = base ** (1 + 0.22 * (1 - dark)) * dark
    over = np.maximum(lit - 1, 0)[..., None]
    rgb = rgb + (1 - rgb) * over * (0.12 + 0.6 * base)  # black stays black in the light

    hx, hy, hz = lx, ly, lz + 1
    length = math.sqrt(hx * hx + hy * hy + hz * hz)
    shine = np.zeros_like(m)
    if finish.gloss:
        facing = np.clip((nx * hx + ny * hy + nz * hz) / length, 0, 1)
        flat = (hz / length) ** finish.sharp
        shine = finish.gloss * np.clip((facing**finish.sharp - flat) / (1 - flat), 0, 1)
    if finish.mirror:
        if surface.material == "metal":
            bands = 0.62 + 0.5 * smooth(nx, -0.75, -0.45) * smooth(nx, 0.05, -0.25)
            bands = bands + 0.35 * smooth(nx, 0.35, 0.5) * smooth(nx, 0.8, 0.62)
            bands = bands - 0.3 * smooth(np.abs(nx), 0.72, 1.0) - 0.22 * smooth(ny, 0.1, 0.7)
            bands = bands + 0.3 * smooth(ny, -0.2, -0.8)
            keep = 1 if form == "round" else 0.72
            rgb = rgb * ((1 - keep) + keep * np.clip(bands * 1.38, 0.25, 1.5))[..., None]
            shine = shine + 0.35 * smooth(bands, 0.9, 1.2)
        else:
            window = smooth(np.abs(nx - 0.62 * np.sign(lx)), 0.2, 0.1) * smooth(np.abs(ny + 0.12), 0.85, 0.5)
            shine = shine + finish.mirror * 0.55 * window
            if form != "round":  # a lamp from above draws a streak along every ridge
                shine = shine + finish.mirror * 0.6 * smooth(np.abs(ny + 0.42), 0.16, 0.04)
    if finish.rim:
        edge = np.clip(1 - nz, 0, 1) ** 1.5
        rgb = rgb + (0.35 + 0.65 * base) * (finish.rim * edge)[..., None] * 0.9
    rgb = rgb + (1 - rgb) * np.clip(shine, 0, 0.92)[..., None]
    alpha = m
    if finish.clear:
        edge = np.clip(1 - nz, 0, 1)
        rgb = rgb * (1 - 0.45 * smooth(edge, 0.35, 0.95))[..., None]
        alpha = m * np.clip(1 - finish.clear + finish.clear * (1.5 * edge**1.5 + shine * 1.4), 0, 1)
    canvas.over(box, np.clip(rgb, 0, 1), alpha)


def _contact(canvas: Canvas, mask: Array, box: tuple[slice, slice], strength: float) -> None:
    """Soft shadow of a part on what lies under it, away from the light."""
    lx, ly, _ = canvas.light.direction
    reach = 0.014 * canvas.size * canvas.zoom
    dy, dx, margin = round(-ly * reach), round(-lx * reach), int(3 * reach) + 1
    n = canvas.size
    wide = tuple(slice(max(0, s.start - margin), min(n, s.stop + margin)) for s in box)
    if not canvas.alpha[wide].any():
        return
    soft = blur(mask[wide], reach)
    rows, cols = (slice(max(0, s.start + d), min(n, s.stop + d)) for s, d in zip(wide, (dy, dx), strict=True))
    part = soft[rows.start - wide[0].start - dy :, cols.start - wide[1].start - dx :]
    part = part[: rows.stop - rows.start, : cols.stop - cols.start]
    canvas.rgb[rows, cols] *= (1 - strength * np.clip(part, 0, 1))[..., None]


def _slopes(m: Array, form: str, volume: float, pixels: float, u: Array) -> tuple[Array, Array, Array | None]:
    """Surface slopes (x, y) and, for round forms, the coordinate that runs around the form."""
    if form == "round":
        inside = m > 0.5
        first: Array = np.argmax(inside, axis=1)
        last = m.shape[1] - 1 - np.argmax(inside[:, ::-1], axis=1)
        middle = ((first + last) / 2)[:, None]
        half = np.maximum((last - first + 1) / 2, 1)[:, None]
        # the bottom is a seen ellipse, not a narrowing body: it keeps the section above it
        foot = (
            max(0, int(np.flatnonzero(inside.any(axis=1))[-1]) - int(0.034 * pixels)) if inside.any() else 0
        )
        half[foot:], middle[foot:] = np.maximum(half[foot:], half[foot]), middle[foot]
        t = np.clip((np.arange(m.shape[1])[None] - middle) / half, -0.985, 0.985).astype(np.float32)
        profile = blur_rows(half[:, 0].astype(np.float32))
        widening = np.asarray(np.gradient(profile)) if len(half) > 2 else profile * 0
        depth = np.sqrt(1 - t * t)
        nx, ny = t / depth, -(widening[:, None] / depth).astype(np.float32)
        around = np.arcsin(t) * (half / pixels).max()
        return (
            (nx * volume).astype(np.float32),
            (ny * volume * 0.8).astype(np.float32),
            around.astype(np.float32),
        )
    weights = {"puff": (0.8, 0.9, 0.75), "flat": (0.55, 0.0, 0.0), "thin": (1.0, 0.5, 0.0)}[form]
    padded = np.zeros((m.shape[0] + 4, m.shape[1] + 4), np.float32)
    padded[2:-2, 2:-2] = m
    height = np.zeros_like(padded)
    for weight, reach in zip(weights, (0.010, 0.032, 0.085), strict=True):
        if weight:
            sigma = reach * pixels
            height = height + weight * sigma * blur(padded, sigma)
    slopes = -np.asarray(np.gradient(height * np.float32(volume * 1.6)))[:, 2:-2, 2:-2]
    return slopes[1], slopes[0], None


def blur_rows(values: Array) -> Array:
    """A profile smoothed over about 8 entries, ends kept: pixel steps are no facets."""
    padded = np.pad(values, 8, mode="edge")
    window = np.hanning(19)[1:-1]
    return np.convolve(padded, window / window.sum(), mode="valid").astype(np.float32)


# --- textures -------------------------------------------------------------------------------------------


def _texture(
    name: str, u: Array, v: Array, cell: float, seed: int, size: int, box: tuple[slice, slice]
) -> tuple[Array, Array]:
    """Relief and lightness of a material in about -1 … 1, in the frame of the part."""
    tau = 2 * math.pi
    if not name:
        zero = np.zeros_like(u)
        return zero, zero
    rough = noise(seed + 11, size, size // 3, size // 3)[box]
    if name == "grain":
        return rough, rough
    if name == "liquid":  # soft folds that run down and catch the light
        folds = noise(seed + 21, size, 11, 4)[box] + 0.5 * noise(seed + 22, size, 19, 6)[box]
        return folds * (0.034 * size), np.zeros_like(u)
    if name == "twill":
        lines = np.sin((u + v) / (cell * 1.1) * tau)
        worn = noise(seed + 5, size, 9, 9)[box]
        threads = noise(seed + 3, size, size // 2, size // 9)[box]  # warp threads of uneven colour
        return lines, 0.34 * lines + 0.42 * threads + 0.22 * rough + 0.35 * worn
    if name == "weave":
        lines = np.sin(u / (cell * 1.15) * tau) * np.sin(v / (cell * 1.15) * tau)
        return lines, lines + 0.25 * rough
    if name == "slub":
        across = noise(seed + 3, size, size // 14, size // 2)[box]
        down = noise(seed + 4, size, size // 2, size // 14)[box]
        return across + down, 0.8 * (across + down)
    if name == "knit":
        column = u / (cell * 2.6)
        leg = np.abs(column - np.floor(column) - 0.5) * 2  # 0 in the middle of a rib, 1 between two
        stitch = np.sin((v / (cell * 2.0) + leg * 0.9) * tau)
        return (1 - leg) * 1.6 + 0.4 * stitch, 0.6 * stitch - 0.9 * leg + 0.45
    if name == "wale":
        ridge = np.abs(np.sin(u / (cell * 3.4) * tau))
        return ridge * 1.6, 1.5 * ridge - 0.95 + 0.15 * rough
    if name == "fleck":
        coarse = noise(seed + 7, size, size // 5, size // 5)[box]
        return rough + coarse, 0.8 * rough + 0.6 * coarse
    if name == "pebble":
        coarse = noise(seed + 7, size, size // 4, size // 4)[box]
        return np.abs(coarse) * 1.3 + 0.4 * rough, -np.abs(coarse)
    if name == "nap":
        coarse = noise(seed + 7, size, 26, 16)[box]
        return rough, 0.55 * rough + 0.75 * coarse
    if name == "holes":
        row = np.floor(v / (cell * 1.25))
        shift = np.where(row % 2 == 0, 0.0, 0.5)
        du = u / (cell * 1.5) + shift
        du, dv = du - np.floor(du) - 0.5, v / (cell * 1.25) - row - 0.5
        hole = smooth(du * du + dv * dv, 0.13, 0.05)
        return -hole, (0.3 - 1.6 * hole).astype(np.float32)
    if name == "basket":
        cu, cv = np.floor(u / (cell * 2.6)), np.floor(v / (cell * 1.7))
        over = (cu + cv) % 2 == 0
        du, dv = u / (cell * 2.6) - cu - 0.5, v / (cell * 1.7) - cv - 0.5
        bulge = np.where(over, 1 - 3.4 * dv * dv, 1 - 3.4 * du * du).astype(np.float32)
        return bulge, np.where(over, bulge, bulge - 0.85).astype(np.float32) + 0.2 * rough
    if name == "brushed":
        lines = noise(seed + 3, size, 4, size // 2)[box]
        return lines, lines
    if name == "speckle":
        dots = smooth(noise(seed + 2, size, size // 2, size // 2)[box], 0.62, 0.85)
        return rough, (0.1 - 2.6 * dots).astype(np.float32)
    if name == "woodgrain":
        drift = noise(seed + 6, size, 4, 5)[box]
        rings = np.sin((u / 0.05 + 1.3 * drift) * tau)
        streaks = noise(seed + 8, size, size // 6, 5)[box]
        pores = noise(seed + 9, size, size // 3, 14)[box]
        return pores, 0.28 * rings + 0.55 * streaks + 0.45 * pores
    raise KeyError(name)


# --- patterns -------------------------------------------------------------------------------------------


def _albedo(surface: Surface, u: Array, v: Array, size: int, zoom: float, box: tuple[slice, slice]) -> Array:
    """Base colour of every pixel of the box, (h, w, 3)."""
    one = np.asarray(surface.rgb, np.float32)
    if surface.pattern == "solid":
        return np.broadcast_to(one, (*u.shape, 3))
    blend = pattern(surface, u, v, 1.2 / (size * zoom))
    return one + (np.asarray(surface.rgb2, np.float32) - one) * blend[..., None]


def pattern(surface: Surface, u: Array, v: Array, pixel: float) -> Array:
    """Share of the second colour in 0 … 1; `pixel` is one pixel in product units, for soft edges."""
    s = surface.scale
    name = surface.pattern
    if name == "striped":
        period = 0.088 * s
        t = (v if surface.direction == "across" else u) / period + 0.25
        return smooth(np.abs(t - np.round(t)) * period, 0.19 * period + pixel, 0.19 * period - pixel)
    if name == "checked":
        period = 0.1 * s
        bars = []
        for t in (u / period, v / period):
            wide = smooth(np.abs(t - np.round(t)) * period, 0.2 * period + pixel, 0.2 * period - pixel)
            thin = smooth(np.abs(t - 0.5 - np.round(t - 0.5)) * period, 0.03 * period + pixel, 0.03 * period)
            bars.append(np.maximum(wide * 0.5, thin * 0.45))
        return bars[0] + bars[1]
    if name == "dotted":
        period = 0.085 * s
        row = np.floor(v / (period * 0.75))
        du = u / period + np.where(row % 2 == 0, 0.0, 0.5)
        du, dv = (du - np.floor(du) - 0.5) * period, (v / (period * 0.75) - row - 0.5) * period * 0.75
        return smooth(np.sqrt(du * du + dv * dv), 0.24 * period + pixel, 0.24 * period - pixel)
    if name == "floral":
        return _flowers(u, v, 0.15 * s, pixel, surface.seed)
    if name == "geometric":
        period = 0.11 * s
        t = v / period + 0.62 * np.abs(u / period - np.round(u / period))
        return smooth(np.abs(t - np.round(t)) * period, 0.2 * period + pixel, 0.2 * period - pixel)
    if name == "camouflage":
        a = np.sin(u * 17 / s + 2.1 * np.sin(v * 13 / s + surface.seed * 2.3) + surface.seed * 4.7)
        b = np.sin(v * 19 / s + 2.4 * np.sin(u * 11 / s + surface.seed * 1.7))
        field = a + b
        return 0.95 * smooth(field, 0.45, 0.45 + pixel * 25) + 0.4 * smooth(field, -0.7, -0.7 - pixel * 25)
    if name == "colour blocked":
        edge = 0.0 if surface.direction == "down" else 0.05
        return smooth(v, edge - pixel, edge + pixel)
    raise KeyError(name)


def _flowers(u: Array, v: Array, period: float, pixel: float, seed: int) -> Array:
    """Five-petalled flowers in jittered, staggered cells, each with a hollow heart, and buds between."""
    row = np.floor(v / period)
    shifted = u / period + 0.5 * (row % 2)
    column = np.floor(shifted)
    h = np.sin(row * 12.9898 + column * 78.233 + seed) * 43.758
    h = h - np.floor(h)
    du = (shifted - column - 0.5 + (h - 0.5) * 0.2) * period
    dv = (v / period - row - 0.5 + (h - 0.5) * 0.2) * period
    radius, angle = np.sqrt(du * du + dv * dv), np.arctan2(dv, du) + h * 6.28
    petal = period * (0.21 + 0.13 * np.abs(np.cos(2.5 * angle)))
    flower = smooth(radius, petal + pixel, petal - pixel)
    heart = smooth(radius, 0.08 * period + pixel, 0.08 * period - pixel)
    bu, bv = (np.abs(shifted - column - 0.5) - 0.5) * period, (v / period - row - 0.5) * period
    bud = smooth(np.sqrt(bu * bu + bv * bv), 0.09 * period + pixel, 0.09 * period - pixel)
    return np.clip(flower * (1 - 0.85 * heart) + 0.8 * bud, 0, 1)

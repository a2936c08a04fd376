"""Drawing primitives: a transparent canvas in product coordinates, smooth outlines, soft masks.

Shapes are written in a unit square (x right, y down, the product inside 0.08 … 0.92) and pass through one
3×3 homography, which is how a view turns them. Outlines are rasterised by Pillow at several times the
size and averaged; everything after that (volume, light, texture) is numpy at the final size, because a
mask needs the extra samples and smooth shading does not. No step depends on BLAS or on threads, so the
same specification gives the same pixels in every process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.floating[Any]]
Point = tuple[float, float]
RGB = tuple[float, float, float]  # sRGB, 0 … 1


# --- outlines -------------------------------------------------------------------------------------------


def outline(points: Sequence[Sequence[float]], closed: bool = True, steps: int = 8) -> list[Point]:
    """Smooth line through the points (Catmull-Rom); a point `(x, y, 1)` is a sharp corner."""
    knots = [(float(p[0]), float(p[1])) for p in points]
    sharp = [len(p) > 2 and bool(p[2]) for p in points]
    n = len(knots)
    result: list[Point] = []
    for i in range(n if closed else n - 1):
        j = (i + 1) % n
        p1, p2 = knots[i], knots[j]
        first = sharp[i] or (not closed and i == 0)
        last = sharp[j] or (not closed and j == n - 1)
        p0 = p1 if first else knots[i - 1]
        p3 = p2 if last else knots[(j + 1) % n]
        if first and last:
            result.append(p1)
            continue
        # tangents no longer than the piece itself, or a short piece after a long one overshoots
        length = math.hypot(p2[0] - p1[0], p2[1] - p1[1])
        out, back = (p2[0] - p0[0], p2[1] - p0[1]), (p3[0] - p1[0], p3[1] - p1[1])
        k1 = min(0.5, length / (math.hypot(*out) or 1.0))
        k2 = min(0.5, length / (math.hypot(*back) or 1.0))
        for step in range(steps):
            t = step / steps
            a, b = 2 * t**3 - 3 * t**2 + 1, t**3 - 2 * t**2 + t
            c, d = -2 * t**3 + 3 * t**2, t**3 - t**2
            x, y = (a * p1[k] + b * out[k] * k1 + c * p2[k] + d * back[k] * k2 for k in (0, 1))
            result.append((x, y))
    if not closed:
        result.append(knots[-1])
    return result


def mirror(half: Sequence[Sequence[float]], axis: float = 0.5) -> list[Sequence[float]]:
    """Whole outline from its right half, given from top to bottom; points on the axis are not doubled."""
    left = [(2 * axis - p[0], *p[1:]) for p in reversed(half) if abs(p[0] - axis) > 1e-6]
    return [*half, *left]


def ellipse(cx: float, cy: float, rx: float, ry: float, a0: float = 0.0, a1: float = 360.0) -> list[Point]:
    """Points on an ellipse from angle `a0` to `a1` (degrees, clockwise from the right)."""
    count = max(12, int(abs(a1 - a0) / 6))
    angles = [math.radians(a0 + (a1 - a0) * i / count) for i in range(count + (a1 - a0 < 360))]
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def rounded(x0: float, y0: float, x1: float, y1: float, r: float) -> list[Point]:
    """Rectangle with corners of radius `r`."""
    r = max(1e-4, min(r, abs(x1 - x0) / 2, abs(y1 - y0) / 2))
    return [
        *ellipse(x1 - r, y0 + r, r, r, 270, 360),
        *ellipse(x1 - r, y1 - r, r, r, 0, 90),
        *ellipse(x0 + r, y1 - r, r, r, 90, 180),
        *ellipse(x0 + r, y0 + r, r, r, 180, 270),
    ]


def band(line: Sequence[Point], width: float | Sequence[float]) -> list[Point]:
    """Outline of a ribbon of the given width (one, or one per point) along a line."""
    n = len(line)
    widths = [width] * n if isinstance(width, (int, float)) else list(width)
    left, right = [], []
    for i, (x, y) in enumerate(line):
        (xa, ya), (xb, yb) = line[max(0, i - 1)], line[min(n - 1, i + 1)]
        length = math.hypot(xb - xa, yb - ya) or 1.0
        ox, oy = -(yb - ya) / length * widths[i] / 2, (xb - xa) / length * widths[i] / 2
        left.append((x + ox, y + oy))
        right.append((x - ox, y - oy))
    return left + right[::-1]


# --- fields ---------------------------------------------------------------------------------------------


def resized(a: Array, width: int, height: int, how: Image.Resampling) -> Array:
    """The field at another size (`a` is (h, w) float32)."""
    return np.asarray(Image.fromarray(a, mode="F").resize((width, height), how), dtype=np.float32)


def blur(a: Array, sigma: float) -> Array:
    """Gaussian blur in pixels, zero outside. Wide ones run on a smaller copy: nobody sees the difference."""
    if sigma < 0.3:
        return a
    h, w = a.shape
    step = max(1, round(sigma / 1.1))
    pad = int(2.7 * sigma) + 2 * step
    ph, pw = -(-(h + 2 * pad) // step), -(-(w + 2 * pad) // step)
    padded = np.zeros((ph * step, pw * step), np.float32)
    padded[pad : pad + h, pad : pad + w] = a
    small = padded
    if step > 1:
        small = np.asarray(Image.fromarray(padded, mode="F").reduce(step), dtype=np.float32)
    reach = sigma / step
    radius = max(1, math.ceil(2.7 * reach))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / reach) ** 2).astype(np.float32)
    taps /= taps.sum()
    for axis in (0, 1):
        total = small * taps[radius]
        for k in range(1, radius + 1):
            ahead, behind = [slice(None)] * 2, [slice(None)] * 2
            ahead[axis], behind[axis] = slice(k, None), slice(None, -k)
            total[tuple(ahead)] += small[tuple(behind)] * taps[radius + k]
            total[tuple(behind)] += small[tuple(ahead)] * taps[radius - k]
        small = total
    if step > 1:
        small = resized(small, small.shape[1] * step, small.shape[0] * step, Image.Resampling.BICUBIC)
    return np.ascontiguousarray(small[pad : pad + h, pad : pad + w])


def smooth(a: Array, low: float, high: float) -> Array:
    """Smoothstep from 0 at `low` to 1 at `high` (which may be the lower one)."""
    t = np.clip((a - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


@lru_cache(maxsize=96)
def _lattice(seed: int, rows: int, cols: int, size: int) -> Array:
    grid = np.random.default_rng(seed).uniform(-1, 1, (rows, cols)).astype(np.float32)
    return resized(grid, size, size, Image.Resampling.BICUBIC)


def noise(seed: int, size: int, across: int, down: int) -> Array:
    """Smooth noise in about -1 … 1 with the given number of cells, (size, size). Read only.

    Few seeds are told apart, so that the fields of a stream of products come from the cache.
    """
    return _lattice(seed % 31, max(2, down), max(2, across), size)


# --- canvas ---------------------------------------------------------------------------------------------


@dataclass
class Light:
    """Key light in screen directions (x right, y down, z to the viewer), and its warmth."""

    x: float = -0.45
    y: float = -0.6
    z: float = 0.75
    warmth: float = 0.0  # -1 cool … 1 warm

    @property
    def direction(self) -> tuple[float, float, float]:
        length = math.sqrt(self.x**2 + self.y**2 + self.z**2)
        return self.x / length, self.y / length, self.z / length


@dataclass
class Canvas:
    """Premultiplied RGBA layer of `size`² pixels with a camera (3×3, unit square to unit square)."""

    size: int
    light: Light = field(default_factory=Light)
    camera: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))

    def __post_init__(self) -> None:
        n = self.size
        self.rgb: Array = np.zeros((n, n, 3), np.float32)
        self.alpha: Array = np.zeros((n, n), np.float32)
        self.u: Array
        self.v: Array
        self.look(self.camera)

    def look(self, camera: NDArray[np.float64]) -> None:
        """Turn the camera; `u`, `v` become the product coordinates of every pixel."""
        self.camera = camera
        at = (np.arange(self.size, dtype=np.float32) + 0.5) / self.size
        x, y = np.meshgrid(at, at)
        m = np.linalg.inv(camera)
        w = m[2, 0] * x + m[2, 1] * y + m[2, 2]
        self.u = ((m[0, 0] * x + m[0, 1] * y + m[0, 2]) / w).astype(np.float32)
        self.v = ((m[1, 0] * x + m[1, 1] * y + m[1, 2]) / w).astype(np.float32)

    @property
    def zoom(self) -> float:
        """How many times larger than in the unit square things appear."""
        return math.sqrt(abs(self.camera[0, 0] * self.camera[1, 1] - self.camera[0, 1] * self.camera[1, 0]))

    def mask(self, *polygons: Sequence[Point], holes: Sequence[Sequence[Point]] = ()) -> Array:
        """Coverage 0 … 1 of the union of the polygons, less the holes."""
        n = self.size
        times = 4 if n <= 256 else 3 if n <= 400 else 2
        seen = [self._seen(polygon) for polygon in polygons]
        coverage = np.zeros((n, n), np.float32)
        low = np.floor(np.min([p.min(axis=0) for p in seen], axis=0)).astype(int) - 1
        high = np.ceil(np.max([p.max(axis=0) for p in seen], axis=0)).astype(int) + 1
        (x0, y0), (x1, y1) = np.clip(low, 0, n), np.clip(high, 0, n)
        if x1 <= x0 or y1 <= y0:
            return coverage
        # only the part that the outline covers is drawn large
        picture = Image.new("L", ((x1 - x0) * times, (y1 - y0) * times))
        pen = ImageDraw.Draw(picture)
        for ink, shapes in ((255, seen), (0, [self._seen(hole) for hole in holes])):
            for p in shapes:
                pen.polygon(((p - (x0, y0)) * times).ravel().tolist(), fill=ink)
        coverage[y0:y1, x0:x1] = np.asarray(picture.reduce(times), dtype=np.float32) / 255
        return coverage

    def _seen(self, points: Sequence[Point]) -> NDArray[np.float64]:
        """Points through the camera, in pixels (n, 2)."""
        p = np.asarray(points, dtype=np.float64)
        m = self.camera
        seen = p @ m[:2, :2].T + m[:2, 2]
        return seen / (p @ m[2, :2] + m[2, 2])[:, None] * self.size

    def over(self, box: tuple[slice, slice], rgb: Array | RGB, alpha: Array) -> None:
        """Composite a colour with the given coverage on the part of the layer in `box`."""
        keep = 1 - alpha
        self.rgb[box] = self.rgb[box] * keep[..., None] + np.asarray(rgb, np.float32) * alpha[..., None]
        self.alpha[box] = self.alpha[box] * keep + alpha

    def ink(
        self, rgb: RGB, *polygons: Sequence[Point], opacity: float = 1.0, within: Array | None = None
    ) -> None:
        """Flat, unshaded detail: stitches, eyelets, numerals. `within` clips it to a mask."""
        coverage = self.mask(*polygons) * opacity
        if within is not None:
            coverage = coverage * within
        box = bounds(coverage)
        if box is not None:
            self.over(box, rgb, coverage[box])

    def line(
        self,
        rgb: RGB,
        points: Sequence[Point],
        width: float,
        opacity: float = 1.0,
        dash: float = 0.0,
        within: Array | None = None,
    ) -> None:
        """Flat line, dashed where `dash` (its period) is given: seams and stitching."""
        width = max(width, 0.9 / (self.size * self.zoom))
        if dash <= 0:
            self.ink(rgb, band(points, width), opacity=opacity, within=within)
            return
        pieces = [band(piece, width) for piece in dashes(points, max(dash, 4.5 / (self.size * self.zoom)))]
        if pieces:
            self.ink(rgb, *pieces, opacity=opacity, within=within)

    def shade(self, coverage: Array, strength: float) -> None:
        """Darken what is drawn so far (a soft shadow inside the product)."""
        box = bounds(coverage)
        if box is not None:
            self.rgb[box] *= (1 - strength * np.clip(coverage[box], 0, 1))[..., None]

    def lift(self, coverage: Array, rgb: RGB = (1.0, 1.0, 1.0)) -> None:
        """Blend what is drawn so far towards a colour (worn cloth, a glow, the ridge of a fold)."""
        box = bounds(coverage)
        if box is not None:
            goal = self.alpha[box][..., None] * np.asarray(rgb, np.float32)
            self.rgb[box] += (goal - self.rgb[box]) * coverage[box][..., None]

    def image(self) -> Image.Image:
        """The layer as a Pillow RGBA picture (straight alpha)."""
        alpha = np.clip(self.alpha, 0, 1)
        rgb = self.rgb / np.maximum(alpha, 1e-4)[..., None]
        pixels = np.dstack([np.clip(rgb, 0, 1), alpha])
        return Image.fromarray((pixels * 255 + 0.5).astype(np.uint8), "RGBA")


def bounds(mask: Array) -> tuple[slice, slice] | None:
    """Smallest box that holds the mask, or None where it is empty."""
    rows, cols = np.flatnonzero(mask.max(axis=1) > 0), np.flatnonzero(mask.max(axis=0) > 0)
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def dashes(points: Sequence[Point], period: float) -> list[list[Point]]:
    """Pieces of a line: drawn for 60 % of each period."""
    p = np.asarray(points, dtype=np.float64)
    steps = np.hypot(*np.diff(p, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    result = []
    for k in range(int(along[-1] / period)):
        at = np.array([k * period, k * period + 0.3 * period, k * period + 0.6 * period])
        result.append(
            list(
                zip(
                    np.interp(at, along, p[:, 0]).tolist(),
                    np.interp(at, along, p[:, 1]).tolist(),
                    strict=True,
                )
            )
        )
    return result

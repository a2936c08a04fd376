"""What can be said of a picture, or of two, without a model: blank, noise, copies, grey copies and crops.

A judge that was taught on advertisements says something of anything, so what shows nothing, and what shows
the same twice, is declined before it is asked. All look at small versions; thresholds are ours, set on drawn
pictures.

Noise has no neighbourhood: the correlation of next pixels (Moran's I, 1950) is near zero at every coarse
size, while a photo's is high at one of them at least. A copy is told by a perceptual hash (DCT, as pHash) and
by the worst place of a small version, for a hash alone misses a small badge. A crop is looked for as template
matching does, by normalised cross-correlation (Lewis, 1995) over sizes and places, then by the same check of
the worst place, with a pixel's leeway. Hashes that resist cropping (Steinebach et al., 2012) need segments,
which plain backgrounds lack.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from moonshelf.images import perceptual_hash

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 128  # pixels of the longer side that all this looks at
BLANK_LEVELS, BLANK_SHARE = 12, 0.002  # a pixel of a blank picture; the share of others that it may have
NOISE_SIDES, NOISE = (
    (32, 16, 8),
    0.17,
)  # correlation of next pixels at these sides; photos have .19 or more at one
SAME_BITS, SAME_LEVELS = 2, 10.0  # of the perceptual hash; of a 64×64 version, in its worst place
GREY_LEVELS = 6.0  # mean distance of the channels of a picture without colour
CROP_SHARES = np.geomspace(0.38, 1.0, 40)  # of the whole picture's width that a crop shows
CROP_ALIKE = 0.7  # correlation at 64 pixels from which a crop is looked at closely
CROP_LEVELS = 90.0, 25.0, 4.0  # of its worst place, of all but one in a hundred, and on average

Floats = NDArray[np.float64]


def is_blank(image: Image) -> bool:
    """Whether a picture shows nothing: nearly all of it within a few levels of one colour."""
    small = np.asarray(image.convert("RGB").resize((128, 128)), np.int16).reshape(-1, 3)
    distant = np.abs(small - np.median(small, axis=0)).max(axis=1) > BLANK_LEVELS
    return bool(distant.mean() < BLANK_SHARE)


def is_noise(image: Image) -> bool:
    """Whether a picture is random pixels, or blocks of them up to a thirty-second of its side."""
    return max(_neighbours(image, side) for side in NOISE_SIDES) < NOISE


def _neighbours(image: Image, side: int) -> float:
    """Correlation of pixels that touch, at that many pixels a side."""
    small = np.asarray(image.convert("RGB").resize((side, side), pillow.Resampling.BOX), np.float64)
    small -= small.mean((0, 1))
    products = (small[:, 1:] * small[:, :-1]).mean() + (small[1:] * small[:-1]).mean()
    return float(products / 2 / max((small * small).mean(), 1e-9))


def one_is_a_copy(a: Image, b: Image) -> str:
    """Why two pictures are one and the same, such as "both are the same image"; "" where they are not."""
    grey = is_grey(a) != is_grey(b)
    if grey:
        a, b = a.convert("L").convert("RGB"), b.convert("L").convert("RGB")
    if near_identical(a, b):
        return "both are the same image" + (", one of them without its colours" if grey else "")
    for whole, part, name in ((a, b, "B"), (b, a, "A")):
        if is_crop(whole, part):
            return f"both are the same image, of which {name} is a part"
    return ""


def is_grey(image: Image) -> bool:
    """Whether a picture has no colours."""
    small = np.asarray(image.convert("RGB").resize((64, 64)), np.float64)
    return bool(np.ptp(small, axis=2).mean() <= GREY_LEVELS)


def near_identical(a: Image, b: Image) -> bool:
    """Whether one picture looks like a re-encoded or scaled copy of the other.

    The perceptual hash alone does not see a small badge or another colour, so the worst place of a small
    version has to agree as well.
    """
    one, two = perceptual_hash(a), perceptual_hash(b)
    if (one is None) != (two is None) or (
        one is not None and two is not None and (one ^ two).bit_count() > SAME_BITS
    ):
        return False
    levels = [np.asarray(image.convert("RGB").resize((64, 64)), np.float32) for image in (a, b)]
    return bool(np.abs(levels[0] - levels[1]).max() <= SAME_LEVELS)


def is_crop(whole: Image, part: Image) -> bool:
    """Whether `part` is cut out of `whole`, scaled or not; shares of the width down to `CROP_SHARES`."""
    alike, share, _ = _fit(_within(whole, SIDE // 2), part, CROP_SHARES)
    if alike < CROP_ALIKE:
        return False
    large = _within(whole, SIDE)
    _, share, (y, x) = _fit(large, part, share * np.geomspace(0.96, 1.04, 15))
    cut = np.asarray(_scaled(part, large.width, share).convert("RGB"), np.float64)
    around = np.pad(np.asarray(large.convert("RGB"), np.float64), ((1, 1), (1, 1), (0, 0)), "edge")
    height, width = cut.shape[:2]
    near = np.stack(
        [around[y + i : y + i + height, x + j : x + j + width] for i in range(3) for j in range(3)]
    )
    off = np.maximum(near.min(0) - cut, cut - near.max(0)).max(-1)
    found = off.max(), np.quantile(off, 0.99), off.mean()
    return all(levels <= most for levels, most in zip(found, CROP_LEVELS, strict=True))


def _within(image: Image, side: int) -> Image:
    scale = side / max(image.size)
    width, height = (max(8, round(n * scale)) for n in image.size)
    return image.resize((width, height), pillow.Resampling.BOX if scale < 1 else pillow.Resampling.BILINEAR)


def _scaled(part: Image, width: int, share: float) -> Image:
    """`part` as wide as that share of a picture `width` pixels wide."""
    size = max(1, round(width * share)), max(1, round(width * share * part.height / part.width))
    return part.resize(size, pillow.Resampling.BOX)


def _fit(whole: Image, part: Image, shares: Iterable[float]) -> tuple[float, float, tuple[int, int]]:
    """Highest normalised cross-correlation of `part` within `whole`, its share of the width, its place."""
    field = np.asarray(whole.convert("L"), np.float64)
    spectrum = np.fft.rfft2(field)
    sums = [np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0))) for values in (field, field * field)]
    best = (-1.0, 1.0, (0, 0))
    for share in shares:
        small = _scaled(part, whole.width, share)
        width, height = small.size
        if width > whole.width or height > whole.height or min(width, height) < 12:
            continue
        cut = np.asarray(small.convert("L"), np.float64)
        cut -= cut.mean()
        products = np.fft.irfft2(spectrum * np.conj(np.fft.rfft2(cut, s=field.shape)), s=field.shape)
        total, squares = (_boxes(one, height, width) for one in sums)
        spread = np.sqrt(np.maximum(squares - total**2 / cut.size, 1e-3)) * max(
            float(np.linalg.norm(cut)), 1e-6
        )
        alike = products[: len(spread), : spread.shape[1]] / spread
        y, x = divmod(int(alike.argmax()), alike.shape[1])
        if alike[y, x] > best[0]:
            best = float(alike[y, x]), float(share), (y, x)
    return best


def _boxes(sums: Floats, height: int, width: int) -> Floats:
    """Sums over every box of that size, from the sums over all boxes that begin in the corner."""
    across = sums[:, width:] - sums[:, :-width]
    return across[height:] - across[:-height]

"""Pictures and numbers that the tests of the model share."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from moonshelf.product import ImageRef

LIMIT = 24  # tokens of a rationale; short, so that truncation is reached quickly


def picture(seed: int, width: int = 120, height: int = 96) -> bytes:
    """A PNG of coloured blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(*seeds: int) -> tuple[ImageRef, ...]:
    return tuple(ImageRef(data=picture(seed, 90 + 11 * seed, 150 - 9 * seed)) for seed in seeds)

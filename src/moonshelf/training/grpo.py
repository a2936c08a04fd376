"""One step of group relative policy optimisation in plain torch, to be read beside the equations.

Numbers of equations are those of DeepSeekMath (arXiv 2402.03300), where GRPO comes from. Tests hold loss and
gradients to those of TRL's GRPOTrainer. Shapes: B rollouts, those of one prompt side by side, G a group; T
tokens of the longest completion.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-4  # TRL's, added to the standard deviation of a group


def total(rewards: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum (B,) of the rewards (B, K); NaN stands for "does not apply", a row of NaN stays NaN."""
    summed = (rewards * weights).nansum(1)
    return summed.masked_fill(rewards.isnan().all(1), torch.nan)


def advantages(rewards: Tensor, group: int) -> Tensor:
    """How much better than its group each rollout did, (B,), from rewards (B,) and the size of a group.

    Â = (r − mean r) / std r over the group (section 4.1.2). Rollouts without a reward (NaN) are in no mean
    and get 0. A group of equal rewards gives 0 throughout: it teaches nothing. ValueError if the rollouts
    cannot be divided into groups.

    >>> advantages(torch.tensor([0.0, 1.0, 0.5, 0.5]), 2).round(decimals=2)
    tensor([-0.7100,  0.7100,  0.0000,  0.0000])
    """
    if group < 1 or len(rewards) % group:
        raise ValueError(f"{len(rewards)} rollouts cannot be divided into groups of {group}")
    grouped = rewards.view(-1, group)
    centred = grouped - grouped.nanmean(1, keepdim=True)
    freedom = (~grouped.isnan()).sum(1, keepdim=True) - 1
    spread = (centred.square().nansum(1, keepdim=True) / freedom.clamp(min=1)).sqrt()
    return (centred / (spread + EPSILON)).nan_to_num(nan=0.0).view(-1)


def divergence(logps: Tensor, reference: Tensor) -> Tensor:
    """Unbiased, never negative estimate of KL(policy ‖ reference) at each token (eq. 4, also called k3)."""
    away = reference - logps
    return away.exp() - away - 1


def grpo_loss(
    logps: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    old: Tensor | None = None,
    reference: Tensor | None = None,
    beta: float = 0.0,
    clip: tuple[float, float] = (0.2, 0.2),
) -> Tensor:
    """Loss of one batch, to be minimised; a scalar that takes gradient through `logps` (eq. 3).

    `logps`, `old` (policy that wrote the rollouts; None: this very policy), `reference` (B, T), float32;
    `advantage` (B,), or (B, T) where tokens are paid apart (section 4.1.3); `mask` (B, T) is 1 where a token
    counts: within the completion and written by the model. `clip` is how far the ratio of policies may fall
    below and rise above 1 before it pays no more. The mean is over rollouts of each one's mean over tokens,
    so that a token of a short rollout weighs more. ValueError if `beta` > 0 and there is no reference.
    """
    mask = mask.to(logps.dtype)
    if advantage.dim() == 1:
        advantage = advantage[:, None]
    ratio = (logps - (logps.detach() if old is None else old)).exp()
    clipped = ratio.clamp(1 - clip[0], 1 + clip[1])
    loss = -torch.min(ratio * advantage, clipped * advantage)
    if beta:
        if reference is None:
            raise ValueError("beta > 0 asks for the reference's log-probabilities")
        loss = loss + beta * divergence(logps, reference)
    return ((loss * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()

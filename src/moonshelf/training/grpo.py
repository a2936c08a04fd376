"""One step of group relative policy optimisation in plain torch, to read and to test TRL's against.

The joint stage trains through TRL's GRPOTrainer. This is the same mathematics in one page; the tests hold
the two together, loss and gradient. Numbers of equations are those of DeepSeekMath (arXiv 2402.03300),
where GRPO comes from. DAPO's sum over tokens: arXiv 2503.14476; Dr. GRPO's constant length and unscaled
advantages: arXiv 2503.20783. Shapes: B rollouts, those of one prompt side by side; T tokens of the
longest completion.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-4  # TRL's, added to the standard deviation of a group
LossType = Literal["grpo", "dapo", "dr_grpo"]
Scale = Literal["group", "none"]


def total(rewards: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum (B,) of the rewards (B, K); NaN stands for "does not apply", a row of NaN stays NaN."""
    summed = (rewards * weights).nansum(1)
    return summed.masked_fill(rewards.isnan().all(1), torch.nan)


def advantages(rewards: Tensor, group: int, scale: Scale = "group") -> Tensor:
    """How much better than its group each rollout did, (B,), from rewards (B,) and the size of a group.

    Â = (r − mean r) / std r over the group (section 4.1.2), or without the division (`none`). Rollouts
    without a reward (NaN) are in no mean and get 0. A group of equal rewards gives 0 throughout: it
    teaches nothing.
    """
    if group < 1 or len(rewards) % group:
        raise ValueError(f"{len(rewards)} rollouts cannot be divided into groups of {group}")
    grouped = rewards.view(-1, group)
    centred = grouped - grouped.nanmean(1, keepdim=True)
    if scale == "group":
        freedom = (~grouped.isnan()).sum(1, keepdim=True) - 1
        spread = (centred.square().nansum(1, keepdim=True) / freedom.clamp(min=1)).sqrt()
        centred = centred / (spread + EPSILON)
    return centred.nan_to_num(nan=0.0).view(-1)


def token_logps(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability (B, T) of completion `ids` (B, T) by `logits` (B, L, V) of prompt and completion.

    Every prompt ends at one place, that is, it is padded on the left; the last T + 1 logits are read, since
    logit t speaks of token t + 1.
    """
    wanted = logits[:, -ids.shape[1] - 1 : -1]
    wanted = wanted.to(torch.promote_types(wanted.dtype, torch.float32)) / temperature
    return F.log_softmax(wanted, -1).gather(-1, ids[..., None]).squeeze(-1)


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
    corrected: bool = True,
    clip: tuple[float, float] = (0.2, 0.2),
    loss_type: LossType = "grpo",
    max_length: int | None = None,
) -> Tensor:
    """Loss of one batch, to be minimised; a scalar that takes gradient through `logps` (eq. 3).

    `logps`, `old` (policy that wrote the rollouts; None: this very policy), `reference` (B, T);
    `advantage` (B,); `mask` (B, T) is 1 where a token counts: within the completion and written by the
    model. `clip` is how far the ratio of policies may fall below and rise above 1 before it pays no more.
    `grpo` is the mean over rollouts of each one's mean over tokens, so that a token of a short rollout
    weighs more; `dapo` the mean over all tokens of the batch; `dr_grpo` the sum over tokens by B ·
    `max_length`. `corrected` weighs the divergence by the ratio, since the tokens were drawn by the old
    policy (DeepSeek-V3.2, arXiv 2512.02556; TRL's default); even where the ratio is 1 this changes the
    gradient.
    """
    mask = mask.to(logps.dtype)
    advantage = advantage[:, None]
    ratio = (logps - (logps.detach() if old is None else old)).exp()
    clipped = ratio.clamp(1 - clip[0], 1 + clip[1])
    loss = -torch.min(ratio * advantage, clipped * advantage)
    if beta:
        if reference is None:
            raise ValueError("beta > 0 asks for the reference's log-probabilities")
        loss = loss + beta * divergence(logps, reference) * (ratio if corrected else 1.0)
    loss = loss * mask
    if loss_type == "grpo":
        return (loss.sum(1) / mask.sum(1).clamp(min=1)).mean()
    if loss_type == "dapo":
        return loss.sum() / mask.sum().clamp(min=1)
    if max_length is None:
        raise ValueError("dr_grpo divides by max_length: pass the limit of a completion's tokens")
    return loss.sum() / (len(loss) * max_length)

"""Multi-head modality fusion: the `<emb>` state looks back at the raw signals of each modality.

MOON3.0 states that a multi-head module adaptively re-integrates the raw image and text signals, because
long reasoning dilutes attention on them; the equations below are ours.

    q_h       = W_q^h LN(e)                                       e: last-layer state at <emb>
    o_{h,m}   = softmax(q_h K_m^h / sqrt(d_h)) V_m^h              m in image, text, rationale
    pi_{h,.}  = softmax over the modalities present of (q_h . W_g o_{h,m} / sqrt(d_h) + b_{h,m})
    z_0       = e + W_o [sum_m pi_{1,m} o_{1,m}; ...; sum_m pi_{H,m} o_{H,m}]

Image tokens enter as the language model receives them, text as its input embeddings, the rationale as its
last-layer states. Each modality has its own LayerNorm, since their scales differ by orders of magnitude.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from moonshelf.model.configuration import MODALITIES, MoonConfig


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """One query per head over masked tokens.

    query (B, H, dh), keys and values (B, T, H, dh), mask (B, T) bool -> (B, H, dh). A row whose mask is
    empty gives zeros, not NaN.
    """
    scores = torch.einsum("bhd,bthd->bht", query, keys) / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~mask[:, None, :], torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1) * mask[:, None, :].to(scores.dtype)
    return torch.einsum("bht,bthd->bhd", weights, values)


class ModalityFusion(nn.Module):
    """`forward` returns z_0 (B, d) and the modality weights pi averaged over heads (B, 3)."""

    def __init__(self, config: MoonConfig) -> None:
        super().__init__()
        d, self.heads = config.hidden, config.heads
        self.norm = nn.LayerNorm(d)
        self.query = nn.Linear(d, d)
        self.norms = nn.ModuleDict({m: nn.LayerNorm(d) for m in MODALITIES})
        self.keys = nn.ModuleDict({m: nn.Linear(d, d) for m in MODALITIES})
        self.values = nn.ModuleDict({m: nn.Linear(d, d) for m in MODALITIES})
        self.gate = nn.Parameter(torch.eye(d // self.heads).repeat(self.heads, 1, 1))
        self.bias = nn.Parameter(torch.zeros(self.heads, len(MODALITIES)))
        self.out = nn.Linear(d, d)

    def forward(self, e: Tensor, signals: dict[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """`e` (B, d); `signals` maps a modality to its tokens (B, T, d) and their mask (B, T) bool."""
        batch = e.shape[0]
        query = self.query(self.norm(e)).view(batch, self.heads, -1)
        read, present = [], []
        for modality in MODALITIES:
            tokens, mask = signals[modality]
            tokens = self.norms[modality](tokens)
            shape = (batch, tokens.shape[1], self.heads, -1)
            keys, values = self.keys[modality](tokens).view(shape), self.values[modality](tokens).view(shape)
            read.append(attend(query, keys, values, mask))
            present.append(mask.any(1))
        o, here = torch.stack(read, 2), torch.stack(present, 1)  # (B, H, 3, dh), (B, 3)
        logits = (
            torch.einsum("bhd,hde,bhme->bhm", query, self.gate, o) / math.sqrt(query.shape[-1]) + self.bias
        )
        logits = logits.masked_fill(~here[:, None, :], torch.finfo(logits.dtype).min)
        pi = logits.softmax(-1) * here[:, None, :].to(logits.dtype)
        mixed = torch.einsum("bhm,bhmd->bhd", pi, o).reshape(batch, -1)
        return e + self.out(mixed), pi.mean(1)

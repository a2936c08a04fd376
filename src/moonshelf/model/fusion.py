"""Multi-head modality fusion: the `<emb>` state looks back at the raw signals of each modality.

MOON3.0 states that a multi-head module adaptively re-integrates the raw image and text signals, because
long reasoning dilutes attention on them; the equations below are ours.

    q_h       = W_q^h LN(e)                                       e: last-layer state at <emb>
    o_{h,m}   = softmax(q_h K_m^h / sqrt(d_h)) V_m^h              m in image, text, rationale
    pi_{h,.}  = softmax over the modalities present of (n(q_h) . W_g n(o_{h,m}) / sqrt(d_h) + b_{h,m})
    z_0       = e + W_o [sum_m pi_{1,m} o_{1,m}; ...; sum_m pi_{H,m} o_{H,m}]

Image tokens enter as the language model receives them, text as its input embeddings, the rationale as its
last-layer states. Each modality has its own LayerNorm, since their scales differ by orders of magnitude.
n(x) = x / rms(x) keeps the gate's logits in a range where no modality's weight, and with it its gradient, is
lost for good: without it the title took 90% and the rationale under 0.1% (docs/experiments.md). For the same
reason training hides each modality from the fusion now and then (ModDrop); <emb> itself has read them all.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from moonshelf.model.configuration import MODALITIES, MoonConfig


def attend(query: Tensor, tokens: Tensor, keys: nn.Linear, values: nn.Linear, mask: Tensor) -> Tensor:
    """One query per head over masked tokens: softmax(q K / sqrt(d_h)) V.

    query (B, H, dh), tokens (B, T, d), mask (B, T) bool -> (B, H, dh). A row whose mask is empty gives zeros,
    not NaN. With a single query the key and value projections move from the T tokens to the query and to the
    pooled token, q (W_k x) = (W_k' q) x: H/d of the cost of projecting every token, for the same number.
    """
    _, heads, size = query.shape
    absorbed = torch.einsum("bhd,hde->bhe", query, keys.weight.view(heads, size, -1))
    scores = absorbed @ tokens.transpose(1, 2) / math.sqrt(size)
    scores = scores.masked_fill(~mask[:, None, :], torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1) * mask[:, None, :].to(scores.dtype)
    pooled = torch.einsum("bhe,hde->bhd", weights @ tokens, values.weight.view(heads, size, -1))
    present = mask.any(1)[:, None, None].to(pooled.dtype)
    return pooled + present * values.bias.view(heads, size)


class ModalityFusion(nn.Module):
    """`forward` returns z_0 (B, d) and the modality weights pi averaged over heads (B, 3)."""

    def __init__(self, config: MoonConfig) -> None:
        super().__init__()
        d, self.heads, self.dropout = config.hidden, config.heads, config.modality_dropout
        self.norm = nn.LayerNorm(d)
        self.query = nn.Linear(d, d)
        self.norms = nn.ModuleDict({m: nn.LayerNorm(d) for m in MODALITIES})
        self.keys = nn.ModuleDict(
            {m: nn.Linear(d, d, bias=False) for m in MODALITIES}
        )  # softmax drops a bias
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
            keys, values = (cast(nn.Linear, group[modality]) for group in (self.keys, self.values))
            read.append(attend(query, tokens, keys, values, mask))
            present.append(mask.any(1))
        o, here = torch.stack(read, 2), torch.stack(present, 1)  # (B, H, 3, dh), (B, 3)
        if self.training and self.dropout:
            kept = here & (torch.rand(here.shape, device=here.device) >= self.dropout)
            here = torch.where(kept.any(1, keepdim=True), kept, here)
        asked, said = _unit(query), _unit(o)
        logits = torch.einsum("bhd,hde,bhme->bhm", asked, self.gate, said) / math.sqrt(query.shape[-1])
        logits = logits + self.bias
        logits = logits.masked_fill(~here[:, None, :], torch.finfo(logits.dtype).min)
        pi = logits.softmax(-1) * here[:, None, :].to(logits.dtype)
        mixed = torch.einsum("bhm,bhmd->bhd", pi, o).reshape(batch, -1)
        return e + self.out(mixed), pi.mean(1)


def _unit(x: Tensor) -> Tensor:
    """Root mean square 1 over the last dimension; an absent modality stays zero."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

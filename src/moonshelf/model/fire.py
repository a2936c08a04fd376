"""FIRE, fine-grained residual enhancement: detail of earlier layers is put back step by step.

MOON3.0 states that local detail fades in forward propagation and is preserved progressively throughout
the network; the equations are ours, after the gated residual h + lambda * a * F(h) with
a = sigmoid(w . GELU(W LN h)) that the same group describes for PailitaoGR.

    z_k = z_{k-1} + lambda_k * a_k * F_k(z_{k-1}, U_k),   k = 1 ... K
    F_k = y + MLP(LN y),  y = attention of W_q LN(z_{k-1}) over LN(U_k)
    a_k = sigmoid(w_k . GELU(W_k LN z_{k-1}))

U_k are the states of the product's image and text tokens after one tapped decoder layer; lambda_k is a
layer scale (one number a channel) that starts small, so that training starts from the fused vector.
"""

from __future__ import annotations

from torch import Tensor, full, nn

from moonshelf.model.configuration import MoonConfig
from moonshelf.model.fusion import attend


class FireStep(nn.Module):
    """One tapped depth: z (B, d), tokens (B, T, d), mask (B, T) bool -> z (B, d)."""

    def __init__(self, config: MoonConfig) -> None:
        super().__init__()
        d, self.heads = config.hidden, config.heads
        inner = int(d * config.mlp_ratio)
        self.norm, self.token_norm, self.mlp_norm = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.query, self.values, self.out = (nn.Linear(d, d) for _ in range(3))
        self.keys = nn.Linear(d, d, bias=False)
        self.mlp = nn.Sequential(nn.Linear(d, inner), nn.GELU(), nn.Linear(inner, d))
        self.gate = nn.Sequential(nn.Linear(d, d // 4), nn.GELU(), nn.Linear(d // 4, 1), nn.Sigmoid())
        self.scale = nn.Parameter(full((d,), config.layer_scale))

    def forward(self, z: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        batch, normed = z.shape[0], self.norm(z)
        query = self.query(normed).view(batch, self.heads, -1)
        y = attend(query, self.token_norm(tokens), self.keys, self.values, mask)
        y = self.out(y.reshape(batch, -1))
        return z + self.scale * self.gate(normed) * (y + self.mlp(self.mlp_norm(y)))


class Fire(nn.Module):
    """The steps in order; `taps` holds one (B, T, d) tensor for each, `mask` (B, T) the product's tokens."""

    def __init__(self, config: MoonConfig) -> None:
        super().__init__()
        self.steps = nn.ModuleList(FireStep(config) for _ in config.taps)

    def forward(self, z: Tensor, taps: list[Tensor], mask: Tensor) -> Tensor:
        for step, tokens in zip(self.steps, taps, strict=True):
            z = step(z, tokens, mask)
        return z

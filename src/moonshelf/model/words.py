"""The word path: static embeddings of what is read and written, straight into the vector.

A small decoder does not learn from a few thousand products what words mean, and its states lose what it has
just written (docs/experiments.md). Static embeddings distilled from a sentence encoder, as model2vec makes
them, know words from the start, in the encoder's own space. The equations are ours:

    s_m = sum_t a_t S[id_t],  a_t = softmax over t in m of (w_m . LN(x_t)),   m in text, rationale
    v   = W_p LN(z_K), and to its even numbers is added  sum_m g_m s_m,   g_m = exp(u_m . LN(e) + b_m)

So half of the numbers speak the encoder's language, in which a text keeps its place while contrasts move
pictures and products towards it (as LiT locks one side), and half are free for what no words say. They
alternate, hence every Matryoshka size holds both.

The length of a row of S is its word's weight, so that equal a_t (the start: w_m = 0) give the weighted mean.
x_t are last-layer states, which tell a value from its key; e is the state at <emb>.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moonshelf.model.configuration import MoonConfig

SOURCES = ("text", "rationale")


def semantic(vectors: Tensor) -> Tensor:
    """The numbers (..., dim / 2) of vectors (..., dim) that the words are added to."""
    return vectors[..., ::2]


def locked(vectors: Tensor) -> Tensor:
    """The same vectors (..., dim), but no gradient passes through their semantic numbers."""
    return torch.stack([semantic(vectors).detach(), vectors[..., 1::2]], -1).flatten(-2)


class WordPath(nn.Module):
    """`forward` adds up what the words of the product's text and of its rationale mean: (B, dim / 2)."""

    def __init__(self, config: MoonConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.words, config.dim // 2)
        self.norms = nn.ModuleDict({m: nn.LayerNorm(config.hidden) for m in SOURCES})
        self.scores = nn.ModuleDict({m: nn.Linear(config.hidden, 1, bias=False) for m in SOURCES})
        self.norm = nn.LayerNorm(config.hidden)
        self.gate = nn.Linear(config.hidden, len(SOURCES))
        for weight in (*self.scores.parameters(), self.gate.weight):
            nn.init.zeros_(weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, e: Tensor, words: dict[str, tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """`e` (B, d); `words` maps a source to ids (B, T) int64, states (B, T, d) and mask (B, T) bool."""
        gates = self.gate(self.norm(e)).exp()
        found = e.new_zeros(len(e), self.table.embedding_dim)
        for place, source in enumerate(SOURCES):
            ids, states, mask = words[source]
            scores = self.scores[source](self.norms[source](states))[..., 0]
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            weights = scores.softmax(-1) * mask.to(scores.dtype)  # a row without words gives zeros
            mean = torch.einsum("bt,btd->bd", weights, self.table(ids))
            found = found + gates[:, place, None] * mean
        return found

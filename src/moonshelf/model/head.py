"""The head: fusion, FIRE, words, and the projection to one vector.

    v = W_p LN(FIRE(fusion(e)))  (+ words, + pictures, where the model has these paths)

**Multi-head modality fusion**: the `<emb>` state looks back at the raw signals of each modality.

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

**FIRE, fine-grained residual enhancement**: detail of earlier layers is put back step by step.

MOON3.0 states that local detail fades in forward propagation and is preserved progressively throughout
the network; the equations are ours, after the gated residual h + lambda * a * F(h) with
a = sigmoid(w . GELU(W LN h)) that the same group describes for PailitaoGR.

    z_k = z_{k-1} + lambda_k * a_k * F_k(z_{k-1}, U_k),   k = 1 ... K
    F_k = y + MLP(LN y),  y = attention of W_q LN(z_{k-1}) over LN(U_k)
    a_k = sigmoid(w_k . GELU(W_k LN z_{k-1}))

U_k are the states of the product's image and text tokens after one tapped decoder layer; lambda_k is a
layer scale (one number a channel) that starts small, so that training starts from the fused vector.

**The word path**: static embeddings of what is read and written, straight into the vector.

A small decoder does not learn from a few thousand products what words mean, and its states lose what it has
just written (docs/experiments.md). Static embeddings distilled from a sentence encoder, as model2vec makes
them, know words from the start, in the encoder's own space. The equations are ours:

    s_m = sum_t a_t S[id_t],  a_t = softmax over t in m of (w_m . LN(x_t)),   m in text, rationale
    v   = W_p LN(z_K), and to its even numbers is added  sum_m g_m s_m,   g_m = exp(u_m . LN(e) + b_m)

So half of the numbers speak the encoder's language, in which a text keeps its place while contrasts move
pictures and products towards it (as LiT locks one side), and half are free for what no words say. They
alternate, hence every Matryoshka size holds both.

The length of a row of S is its word's weight, so that equal a_t (the start: w_m = 0) give the weighted mean.
x_t are last-layer states, which tell a value from its key; e is the state at <emb>. What no words say of a
text still follows from its words: B s_text + MLP(s_text), of unit length before, is added to its odd numbers.
Words that were written of a photo get no such numbers: they made it harder to find (docs/experiments.md).
With `written` they have a map of their own instead, C s_rationale + MLP'(s_rationale), added to all numbers
and taught on reasoned vectors: the static mean says "tshirts", the map says what tshirts are among.

**The picture path**: summaries of the tower's tokens, straight into the vector.

A linear map of them finds a product's title better than the vector that a small decoder makes of all tokens
(docs/experiments.md), so they go past it. The equations are ours; the summaries of a row's pictures are mean
and maximum of their merged tokens, and the mean of each DeepStack layer, which holds colour and texture.

    v = ... + g p,   p = A u + MLP(u),   g = exp(w . LN(e) + b),
                     u = [LN_1(mean x); LN_2(max x); LN_3(mean deep)]

**The glance**: the decoder reads what the picture path says. It learns to name what it sees from some ten
thousand rationales, where the path met a million pairs, so it wrote fewer categories rightly than the vector
told (docs/experiments.md). To every image token that the language model receives is added W_p p / rms(p),
zero at the start; the equation is ours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, full, nn

from moonshelf.model.configuration import MODALITIES, MoonConfig

if TYPE_CHECKING:
    from moonshelf.model.modeling import Reading
    from moonshelf.model.processing import Batch

SOURCES = ("text", "rationale")  # of words


# ---- fusion ----------------------------------------------------------------------------------------


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


# ---- FIRE ------------------------------------------------------------------------------------------


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


# ---- words -----------------------------------------------------------------------------------------


def semantic(vectors: Tensor) -> Tensor:
    """The numbers (..., dim / 2) of vectors (..., dim) that the words are added to."""
    return vectors[..., ::2]


def joined(even: Tensor, odd: Tensor) -> Tensor:
    """Vectors (..., dim) of their even and their odd numbers, (..., dim / 2) each."""
    return torch.stack([even, odd], -1).flatten(-2)


def locked(vectors: Tensor) -> Tensor:
    """The same vectors (..., dim), but no gradient passes through their semantic numbers."""
    return joined(semantic(vectors).detach(), vectors[..., 1::2])


class WordPath(nn.Module):
    """What the words of the product's text and of its rationale mean, added to the vector."""

    def __init__(self, config: MoonConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.words, config.dim // 2)
        self.norms = nn.ModuleDict({m: nn.LayerNorm(config.hidden) for m in SOURCES})
        self.scores = nn.ModuleDict({m: nn.Linear(config.hidden, 1, bias=False) for m in SOURCES})
        self.norm = nn.LayerNorm(config.hidden)
        self.gate = nn.Linear(config.hidden, len(SOURCES))
        self.linear = nn.Linear(config.dim // 2, config.dim // 2)
        self.free = _mlp(config.dim // 2, config.words_inner or 2 * config.dim, config.dim // 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.written = WrittenMap(config.dim) if config.written else None
        for weight in (*self.scores.parameters(), self.gate.weight):
            nn.init.zeros_(weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, e: Tensor, words: dict[str, tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """What is added to a vector: (B, dim)."""
        text, rationale = self.meanings(e, words)
        return self.of_text(text) + self.of_rationale(rationale)

    def of_text(self, said: Tensor) -> Tensor:
        """What a text's meaning (B, dim / 2) adds to a vector: (B, dim)."""
        return joined(said, _follows(said, self.linear, self.free))

    def of_rationale(self, said: Tensor) -> Tensor:
        """What a rationale's meaning (B, dim / 2) adds to a vector: (B, dim)."""
        added = joined(said, torch.zeros_like(said))
        return added if self.written is None else added + self.written(said)

    def meanings(self, e: Tensor, words: dict[str, tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
        """What the words of each source mean, (B, dim / 2) each.

        `e` (B, d); `words` maps a source to ids (B, T) int64, states (B, T, d) and mask (B, T) bool.
        """
        gates = self.gate(self.norm(e)).exp()
        found = []
        for place, source in enumerate(SOURCES):
            ids, states, mask = words[source]
            scores = self.scores[source](self.norms[source](states))[..., 0]
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            weights = scores.softmax(-1) * mask.to(scores.dtype)  # a row without words gives zeros
            mean = torch.einsum("bt,btd->bd", weights, self.table(ids))
            found.append(gates[:, place, None] * mean)
        return found


class WrittenMap(nn.Module):
    """What follows from a rationale's meaning (B, dim / 2), in all numbers: (B, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim // 2, dim)
        self.mlp = _mlp(dim // 2, 2 * dim, dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, said: Tensor) -> Tensor:
        return _follows(said, self.linear, self.mlp)


def _follows(said: Tensor, linear: nn.Module, mlp: nn.Module) -> Tensor:
    """B n(s) + MLP(n(s)) of meanings s (B, d), n of unit length; zeros where there are no words."""
    present = said.any(-1, keepdim=True).to(said.dtype)
    said = nn.functional.normalize(said, dim=-1)
    return present * (linear(said) + mlp(said))


def _mlp(inner: int, between: int, out: int) -> nn.Sequential:
    """Says nothing at the start, so that a path is added to a model without changing its vectors."""
    layers = nn.Sequential(nn.Linear(inner, between), nn.GELU(), nn.Linear(between, out))
    nn.init.zeros_(cast(nn.Linear, layers[2]).weight)
    nn.init.zeros_(cast(nn.Linear, layers[2]).bias)
    return layers


# ---- pictures --------------------------------------------------------------------------------------

PICTURE = 2  # summaries of merged tokens: mean and maximum


def summaries(visual: Any, tokens: list[int], empty: Tensor) -> Tensor:
    """Summaries (B, n, d) of each row's pictures, `empty` where a row has none of its `tokens`.

    `visual` is what the tower gave for all pictures, in the order of the rows.
    """
    merged = torch.cat(list(visual.pooler_output)).split(tokens)
    layers = [torch.cat(list(layer)).split(tokens) for layer in getattr(visual, "deepstack_features", [])]
    found = [
        torch.stack([x.mean(0), x.amax(0), *(layer[row].mean(0) for layer in layers)]).to(empty.dtype)
        if len(x) else empty[row]
        for row, x in enumerate(merged)
    ]  # fmt: skip
    return torch.stack(found)


class PicturePath(nn.Module):
    """`forward` adds what a row's pictures look like, past the language model: (B, dim)."""

    def __init__(self, config: MoonConfig) -> None:
        super().__init__()
        wide = config.pictures * config.hidden
        self.norms = nn.ModuleList(nn.LayerNorm(config.hidden) for _ in range(config.pictures))
        self.linear = nn.Linear(wide, config.dim, bias=False)
        self.mlp = _mlp(wide, 2 * config.dim, config.dim)
        self.beside = nn.Parameter(torch.zeros(1))  # b, log of the gate beside a text
        nn.init.zeros_(self.linear.weight)

    def forward(self, seen: Tensor, texts: Tensor) -> Tensor:
        """`seen` (B, n, d), `texts` (B,) whether there is a text; a row of zeros has no picture."""
        return (self.beside * texts.to(seen.dtype)).exp()[:, None] * self.look(seen)

    def look(self, seen: Tensor) -> Tensor:
        """p (B, dim) of `seen` (B, n, d); zeros for a row without a picture."""
        u = torch.cat([norm(x) for norm, x in zip(self.norms, seen.unbind(1), strict=True)], -1)
        present = seen.flatten(1).any(1, keepdim=True).to(u.dtype)
        return present * (self.linear(u) + self.mlp(u))


# ---- all of it -------------------------------------------------------------------------------------


class MoonHead(nn.Module):
    """Fusion, FIRE and projection: W_p LN(z_K), not normalised, so that Matryoshka prefixes can be."""

    def __init__(self, config: MoonConfig) -> None:
        super().__init__()
        self.config = config
        self.fusion = ModalityFusion(config) if config.fusion else None
        self.fire = Fire(config) if config.fire else None
        self.words = WordPath(config) if config.words else None
        self.pictures = PicturePath(config) if config.pictures else None
        self.glance = nn.Linear(config.dim, config.hidden, bias=False) if config.glance else None
        if self.glance is not None:
            nn.init.zeros_(self.glance.weight)
        self.norm = nn.LayerNorm(config.hidden) if config.norm else nn.Identity()
        self.project = nn.Linear(config.hidden, config.dim, bias=False)

    @torch.no_grad()
    def start_at_state(self) -> None:
        """The vector becomes the first numbers of e, with every part one optimiser step from taking part.

        For a head without `norm`: W_o = 0, lambda_k = 0, W_p = [I 0], as ReZero and LoRA start (Bachlechner
        et al., 2020; Hu et al., 2021): the zero matrix alone has a gradient at first, then all behind it.
        """
        nn.init.eye_(self.project.weight)
        if self.fusion is not None:
            nn.init.zeros_(self.fusion.out.weight)
            nn.init.zeros_(self.fusion.out.bias)
        for step in self.fire.steps if self.fire is not None else ():
            nn.init.zeros_(cast(FireStep, step).scale)

    def glanced(self, seen: Tensor) -> Tensor:
        """What is added to each image token of a row, (B, d), for summaries (B, n, d); needs a `glance`."""
        assert self.pictures is not None and self.glance is not None
        return self.glance(_unit(self.pictures.look(seen)))

    def forward(
        self, e: Tensor, reading: Reading, batch: Batch, rationale: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """`e` (B, d) -> vectors (B, dim), modality weights (B, 3).

        `rationale` holds token ids (B, T), their states (B, T, d) and a mask (B, T).
        """
        z, weights = e, e.new_zeros(e.shape[0], 3)
        if self.fusion is not None:
            signals = {
                "image": (reading.raw, batch.image_mask),
                "text": (reading.raw, batch.text_mask),
                "rationale": rationale[1:],
            }
            z, weights = self.fusion(e, signals)
        if self.fire is not None:
            z = self.fire(z, reading.taps, batch.image_mask | batch.text_mask)
        vectors = self.project(self.norm(z))
        if self.words is not None:
            text = batch.input_ids, reading.states, batch.text_mask
            vectors = vectors + self.words(e, {"text": text, "rationale": rationale})
        if self.pictures is not None and reading.seen is not None:
            vectors = vectors + self.pictures(reading.seen, batch.text_mask.any(1))
        return vectors, weights

"""The policy of the joint stage: one forward pass scores rollouts and gives their vectors.

TRL trains a `PreTrainedModel`; `Policy` is one around `MoonModel`, so that DDP and FSDP wrap a single module
and gradients of tokens and vectors come from one graph. Visual features are computed once a product and
shared by its rollouts and its query.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moonshelf.model.decode import banned_tokens
from moonshelf.model.modeling import MoonModel
from moonshelf.model.precision import computing_in
from moonshelf.training.data import Draw, Row
from moonshelf.training.views import Views


@dataclass
class Rollouts:
    """G rationales for each of P products: row r belongs to product r // G."""

    draw: Draw
    shown: list[tuple[list[int], list[int]]]  # P: text and places of pictures that the product shows
    ids: list[list[int]]  # R: tokens of each body
    closed: list[bool]  # R: the model closed it itself
    per_product: int

    def rows(self, chosen: list[int], think: int, end: int, emb: int) -> list[Row]:
        return [(*self.shown[r // self.per_product], [think, *self.ids[r], end, emb]) for r in chosen]


@dataclass
class Scored:
    """One pass over R rollouts of P products."""

    logps: Tensor  # (R, T) float32: of body and `</think>`, zero beyond
    entropies: Tensor  # (R, T) float32
    vectors: Tensor  # (R, dim), not normalised
    direct: Tensor  # (P, dim): the products without a rationale
    queries: Tensor  # (P, dim)
    phrases: Tensor  # (P, dim)
    titles: Tensor  # (P, dim): the product's words alone
    photos: Tensor  # (P, dim): its picture alone


class Policy(PreTrainedModel):
    """`MoonModel` as the module that TRL trains: DDP and FSDP see one forward pass a step."""

    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, moon: MoonModel, dtype: torch.dtype, temperature: float) -> None:
        super().__init__(moon.backbone.config)
        self.moon, self.compute_dtype, self.temperature = moon, dtype, temperature
        self.generation_config = moon.backbone.generation_config
        self._no_split_modules = moon.backbone._no_split_modules

    def forward(self, rollouts: Rollouts, chosen: list[int], width: int, queries: bool = True) -> Scored:
        """Score some rollouts; (R, `width`) log-probabilities at the sampling temperature."""
        moon, prepare = self.moon, self.moon.prepare
        with computing_in(self.compute_dtype, moon.backbone):
            views = Views(moon, rollouts.draw.pictures)
            batch, visual = views.batch(rollouts.rows(chosen, prepare.think, prepare.end_think, prepare.emb))
            vectors, _, reading = moon(batch, visual)
            targets = batch.input_ids[:, 1:]
            written = batch.rationale_mask[:, 1:] & (targets != prepare.think)
            logits = moon.logits(reading.states[:, :-1][written])
            others = [vectors.new_zeros(0, vectors.shape[1])] * 5
            if queries:
                draw, emb = rollouts.draw, [prepare.emb]
                direct: list[Row] = [(*row, emb) for row in rollouts.shown]
                titles: list[Row] = [(ids, [], emb) for ids in draw.titles]
                photos: list[Row] = [([], places[:1], emb) for places in draw.own]
                rows = [direct, *draw.asked(prepare.emb), titles, photos]
                others = [views.vectors(part) for part in rows]
        logits = (logits.float() + banned_tokens(moon)) / self.temperature
        every = logits.log_softmax(-1)
        with torch.no_grad():  # a figure, not a loss
            entropy = -(every.exp() * every.clamp(min=-1e4)).sum(-1)
        place = torch.arange(width, device=logits.device)[None] < written.sum(1)[:, None]
        logps = logits.new_zeros(place.shape).masked_scatter(
            place, every.gather(1, targets[written][:, None])
        )
        entropies = logits.new_zeros(place.shape).masked_scatter(place, entropy)
        return Scored(logps, entropies, vectors.float(), *(part.float() for part in others))

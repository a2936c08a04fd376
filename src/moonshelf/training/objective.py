"""The cold start's objective: vectors of a batch in one forward pass, and the contrasts between them.

Two halves, so that the batch is a choice and not a limit of memory. `Objective` turns products into vectors
and the likelihood of their rationales; it is the module that DDP and FSDP wrap. `contrast` needs only
vectors: all of a batch, gathered from all chunks and processes. Between the two the trainer passes the
gradient with respect to the vectors (gradient caching, Gao et al. 2021): chunks are read once without a
graph, contrasted, and read again, each with its share of the gradient. One chunk is read once. N processes
give the loss and the gradients of one (a test says so).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import gather_object
from torch import Tensor

from moonshelf.model.head import locked, semantic
from moonshelf.model.modeling import MoonModel
from moonshelf.training.data import ProductBatch, Remembered, Row, duplicate_mask, positive_mask
from moonshelf.training.losses import (
    CrossBatchMemory,
    Labels,
    Negatives,
    Temperature,
    info_nce,
    label_loss,
    similarity_loss,
    text_loss,
)
from moonshelf.training.recipe import Recipe
from moonshelf.training.sources.pairs import Item, Query
from moonshelf.training.trainer import Stage
from moonshelf.training.views import SharedVisionBatch

TEXT_WEIGHT = 0.3  # title <-> synthetic query; ours, as the next
CROSS_WEIGHT = 0.5  # direct <-> reasoned vector of a product

Vectors = dict[str, Tensor]  # by name: phrases, titles, queries, direct, reasoned; each (B, dim)


@dataclass
class TaughtTexts:
    """n texts, a sentence encoder's vectors of them (n, d), and what can be read from them, "" if unknown."""

    texts: list[str]
    vectors: Tensor
    rationales: list[str]

    def chosen(self, places: Sequence[int]) -> TaughtTexts:
        """Some of them, in float32."""
        texts, rationales = ([column[p] for p in places] for column in (self.texts, self.rationales))
        return TaughtTexts(texts, self.vectors[places].float(), rationales)


@dataclass
class BatchQueries:
    """What the masks of a batch need to know about its B items; no pictures, so it can travel."""

    items: list[Item]
    synthetic: list[Query]
    queries: list[Query]

    @classmethod
    def of(cls, draw: ProductBatch) -> BatchQueries:
        items = [dataclasses.replace(item, images=()) for item in draw.items]
        return cls(items, draw.synthetic, draw.queries)

    def __add__(self, other: BatchQueries) -> BatchQueries:
        return BatchQueries(
            self.items + other.items, self.synthetic + other.synthetic, self.queries + other.queries
        )


class Objective(Stage):
    """Model and temperature; `forward` gives the vectors of a draw and the sum of its rationales' losses."""

    def __init__(self, model: MoonModel, recipe: Recipe, remembered: Remembered | None = None) -> None:
        super().__init__()
        self.model, self.recipe, self.remembered = model, recipe, remembered
        self.temperature = Temperature(recipe.temperature)
        self.temperature.log_scale.requires_grad_(recipe.learn_temperature)

    def forward(
        self, draw: ProductBatch, own: Sequence[list[int]] = (), texts: TaughtTexts | None = None
    ) -> tuple[Vectors, Tensor, Tensor, Tensor]:
        """Vectors, summed cross-entropy of the taught rationales, inverse temperature, loss of `texts`.

        `own` holds the bodies that the model wrote, for `reasoned` draws.
        """
        views, prepare = SharedVisionBatch(self.model, draw.pictures, self.remembered), self.model.prepare
        emb = prepare.emb
        queries, phrases = draw.asked(emb)
        # Texts stay where the sentence encoder has put them; products and pictures move.
        lock = locked if self.model.head.words is not None else _free
        found = {"synthetic": lock(views.vectors(phrases))}
        if draw.kind == "direct":
            found["titles"] = lock(views.vectors([(ids, [], [emb]) for ids in draw.titles]))
            found["direct"] = views.vectors([([], pictures[:1], [emb]) for pictures in draw.own])
        else:
            shown = list(zip(draw.shown, draw.own, strict=True))
            found["direct"] = views.vectors([(*row, [emb]) for row in shown])
            asked = views.vectors(queries)
            seen = torch.tensor([bool(pictures) for _, pictures, _ in queries], device=asked.device)
            found["queries"] = torch.where(seen[:, None], asked, lock(asked))
            if draw.kind == "reasoned":
                found["reasoned"] = views.vectors(
                    [
                        (text * kept, seen * visible, [prepare.think, *body, prepare.end_think, emb])
                        for (text, seen), (kept, visible), body in zip(shown, draw.left, own, strict=True)
                    ]
                )
        likelihood = found["direct"].new_zeros(())
        if draw.kind != "reasoned" and self.recipe.sft_weight and supervised_tokens(draw):
            likelihood = views.likelihood(
                [
                    (text, pictures, [prepare.think, *body, prepare.end_think, emb])
                    for text, pictures, body in draw.supervised
                    if body
                ]
            )
        taught = likelihood.new_zeros(())
        if texts is not None:
            ids, bodies = prepare.text_ids(texts.texts), prepare.text_ids(texts.rationales)
            rows: list[Row] = [(text, [], [emb]) for text in ids]
            said, wanted = views.vectors(rows).float(), texts.vectors.to(self.model.device)
            if self.model.head.words is None:
                taught = text_loss(said, wanted)
            else:  # the free numbers must not spoil what the others know: names are short of own evidence
                taught = text_loss(semantic(said), wanted) + similarity_loss(said, wanted)
            told: list[Row] = [
                (text, [], [prepare.think, *body, prepare.end_think, emb])
                for text, body in zip(ids, bodies, strict=True)
                if body
            ]
            if told:
                written = sum(len(tail) - 2 for _, _, tail in told)
                taught = taught + views.likelihood(told) / written
        return {name: v.float() for name, v in found.items()}, likelihood, self.temperature(), taught


def _free(vectors: Tensor) -> Tensor:
    return vectors


def supervised_tokens(draw: ProductBatch) -> int:
    """Tokens of the draw's rationales that the model is to write, each `</think>` included."""
    return sum(len(body) + 1 for _, _, body in draw.supervised if body)


def contrast(
    kind: str,
    vectors: Vectors,
    asked: BatchQueries,
    scale: Tensor,
    recipe: Recipe,
    dims: tuple[int, ...],
    products: CrossBatchMemory,
    titles: CrossBatchMemory,
    labels: Labels | None = None,
) -> dict[str, Tensor]:
    """Weighted InfoNCE terms of a whole batch.

    Vectors of past `products` are further negatives of what asks for a product, those of past `titles` of
    the pictures: without the second a picture meets a hundredth of what a title meets, and names it worse
    (docs/experiments.md).
    """
    items, past = asked.items, products.items
    twins, told = duplicate_mask(items, items), positive_mask(asked.synthetic, items, items)

    def nce(
        a: str, b: str, mask: Tensor, past_mask: Tensor | None = None, rows: Tensor | slice = slice(None)
    ) -> Tensor:
        of_left = Negatives(products.vectors, past_mask[rows]) if past_mask is not None else None
        of_right = None
        if a == "titles":
            of_right = Negatives(titles.vectors, duplicate_mask(items, titles.items)[rows])
        left, right = vectors[a][rows], vectors[b][rows]
        return info_nce(left, right, scale, mask[rows][:, rows], dims, of_left, of_right)

    def labelled(*sides: str) -> dict[str, Tensor]:
        if labels is None:
            return {}
        found = [label_loss(vectors[side], labels, scale, dims) for side in sides]
        return {"label": recipe.label_weight * torch.stack(found).mean()}

    past_told = positive_mask(asked.synthetic, items, past)
    if kind == "direct":
        past_twins = duplicate_mask(items, past)
        terms = {**labelled("direct", "titles"), "synthetic": nce("synthetic", "direct", told, past_told)}
        titled = torch.tensor([bool(item.title) for item in items])  # no title finds no picture
        if titled.any():
            terms["title"] = recipe.intra_weight * nce("titles", "direct", twins, past_twins, titled)
            terms["text"] = TEXT_WEIGHT * nce("synthetic", "titles", told, None, titled)
        return terms
    wanted, past_wanted = (positive_mask(asked.queries, items, others) for others in (items, past))
    sides = ("direct", "reasoned") if kind == "reasoned" else ("direct",)
    terms = {
        **labelled(*sides),
        "query": torch.stack([nce("queries", side, wanted, past_wanted) for side in sides]).mean(),
        "synthetic": torch.stack([nce("synthetic", side, told, past_told) for side in sides]).mean(),
    }
    if kind == "reasoned":
        terms["cross"] = CROSS_WEIGHT * nce("direct", "reasoned", twins)
    return terms


def whole_batch(vectors: Vectors, asked: BatchQueries) -> tuple[Vectors, BatchQueries, list[int]]:
    """Leaves with gradient of the vectors of all processes, what is asked of them, and each one's start."""
    shares = gather_object([({name: v.detach().cpu() for name, v in vectors.items()}, asked)])
    device = next(iter(vectors.values())).device
    leaves = {
        name: torch.cat([share[0][name] for share in shares]).to(device).requires_grad_() for name in vectors
    }
    everyone, starts = shares[0][1], [0]
    for _, more in shares[1:]:
        starts.append(len(everyone.items))
        everyone = everyone + more
    return leaves, everyone, starts

"""Joint contrastive and RL training: GRPO over rollouts of the rationale, and InfoNCE over the same rollouts.

    L = w_g GRPO(rollouts) + w_c [InfoNCE(query <-> vectors of rollouts, and direct ones)       (LREM's form)
                                  + w_i InfoNCE(title <-> picture)]

The retrieval reward ranks a rollout, for its product's own queries, among the other products' rollouts and a
memory of past ones. One forward pass scores the tokens of all rollouts and gives their vectors, so that both
losses meet in one backward pass; visual features are computed once a product.

Choices (ours): a rollout's rank is the geometric mean of the ranks of its two queries, a synthetic one and
one of MOON's mix; other processes' rollouts are negatives without gradient.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import functional as F

from moonshelf.errors import UserError
from moonshelf.model.decode import repeat_rows, sampling
from moonshelf.model.encoders.base import Written
from moonshelf.model.engine import write
from moonshelf.model.modeling import MoonModel, normalise
from moonshelf.model.precision import computing_in, resolve
from moonshelf.prompts import read_rationale
from moonshelf.training.adapters import adapt, merged_state
from moonshelf.training.data import (
    ProductBatch,
    Row,
    Sampler,
    duplicate_mask,
    held_out,
    open_sources,
    positive_mask,
    prepare,
)
from moonshelf.training.grpo import advantages, total
from moonshelf.training.losses import CrossBatchMemory, Negatives, info_nce
from moonshelf.training.recipe import JointRecipe
from moonshelf.training.rewards import REWARDS, ranks
from moonshelf.training.rollouts import RolloutTrainer, Scored, score_tokens
from moonshelf.training.sources.pairs import Item
from moonshelf.training.trainer import Stage, summary, this_process
from moonshelf.training.validation import validate
from moonshelf.training.views import SharedVisionBatch


@dataclass
class Rollouts:
    """G rationales for each of P products: row r belongs to product r // G."""

    draw: ProductBatch
    shown: list[tuple[list[int], list[int]]]  # P: text and places of pictures that the product shows
    ids: list[list[int]]  # R: tokens of each body
    per_product: int


@dataclass
class Vectors:
    """Of one pass over R rollouts of P products; none is normalised."""

    rollouts: Tensor  # (R, dim)
    direct: Tensor  # (P, dim): the products without a rationale
    queries: Tensor  # (P, dim)
    synthetic: Tensor  # (P, dim): their synthetic queries
    titles: Tensor  # (P, dim): the product's words alone
    photos: Tensor  # (P, dim): its picture alone


class JointPolicy(Stage):
    """`MoonModel` as the module that is wrapped: one forward pass a slice of rollouts."""

    def __init__(self, moon: MoonModel, dtype: torch.dtype, temperature: float) -> None:
        super().__init__()
        self.moon, self.compute_dtype, self.temperature = moon, dtype, temperature

    def forward(self, rollouts: Rollouts, chosen: list[int], width: int, whole: bool = True) -> Scored:
        """Log-probabilities (R, `width`) at the sampling temperature; with `whole` the vectors too."""
        moon, prepare, draw = self.moon, self.moon.prepare, rollouts.draw
        emb = [prepare.emb]
        with computing_in(self.compute_dtype, moon.backbone):
            views = SharedVisionBatch(moon, draw.pictures)
            shown = [rollouts.shown[r // rollouts.per_product] for r in chosen]
            written = [[prepare.think, *rollouts.ids[r], prepare.end_think, prepare.emb] for r in chosen]
            batch, visual = views.batch([(*row, tail) for row, tail in zip(shown, written, strict=True)])
            vectors, _, reading = moon(batch, visual)
            targets = batch.input_ids[:, 1:]
            scored = batch.rationale_mask[:, 1:] & (targets != prepare.think)
            logps, entropies = score_tokens(
                moon, reading.states[:, :-1][scored], targets[scored], scored.sum(1), width, self.temperature
            )
            if not whole:
                return Scored(logps, entropies)
            direct: list[Row] = [(*row, emb) for row in rollouts.shown]
            titles: list[Row] = [(ids, [], emb) for ids in draw.titles]
            photos: list[Row] = [([], places[:1], emb) for places in draw.own]
            others = [views.vectors(rows) for rows in (direct, *draw.asked(prepare.emb), titles, photos)]
        return Scored(logps, entropies, Vectors(*(part.float() for part in (vectors, *others))))


class JointTrainer(RolloutTrainer):
    """One process's share: `recipe.products` products with `recipe.rollouts` rationales each a step."""

    rewards = REWARDS

    def __init__(
        self, moon: MoonModel, recipe: JointRecipe, sampler: Sampler, validation: Sequence[Item] = ()
    ) -> None:
        self.sampler, self.memory = sampler, CrossBatchMemory(recipe.memory)
        self.rollouts: Rollouts  # of the step
        self.contrastive: Tensor  # of the slice, not weighted
        self.done: tuple[Tensor, list[Item]] | None = None  # of the last step, for the memory
        policy = JointPolicy(moon, resolve(recipe.precision, moon.device), recipe.sampling_temperature)
        super().__init__(policy, recipe, moon, recipe.products * recipe.rollouts, validation)

    def draw(self, step: int, share: float) -> ProductBatch:
        """This process's products of a step."""
        each, process = self.recipe.products, self.accelerator.process_index
        key = f"{self.recipe.seed}/{step}"
        drawn = self.sampler.draw(each * self.accelerator.num_processes, random.Random(key))
        items = [drawn[place % len(drawn)] for place in range(process * each, (process + 1) * each)]
        draw = prepare(self.moon, items, "joint", key, process * each, self.sampler.asked)
        if len(draw.items) != len(items):
            raise UserError("a training picture is broken: find it with `moonshelf check` and take it out.")
        return draw

    def measure(self) -> dict[str, Any]:
        return validate(self.moon, self.eval_dataset)

    def export(self) -> None:
        self.moon.save_pretrained(self.out / "checkpoint", state=merged_state(self.moon))

    # ---- rollouts and rewards ----------------------------------------------------------------------

    def roll(self, batch: ProductBatch) -> tuple[list[Written], Tensor]:
        """Write G rationales for each product and reward them."""
        recipe, per = self.recipe, self.recipe.rollouts
        started, first = time.perf_counter(), self.accelerator.process_index * recipe.products
        slot = self.state.global_step * recipe.products * self.accelerator.num_processes + first
        torch.manual_seed((recipe.seed * 1_000_003 + self.state.global_step) * 4099 + slot)
        shown = list(zip(batch.shown, batch.own, strict=True))
        written, queries = self.write(batch, shown)
        self.rollouts = Rollouts(batch, shown, [w.ids for w in written], per)
        gained = advantages(self.reward(batch, shown, written, queries), per)
        counts = [w.tokens for w in written]
        self.figures |= {
            "rationale/length": sum(counts) / len(counts),
            "rationale/closed": sum(w.closed for w in written) / len(written),
            "rationale/diversity": diversity([w.rationale for w in written], per),
            "rollouts/tokens_per_second": sum(counts) / max(time.perf_counter() - started, 1e-9),
        }
        return written, gained

    @torch.no_grad()
    def write(
        self, draw: ProductBatch, shown: list[tuple[list[int], list[int]]]
    ) -> tuple[list[Written], Tensor]:
        """Rollouts on one prefill a product, and unit vectors (2, P, dim) of the products' queries."""
        moon, prepare = self.moon, self.moon.prepare
        with computing_in(self.model.compute_dtype, moon.backbone):
            views = SharedVisionBatch(moon, draw.pictures)
            batch, visual = views.batch([(*row, [prepare.think]) for row in shown])
            reading = moon.read(batch, visual, use_cache=True)
            batch, reading = repeat_rows(batch, reading, self.recipe.rollouts)
            written = write(moon, batch, reading, pick=sampling(self.recipe.sampling_temperature))
            asked = [views.vectors(rows) for rows in draw.asked(prepare.emb)]
        return written, torch.stack([normalise(vectors) for vectors in asked])

    def reward(
        self,
        draw: ProductBatch,
        shown: list[tuple[list[int], list[int]]],
        written: list[Written],
        queries: Tensor,
    ) -> Tensor:
        """(R,) weighted sum of the rewards; all of them are logged."""
        per, items = self.recipe.rollouts, draw.items
        if self.done:  # only now: a step's own rollouts are in its batch already
            self.memory.push(*self.done)
        rollouts = torch.stack([torch.from_numpy(w.vector) for w in written]).to(queries)
        pool, owners = rollouts, [items[r // per] for r in range(len(written))]
        if self.memory.items:
            pool = torch.cat([pool, normalise(self.memory.vectors).to(pool)])
            owners = [*owners, *self.memory.items]
        found = []
        for vectors, asked in zip(queries, (draw.queries, draw.synthetic), strict=True):
            rivals = ~positive_mask(asked, items, owners).to(pool.device).repeat_interleave(per, 0)
            scores = (vectors @ pool.T).repeat_interleave(per, 0)
            own = torch.eye(len(written), len(owners), dtype=torch.bool, device=pool.device)
            rank, candidates = ranks(scores, own, ~rivals & ~own)
            found.append((rank.float().log() / candidates.clamp(min=2).float().log()).nan_to_num(1.0))
        # One query's N is not another's: the mean of log rank / log N, as a rank among 100.
        rank = 100 ** torch.stack(found).mean(0)
        texts = self.moon.processor.tokenizer.batch_decode([text for text, _ in shown])
        bodies = [w.rationale.removeprefix("<think>") for w in written]
        earned, weights = self.earned({
            "completions": [
                body if w.closed else body.removesuffix("</think>")
                for body, w in zip(bodies, written, strict=True)
            ],
            "rank": rank.tolist(), "candidates": [100] * len(written),
            "truth": [read_rationale(items[r // per].rationale) or {} for r in range(len(written))],
            "title": [texts[r // per] for r in range(len(written))], "tokens": [w.tokens for w in written],
        })  # fmt: skip
        gained = total(earned, weights)
        self.note_rewards(earned, gained)
        self.done = rollouts[::per], items
        return gained

    # ---- loss ----------------------------------------------------------------------------------------

    def slices(self, count: int) -> list[list[int]]:
        """Every slice has rollouts of all products: those of one product are no negatives of each other."""
        n = self.recipe.accumulate
        return [list(range(first, count, n)) for first in range(n)]

    def score(self, policy: Any, rows: list[int], width: int, whole: bool = True) -> Scored:
        return policy(self.rollouts, rows, width, whole)

    def weight(self) -> float:
        alternate = self.recipe.mode == "alternate" and self.state.global_step % 2
        return 0.0 if alternate else float(self.recipe.grpo_weight)

    def beside(self, scored: Scored, rows: list[int]) -> dict[str, Tensor]:
        weight = self.recipe.contrastive_weight
        if self.recipe.mode == "alternate" and not self.state.global_step % 2:
            weight = 0.0
        self.contrastive = loss = self.contrast(scored.rest, rows)
        self.figures["loss/contrastive"] = loss.item()
        return {"contrast": weight * loss}

    def contrast(self, found: Vectors, rows: list[int]) -> Tensor:
        """InfoNCE of each rollout, and of the direct vectors, with its product's two queries.

        Rollouts of one product never compete. Without the direct vectors the two would drift apart, and
        without the intra-product term the cold start's title <-> picture is forgotten (docs/experiments.md).
        """
        draw, recipe = self.rollouts.draw, self.recipe
        owner = [r // recipe.rollouts for r in rows]
        beyond, past = self._beyond(found.rollouts, [draw.items[i] for i in owner])
        scale = torch.tensor(1 / recipe.temperature, device=found.rollouts.device)
        dims, terms = self.moon.config.matryoshka, []
        for vectors, kinds in ((found.queries, draw.queries), (found.synthetic, draw.synthetic)):
            for products, answers in ((owner, found.rollouts), (list(range(len(draw.items))), found.direct)):
                items, asked = [draw.items[i] for i in products], [kinds[i] for i in products]
                spared, past_spared = (positive_mask(asked, items, others) for others in (items, past))
                wanted = vectors[products]
                terms.append(info_nce(wanted, answers, scale, spared, dims, Negatives(beyond, past_spared)))
        loss = torch.stack(terms).mean()
        if recipe.intra_weight:
            twins = duplicate_mask(draw.items, draw.items)
            loss = loss + recipe.intra_weight * info_nce(found.titles, found.photos, scale, twins, dims)
        return loss

    def _beyond(self, vectors: Tensor, items: list[Item]) -> tuple[Tensor, list[Item]]:
        """Negatives without gradient: the memory, and the rollouts of the other processes."""
        beyond, past = self.memory.vectors.to(vectors).view(-1, vectors.shape[1]), list(self.memory.items)
        light = [dataclasses.replace(item, images=()) for item in items]
        for process, (theirs, their_items) in enumerate(gather_object([(vectors.detach().cpu(), light)])):
            if process != self.accelerator.process_index:
                beyond, past = torch.cat([beyond, theirs.to(beyond)]), [*past, *their_items]
        return beyond, past

    def compare(self, policy: Tensor) -> None:
        """Gradient norms of both losses on the last decoder layer, and their cosine (Embed-RL's warning)."""
        layer = [p for p in self.moon.decoder.layers[-1].parameters() if p.requires_grad]
        flat = []
        for loss in (policy, self.contrastive):
            grads = torch.autograd.grad(loss, layer, retain_graph=True, allow_unused=True)
            parts = [p.new_zeros(p.shape) if g is None else g for g, p in zip(grads, layer, strict=True)]
            flat.append(torch.cat([part.flatten().float() for part in parts]))
        self.figures |= {
            "gradient/grpo": flat[0].norm().item(),
            "gradient/contrastive": flat[1].norm().item(),
            "gradient/cosine": F.cosine_similarity(flat[0], flat[1], dim=0, eps=1e-12).item(),
        }


def diversity(rationales: list[str], per: int) -> float:
    """Mean share of distinct rationales in a group of `per`."""
    groups = [rationales[i : i + per] for i in range(0, len(rationales), per)]
    return sum(len(set(group)) / len(group) for group in groups) / len(groups)


def train_joint(recipe: JointRecipe, data: Path, dry_run: bool = False) -> Path:
    """Joint training of a cold-started model; returns the folder of the best checkpoint."""
    moon = MoonModel.from_pretrained(recipe.model, download=recipe.download).to(this_process().device)
    sampler = Sampler(open_sources(recipe, data, moon.fingerprint))
    validation = held_out(recipe, data)
    adapt(moon, recipe)
    step = f"{recipe.products} products, {recipe.rollouts} rollouts each; {recipe.memory:,} in the memory"
    summary(recipe, moon, step)
    if not dry_run:
        JointTrainer(moon, recipe, sampler, validation).train()
    return Path(recipe.out) / "checkpoint"

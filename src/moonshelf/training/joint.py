"""Joint stage: GRPO over rollouts of the rationale and InfoNCE over the same rollouts, in one step.

    L = w_g GRPO(rollouts) + w_c [InfoNCE(query <-> vectors of rollouts, and direct ones)       (LREM's form)
                                  + w_i InfoNCE(title <-> picture)]

`JointTrainer` is TRL's GRPOTrainer with four things replaced. Rollouts are written by our engine, which
reads each product once for all of its G rollouts and gives their vectors from the same cache. The retrieval
reward ranks a rollout, for its product's own queries, among the other products' rollouts and a queue of past
ones. One forward pass scores the tokens of all rollouts and gives their vectors (see `policy`). And InfoNCE
is added to TRL's loss before its one backward pass. TRL keeps the loss, the KL, the logging, checkpoints, and
Accelerate. A process holds whole groups: the G rollouts of a product are never split.

Choices (ours): a truncated rationale is closed by force, and the closing token takes no gradient; a rollout's
rank is the geometric mean of the ranks of its two queries, a phrase and one of the recipe's mix; other
processes' rollouts are negatives without gradient.
"""

from __future__ import annotations

import dataclasses
import random
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from trl import GRPOConfig

from moonshelf.errors import UserError
from moonshelf.model.decode import repeat_rows, sampling
from moonshelf.model.engine import Written, write
from moonshelf.model.modeling import MoonModel, normalise
from moonshelf.model.precision import computing_in, resolve
from moonshelf.prompts import read_rationale
from moonshelf.training.data import (
    Draw,
    Sampler,
    answered,
    prepare,
    same,
)
from moonshelf.training.grpo import advantages, total
from moonshelf.training.losses import CrossBatchMemory, info_nce
from moonshelf.training.objective import everywhere
from moonshelf.training.pairs import Item
from moonshelf.training.policy import Policy, Rollouts, Scored
from moonshelf.training.recipe import JointRecipe
from moonshelf.training.rewards import REWARDS, margins, ranks
from moonshelf.training.trainer import RolloutTrainer
from moonshelf.training.views import Views


class JointTrainer(RolloutTrainer):
    """One process's share: `recipe.products` products with `recipe.rollouts` rationales each a step."""

    def __init__(self, moon: MoonModel, recipe: JointRecipe, sampler: Sampler, args: GRPOConfig) -> None:
        self.sampler, self.queue = sampler, CrossBatchMemory(recipe.queue)
        self.rollouts: Rollouts  # of the step
        self._done: tuple[Tensor, list[Item]] | None = None  # of the last step, for the queue
        policy = Policy(moon, resolve(recipe.precision, moon.device), recipe.sampling_temperature)
        super().__init__(policy, recipe, REWARDS, args, moon.processor)

    # ---- rollouts and rewards ----------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Draw products, write G rationales each, reward them: TRL's batch, whose rows are rollouts."""
        recipe, moon = self.recipe, self.policy.moon
        per = self.recipe.rollouts
        slots = [row["slot"] for row in inputs[::per]]
        started = time.perf_counter()
        draw, shown = self._draw(slots)
        torch.manual_seed((recipe.seed * 1_000_003 + self.state.global_step) * 4099 + slots[0])
        moon.eval()
        written, queries = self._write(draw, shown, per)
        moon.train()
        self.rollouts = Rollouts(draw, shown, [w.ids for w in written], [w.closed for w in written], per)
        rewards = self._rewards(draw, shown, written, queries)
        mode = "train" if self.policy.training else "eval"
        gained = advantages(rewards, per)
        tokens = self._tensors(written)
        tokens |= {"advantages": gained, "row": torch.arange(len(written), device=gained.device)}
        if self.beta:
            everything, width = list(range(len(written))), tokens["completion_ids"].shape[1]
            tokens["ref_per_token_logps"] = self._reference_logps(
                lambda policy: policy(self.rollouts, everything, width, queries=False)
            )
        counts = [w.tokens for w in written]
        spent = time.perf_counter() - started
        metrics = {
            "rationale/length": sum(counts) / len(counts),
            "rationale/closed": sum(w.closed for w in written) / len(written),
            "rationale/diversity": _diversity([w.rationale for w in written], per),
            "rollouts/tokens_per_second": sum(counts) / max(spent, 1e-9),
        }
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        return tokens

    def _draw(self, slots: list[int]) -> tuple[Draw, list[tuple[list[int], list[int]]]]:
        """The products of some slots of the schedule, and what each of them shows."""
        recipe, moon = self.recipe, self.policy.moon
        step, places = slots[0] // self._products, [slot % self._products for slot in slots]
        key = f"{recipe.seed}/{step}"
        drawn = self.sampler.draw(self._products, random.Random(key))
        items = [drawn[place % len(drawn)] for place in places]
        draw = prepare(
            moon, items, "joint", key, recipe.query_mix, places[0], self.sampler.asked,
        )  # fmt: skip
        rng = random.Random(f"{key}/{places[0]}")
        if len(draw.items) != len(items):
            raise UserError("a training picture is broken: find it with `moonshelf check` and take it out.")
        shown = []
        for text, own in zip(draw.shown, draw.own, strict=True):
            if text and rng.random() < recipe.leave_one_out:
                text, own = rng.choice((([], own), (text, [])))
            shown.append((text, own))
        return draw, shown

    @property
    def _products(self) -> int:
        return self.recipe.products * self.accelerator.num_processes

    @torch.no_grad()
    def _write(
        self, draw: Draw, shown: list[tuple[list[int], list[int]]], per: int
    ) -> tuple[list[Written], Tensor]:
        """Rollouts on one prefill a product, and unit vectors (2, P, dim) of the products' queries."""
        moon, prepare = self.policy.moon, self.policy.moon.prepare
        with computing_in(self.policy.compute_dtype, moon.backbone):
            views = Views(moon, draw.pictures)
            batch, visual = views.batch([(*row, [prepare.think]) for row in shown])
            reading = moon.read(batch, visual, use_cache=True)
            batch, reading = repeat_rows(batch, reading, per)
            written = write(moon, batch, reading, pick=sampling(self.recipe.sampling_temperature))
            asked = [views.vectors(rows) for rows in draw.asked(prepare.emb)]
        return written, torch.stack([normalise(vectors) for vectors in asked])

    def _rewards(
        self, draw: Draw, shown: list[tuple[list[int], list[int]]], written: list[Written], queries: Tensor
    ) -> Tensor:
        """(R,) weighted sum of the rewards; TRL calls the functions and logs each."""
        per, items = self.recipe.rollouts, draw.items
        if self._done:  # only now: a step's own rollouts are in its batch already
            self.queue.push(*self._done)
        rollouts = torch.stack([torch.from_numpy(w.vector) for w in written]).to(queries)
        pool, owners = rollouts, [items[r // per] for r in range(len(written))]
        if self.queue.items:
            pool = torch.cat([pool, normalise(self.queue.vectors).to(pool)])
            owners = [*owners, *self.queue.items]
        found, beside = [], []
        for vectors, asked in zip(queries, (draw.queries, draw.phrases), strict=True):
            rivals = ~answered(asked, items, owners).to(pool.device).repeat_interleave(per, 0)
            scores = (vectors @ pool.T).repeat_interleave(per, 0)
            own = torch.eye(len(written), len(owners), dtype=torch.bool, device=pool.device)
            rank, candidates = ranks(scores, own, ~rivals & ~own)
            found.append((rank.float().log() / candidates.clamp(min=2).float().log()).nan_to_num(1.0))
            beside.append(answered(asked, items, items).T.to(pool.device).repeat_interleave(per, 0))
        # One query's N is not another's: the mean of log rank / log N, as a rank among 100.
        rank = 100 ** torch.stack(found).mean(0)
        # The other way round: the rollout's own two queries among those of all products.
        mine = (
            torch.eye(len(items), dtype=torch.bool, device=pool.device).repeat_interleave(per, 0).repeat(1, 2)
        )
        spread = margins(rollouts @ torch.cat(list(queries)).T, mine, torch.cat(beside, 1) & ~mine)
        texts = self.policy.moon.processor.tokenizer.batch_decode([text for text, _ in shown])
        rows = [
            {
                "prompt": "", "rank": float(rank[r]), "candidates": 100,
                "similarities": float(spread[r]), "truth": _truth(items[r // per]), "title": texts[r // per],
                "tokens": w.tokens,
            }
            for r, w in enumerate(written)
        ]  # fmt: skip
        completions = [w.rationale.removeprefix("<think>") for w in written]
        completions = [
            c if w.closed else c.removesuffix("</think>") for c, w in zip(completions, written, strict=True)
        ]
        earned = self._calculate_rewards(rows, [""] * len(rows), completions, [w.ids for w in written])
        here = slice(
            self.accelerator.process_index * len(rows), (self.accelerator.process_index + 1) * len(rows)
        )
        earned = earned[here]
        weights = torch.tensor(list(self.recipe.rewards.values()), device=earned.device)
        gained = total(earned, weights)
        self._log_rewards(earned, gained.view(-1, per))
        self._done = rollouts[::per], items
        return gained

    # ---- loss ----------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss plus InfoNCE, from one forward pass over this slice of the rollouts."""
        recipe, chosen = self.recipe, inputs["row"].tolist()
        self._scored = scored = model(self.rollouts, chosen, inputs["completion_ids"].shape[1])
        policy = super()._compute_loss(model, inputs)
        contrast = self._contrast(scored, chosen) / self.current_gradient_accumulation_steps
        self._log_conflict(policy, contrast)
        weights = [recipe.grpo_weight, recipe.contrastive_weight]
        if recipe.mode == "alternate":
            weights[(self.state.global_step + 1) % 2] = 0.0
        loss = weights[0] * policy + weights[1] * contrast
        return self._finite(loss)

    def _contrast(self, scored: Scored, chosen: list[int]) -> Tensor:
        """InfoNCE of each rollout, and of the direct vectors, with its product's two queries.

        Rollouts of one product never compete. Without the direct vectors the two would drift apart, and
        without the intra-product term the cold start's title <-> picture is forgotten (docs/experiments.md).
        """
        draw, per = self.rollouts.draw, self.rollouts.per_product
        owner = [r // per for r in chosen]
        beyond, past = self._beyond(scored.vectors, [draw.items[i] for i in owner])
        recipe = self.recipe
        scale = torch.tensor(1 / recipe.temperature, device=scored.vectors.device)
        dims, terms = self.policy.moon.config.matryoshka, []
        everything = list(range(len(draw.items)))
        for vectors, kinds in ((scored.queries, draw.queries), (scored.phrases, draw.phrases)):
            for products, found in ((owner, scored.vectors), (everything, scored.direct)):
                items, asked = [draw.items[i] for i in products], [kinds[i] for i in products]
                spared, past_spared = (answered(asked, items, others) for others in (items, past))
                terms.append(
                    info_nce(
                        vectors[products], found, scale, spared, dims, beyond=beyond, beyond_same=past_spared
                    )
                )
        loss = torch.stack(terms).mean()
        if recipe.intra_weight:
            twins = same(draw.items, draw.items)
            loss = loss + recipe.intra_weight * info_nce(scored.titles, scored.photos, scale, twins, dims)
        self._metrics["train" if self.policy.training else "eval"]["loss/contrastive"].append(loss.item())
        return loss

    def _beyond(self, vectors: Tensor, items: list[Item]) -> tuple[Tensor, list[Item]]:
        """Negatives without gradient: the queue, and the rollouts of the other processes."""
        beyond, past = self.queue.vectors.to(vectors).view(-1, vectors.shape[1]), list(self.queue.items)
        light = [dataclasses.replace(item, images=()) for item in items]
        for process, (theirs, their_items) in enumerate(everywhere((vectors.detach().cpu(), light))):
            if process != self.accelerator.process_index:
                beyond, past = torch.cat([beyond, theirs.to(beyond)]), [*past, *their_items]
        return beyond, past

    def _log_conflict(self, policy: Tensor, contrast: Tensor) -> None:
        """Gradient norms of both losses on the last decoder layer, and their cosine (Embed-RL's warning)."""
        if not (self.policy.training and policy.requires_grad and contrast.requires_grad):
            return
        layer = [p for p in self.policy.moon.decoder.layers[-1].parameters() if p.requires_grad]
        flat = []
        for loss in (policy, contrast):
            grads = torch.autograd.grad(loss, layer, retain_graph=True, allow_unused=True)
            flat.append(
                torch.cat(
                    [
                        g.flatten().float() if g is not None else p.new_zeros(p.numel())
                        for g, p in zip(grads, layer, strict=True)
                    ]
                )
            )
        metrics = self._metrics["train"]
        metrics["gradient/grpo"].append(flat[0].norm().item())
        metrics["gradient/contrastive"].append(flat[1].norm().item())
        metrics["gradient/cosine"].append(F.cosine_similarity(flat[0], flat[1], dim=0, eps=1e-12).item())


def _truth(item: Item) -> dict[str, str]:
    """What the catalogue says, in the rationale's own words."""
    return read_rationale(item.rationale) or {}


def _diversity(rationales: list[str], per: int) -> float:
    """Mean share of distinct rationales in a group."""
    groups = [rationales[i : i + per] for i in range(0, len(rationales), per)]
    return sum(len(set(group)) / len(group) for group in groups) / len(groups)

"""Reason-to-Select: GRPO over the written reasons, with the answer's log loss beside it, in one step.

    L = w_g GRPO(reasons) + w_a LogLoss(answer, posterior) [+ w_c CE(known reasons)]

Each pair is asked in both orders and each ask answered G times, on one prefill. What GRPO trains are the
reasons; the answer is one token, whose whole distribution is known, so its gradient needs no sampling: it
follows the model's own reasons and learns the posterior (ours; the joint stage of the embedding model joins
GRPO and InfoNCE in the same way). Where annotated reasons are known, their cross-entropy can hold the writing
to what it learnt (InstructGPT's mix with pretraining data, 2203.02155; the use here is ours). The groups of
GRPO are the G reasons of one ask. The trainer, its logs and its alarm are those of the joint stage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig

from moonshelf.creatives.data import Example, Work, draw, load_examples, make_work
from moonshelf.creatives.evidence import check_assessment
from moonshelf.creatives.policy import Scored, VerdictPolicy, answer_loss, reasons_loss
from moonshelf.creatives.prompt import read_assessment
from moonshelf.creatives.recipe import GrpoRecipe
from moonshelf.creatives.rewards import REWARDS
from moonshelf.creatives.training import resume_from, run
from moonshelf.errors import UserError
from moonshelf.model.decode import Decoded, sampling
from moonshelf.model.precision import resolve
from moonshelf.training.grpo import advantages, total
from moonshelf.training.tracking import quiet_dependencies
from moonshelf.training.trainer import RolloutTrainer, grpo_arguments


class VerdictTrainer(RolloutTrainer):
    """One process's share: `recipe.pairs` pairs, both orders, `recipe.rollouts` reasons each, a step."""

    def __init__(
        self, policy: VerdictPolicy, recipe: GrpoRecipe, examples: list[Example], args: GRPOConfig
    ) -> None:
        self.examples = examples
        self.work: Work  # of the step, and what was written for it
        self.bodies: list[list[int]]
        super().__init__(policy, recipe, REWARDS, args, policy.creative.moon.processor)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Draw pairs, write G reasons for both orders of each, reward them: TRL's batch of rollouts."""
        recipe, creative = self.recipe, self.policy.creative
        per = recipe.rollouts
        slots = [row["slot"] for row in inputs[::per]]
        step = slots[0] // (2 * recipe.pairs)  # processes take slices of the schedule in turn
        self.work = make_work(
            creative, draw(self.examples, recipe.pairs, recipe.seed, step), f"{recipe.seed}/{step}",
            recipe.no_interest, recipe.no_overlays,
        )  # fmt: skip
        if len(self.work.asks) != len(slots):
            raise ValueError("a picture of a training pair cannot be read: take the pair out of the feed")
        torch.manual_seed((recipe.seed * 1_000_003 + self.state.global_step) * 4099 + slots[0])
        self.policy.eval()
        written = self.policy.write(self.work, sampling(recipe.sampling_temperature), per)
        self.policy.train()
        gained = self._rewards(written)
        self.bodies = [w.ids for w in written]
        tokens = self._tensors(written)
        tokens |= {
            "advantages": advantages(gained, per),
            "row": torch.arange(len(written), device=gained.device),
        }
        if self.beta:
            rows = [r // per for r in range(len(written))]
            tokens["ref_per_token_logps"] = self._reference_logps(
                lambda policy: policy(self.work, rows, self.bodies)
            )
        metrics = self._metrics["train"]
        metrics["reasons/length"].append(sum(len(w.ids) for w in written) / len(written))
        metrics["reasons/closed"].append(sum(w.closed for w in written) / len(written))
        return tokens

    @torch.no_grad()
    def _rewards(self, written: list[Decoded]) -> Tensor:
        """(R,) weighted sum of the rewards."""
        recipe, work, creative = self.recipe, self.work, self.policy.creative
        per = recipe.rollouts
        asks = [work.asks[r // per] for r in range(len(written))]
        with creative.moon.computing():
            logits = creative.answer_logits(torch.stack([w.final for w in written]), asks)
        p = logits.softmax(-1)[:, 0]
        mean = p.view(-1, 2, per).mean(-1)  # pairs, orders
        other = (1 - mean.flip(1)).reshape(-1).repeat_interleave(per)
        bodies = creative.moon.processor.tokenizer.batch_decode([w.ids for w in written])
        rows = []
        for r, (w, body) in enumerate(zip(written, bodies, strict=True)):
            ask = asks[r]
            found = read_assessment(body, ask.labels) if w.closed else None
            refuted, claimed = check_assessment(found, ask.first.facts, ask.second.facts) if found else (0, 0)
            rows.append(
                {
                    "prompt": "", "valid": found is not None, "p": float(p[r]),
                    "posterior": work.targets[r // per], "other": float(other[r]),
                    "rubric": found.rubric() if found else 0, "refuted": refuted, "claimed": claimed,
                }
            )  # fmt: skip
        earned = self._calculate_rewards(rows, [""] * len(rows), bodies, [w.ids for w in written])
        first = self.accelerator.process_index * len(rows)
        earned = earned[first : first + len(rows)]
        gained = total(earned, torch.tensor(list(recipe.rewards.values()), device=earned.device))
        self._log_rewards(earned, gained.view(-1, per))
        return gained

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss plus the answer's and the known reasons', from one pass over this slice of rollouts."""
        recipe, work, chosen = self.recipe, self.work, inputs["row"].tolist()
        rows = [r // recipe.rollouts for r in chosen]
        known: list[int] = []
        if recipe.cot_weight:  # the known reasons of an ask go with its first rollout
            firsts = [r // recipe.rollouts for r in chosen if not r % recipe.rollouts]
            known = [i for i in firsts if work.bodies[i]]
        bodies = [self.bodies[r] for r in chosen] + [work.bodies[i] for i in known]
        scored, n = model(work, rows + known, bodies), len(rows)
        width = inputs["completion_ids"].shape[1]
        logps, entropies = _wide(scored.logps[:n], width), _wide(scored.entropies[:n], width)
        self._scored = Scored(logps, entropies, scored.answers[:n])
        policy = super()._compute_loss(model, inputs)
        answer = answer_loss(scored.answers[:n], [work.targets[i] for i in rows])
        self._metrics["train"]["loss/answer"].append(answer.item())
        beside = recipe.answer_weight * answer
        if known:
            reasons = reasons_loss(scored.logps[n:], bodies[n:])
            self._metrics["train"]["loss/known reasons"].append(reasons.item())
            beside = beside + recipe.cot_weight * reasons
        return self._finite(recipe.grpo_weight * policy + beside / self.current_gradient_accumulation_steps)


def _wide(values: Tensor, width: int) -> Tensor:
    """(R, T) with `width` columns: a slice may lack the longest rollout, or have longer known reasons."""
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))


def arguments(recipe: GrpoRecipe) -> GRPOConfig:
    """The recipe as TRL's arguments."""
    return grpo_arguments(recipe, 2 * recipe.pairs * recipe.rollouts)


def train_grpo(recipe: GrpoRecipe, data: Path) -> Path:
    """Run GRPO on a selector that CoT-SFT made; returns the folder of the best one."""
    quiet_dependencies()
    creative = resume_from(recipe, recipe.model)
    if creative.prompt.describe_first:
        raise UserError("GRPO trains reasons that are written in one go: set describe_first to false.")
    examples = [example for source in recipe.sources for example in load_examples(source, data)]
    policy = VerdictPolicy(
        creative, resolve(recipe.precision, creative.moon.device), recipe.sampling_temperature
    )
    trainer = VerdictTrainer(policy, recipe, examples, arguments(recipe))
    return run(trainer, recipe, creative, data, "Reason-to-Select")

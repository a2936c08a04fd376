"""Reason-to-Select: GRPO over the written reasons, with the answer's log loss beside it, in one step.

    L = w_g GRPO(reasons) + w_a LogLoss(answer, posterior) [+ w_c CE(known reasons)]

Each pair is asked in both orders and each ask answered G times, on one prefill. What GRPO trains are the
reasons; the answer is one token, whose whole distribution is known, so its gradient needs no sampling: it
follows the model's own reasons and learns the posterior (ours; the joint stage of the embedding model joins
GRPO and InfoNCE in the same way). Where annotated reasons are known, their cross-entropy can hold the writing
to what it learnt (InstructGPT's mix with pretraining data, 2203.02155; the use here is ours). The groups of
GRPO are the G reasons of one ask. The trainer, its logs and its alarm are those of the joint stage.

Of a selector that describes first (`describe`) they are the G descriptions of one creative, the g-th of which
is compared with the g-th of its rival, in both orders. Comparing is taught beside them and never after them:
sampled words err more than those that it will judge by, and true answers to them only teach doubt (measured,
docs/experiments.md). It follows known evidence, and for some pairs the policy's own greedy description.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig

from moonshelf.creatives.data import Example, Work, draw, load_examples, make_work
from moonshelf.creatives.describe import Form, ask_alone, read_written
from moonshelf.creatives.evidence import check, check_assessment
from moonshelf.creatives.policy import (
    Scored,
    VerdictPolicy,
    Wanted,
    answer_loss,
    comparisons,
    label_targets,
    order_gap,
    reasons_loss,
    whole,
)
from moonshelf.creatives.prompt import read_assessment, write_description
from moonshelf.creatives.protocol import Assessment
from moonshelf.creatives.recipe import GrpoRecipe
from moonshelf.creatives.rewards import REWARDS
from moonshelf.creatives.training import resume_from, run
from moonshelf.errors import UserError
from moonshelf.model.decode import Decoded, sampling
from moonshelf.model.precision import resolve
from moonshelf.training.grpo import advantages, total
from moonshelf.training.tracking import quiet_dependencies
from moonshelf.training.trainer import RolloutTrainer, grpo_arguments


@dataclass
class Rollouts:
    """What was written in a step, R rows of which each G are of one ask."""

    written: list[Decoded]
    p: Tensor  # (R,): that the first creative is the better one, after these reasons
    other: Tensor  # (R,): the same by the other order
    found: list[Assessment | None]  # A being the first; None where the format was not kept
    checked: list[tuple[int, int]]  # claims: refuted, and all that could be checked


@dataclass
class Beside:
    """Rows that are scored in the same pass, after the n rollouts."""

    rows: list[int]
    bodies: list[list[int]]
    wanted: list[Wanted]
    answers: slice  # of all that is scored: whose answers are taught
    orders: slice  # both orders of pairs, side by side, that are to agree


class VerdictTrainer(RolloutTrainer):
    """One process's share: `recipe.pairs` pairs, both orders, `recipe.rollouts` reasons each, a step."""

    def __init__(
        self, policy: VerdictPolicy, recipe: GrpoRecipe, examples: list[Example], args: GRPOConfig
    ) -> None:
        self.examples = examples
        self.step: int
        self.work: Work  # of the step, and what was written for it
        self.bodies: list[list[int]]
        super().__init__(policy, recipe, REWARDS, args, policy.creative.moon.processor)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Draw pairs, write G reasons for both orders of each, reward them: TRL's batch of rollouts."""
        recipe, per = self.recipe, self.recipe.rollouts
        slots = [row["slot"] for row in inputs[::per]]
        self.step = slots[0] // (2 * recipe.pairs)  # processes take slices of the schedule in turn
        self.work = self._work(draw(self.examples, recipe.pairs, recipe.seed, self.step))
        if len(self.work.asks) != len(slots):
            raise ValueError("a picture of a training pair cannot be read: take the pair out of the feed")
        torch.manual_seed((recipe.seed * 1_000_003 + self.state.global_step) * 4099 + slots[0])
        self.policy.eval()
        rolled = self._roll()
        self.policy.train()
        gained = self._rewards(rolled)
        self.bodies = [w.ids for w in rolled.written]
        count = len(self.bodies)
        tokens = self._tensors(rolled.written)
        tokens |= {
            "advantages": advantages(gained, per),
            "row": torch.arange(count, device=gained.device),
        }
        if self.beta:
            rows = [self._row(r) for r in range(count)]
            tokens["ref_per_token_logps"] = self._reference_logps(
                lambda policy: policy(self.work, rows, self.bodies)
            )
        metrics = self._metrics["train"]
        metrics["reasons/length"].append(sum(len(body) for body in self.bodies) / count)
        metrics["reasons/closed"].append(sum(w.closed for w in rolled.written) / count)
        return tokens

    def _work(self, examples: list[Example], shown: bool = True) -> Work:
        recipe = self.recipe
        return make_work(
            self.policy.creative, examples, f"{recipe.seed}/{self.step}", recipe.no_interest,
            recipe.no_overlays, recipe.asides, shown=shown,
        )  # fmt: skip

    def _row(self, r: int) -> int:
        """The ask that rollout r answers."""
        return r // self.recipe.rollouts

    def _roll(self) -> Rollouts:
        """G reasons of each ask, and what they come to."""
        recipe, work, creative = self.recipe, self.work, self.policy.creative
        per = recipe.rollouts
        written = self.policy.write(work, sampling(recipe.sampling_temperature), per)
        asks = [work.asks[self._row(r)] for r in range(len(written))]
        with torch.no_grad(), creative.moon.computing():
            logits = creative.answer_logits(torch.stack([w.final for w in written]), asks)
        p = logits.softmax(-1)[:, 0]
        mean = p.view(-1, 2, per).mean(-1)  # pairs, orders
        bodies = creative.moon.processor.tokenizer.batch_decode([w.ids for w in written])
        found, checked = list[Assessment | None](), []
        for w, body, ask in zip(written, bodies, asks, strict=True):
            one = read_assessment(body, ask.labels) if w.closed else None
            found.append(one)
            checked.append(check_assessment(one, ask.first.facts, ask.second.facts) if one else (0, 0))
        return Rollouts(written, p, (1 - mean.flip(1)).reshape(-1).repeat_interleave(per), found, checked)

    @torch.no_grad()
    def _rewards(self, rolled: Rollouts) -> Tensor:
        """(R,) weighted sum of the rewards."""
        recipe, work, per = self.recipe, self.work, self.recipe.rollouts
        rows = [
            {
                "prompt": "", "valid": found is not None, "p": p, "posterior": work.targets[r // per],
                "other": other, "rubric": found.rubric() if found else 0,
                "refuted": refuted, "claimed": claimed,
            }
            for r, (found, p, other, (refuted, claimed)) in enumerate(
                zip(rolled.found, rolled.p.tolist(), rolled.other.tolist(), rolled.checked, strict=True)
            )
        ]  # fmt: skip
        texts = self.policy.creative.moon.processor.tokenizer.batch_decode([w.ids for w in rolled.written])
        earned = self._calculate_rewards(rows, [""] * len(rows), texts, [w.ids for w in rolled.written])
        first = self.accelerator.process_index * len(rows)
        earned = earned[first : first + len(rows)]
        gained = total(earned, torch.tensor(list(recipe.rewards.values()), device=earned.device))
        self._log_rewards(earned, gained.view(-1, per))
        return gained

    def _beside(self, chosen: list[int]) -> Beside:
        """The known reasons of an ask go with its first rollout; answers follow the rollouts."""
        return Beside(*self._known(chosen), slice(0, len(chosen)), slice(0))

    def _known(self, chosen: list[int]) -> tuple[list[int], list[list[int]], list[Wanted]]:
        """Rows, bodies and what is wanted of the known texts of the asks whose first rollout is `chosen`."""
        firsts = (
            [self._row(r) for r in chosen if not r % self.recipe.rollouts] if self.recipe.cot_weight else []
        )
        rows = [i for i in firsts if self.work.bodies[i]]
        bodies = [self.work.bodies[i] for i in rows]
        return rows, bodies, self._whole(bodies)

    def _whole(self, bodies: list[list[int]]) -> list[Wanted]:
        return [whole(body, self.policy.moon.prepare.end_think) for body in bodies]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss plus the answer's and the known reasons', from one pass over this slice of rollouts."""
        recipe, work, chosen = self.recipe, self.work, inputs["row"].tolist()
        n, own, beside = len(chosen), [self.bodies[r] for r in chosen], self._beside(chosen)
        rows = [self._row(r) for r in chosen] + beside.rows
        scored = model(work, rows, own + beside.bodies, self._whole(own) + beside.wanted)
        width = inputs["completion_ids"].shape[1]
        logps, entropies = _wide(scored.logps[:n], width), _wide(scored.entropies[:n], width)
        self._scored = Scored(logps, entropies, scored.answers[:n])
        policy = super()._compute_loss(model, inputs)
        extra = torch.zeros_like(policy)
        targets = [work.targets[i] for i in rows[beside.answers]]
        if targets:
            answer = answer_loss(scored.answers[beside.answers], targets)
            self._metrics["train"]["loss/answer"].append(answer.item())
            extra = extra + recipe.answer_weight * answer
        orders = scored.answers[beside.orders]
        if len(orders):
            gap = order_gap(orders)
            self._metrics["train"]["loss/gap"].append(gap.item())
            extra = extra + recipe.gap_weight * gap
        counts = [len(one.tokens) for one in beside.wanted]
        if recipe.cot_weight and any(counts):
            reasons = reasons_loss(scored.logps[n:], counts)
            self._metrics["train"]["loss/known reasons"].append(reasons.item())
            extra = extra + recipe.cot_weight * reasons
        return self._finite(recipe.grpo_weight * policy + extra / self.current_gradient_accumulation_steps)


class DescriptionTrainer(VerdictTrainer):
    """The same for a selector that describes first: a rollout is a description of one creative.

    Rollout g of a creative is compared with rollout g of its rival, its own creative shown first; the rival's
    comparison is the other order. The work of a step has an ask of one picture for each of its asks, after
    them: that ask's first creative. Then come the asks of more pairs, which are only compared, after known
    evidence and without pictures: a few pairs a step made the comparison less steady than CoT-SFT left it.
    That both orders agree is asked of the rollouts' own comparisons too: it needs no truth.
    """

    taught: tuple[Form, Tensor]  # of asks of pairs: the comparisons that are taught, and choices in them
    compared: list[list[int]]  # bodies of the rollouts' comparisons

    def _row(self, r: int) -> int:
        return 2 * self.recipe.pairs + super()._row(r)

    def _roll(self) -> Rollouts:
        recipe, creative, per = self.recipe, self.policy.creative, self.recipe.rollouts
        pairs, prepare = self.work, creative.moon.prepare
        known = [write_description(one) if one is not None else "" for one in pairs.known]
        alone = replace(
            pairs,
            asks=[ask_alone(creative, ask, 0) for ask in pairs.asks],
            bodies=[prepare.ids(text) if text else [] for text in known],
            places=[where[:1] for where in pairs.places],
        )
        written = self.policy.write(alone, sampling(recipe.sampling_temperature), per)
        told = read_written(creative, written)
        rival = [(r // per ^ 1) * per + r % per for r in range(len(told))]
        rows = [r // per for r in range(len(told))]
        asks = [pairs.asks[i] for i in rows]
        evidence = [(side, told[rival[r]][0]) for r, (side, _) in enumerate(told)]
        form = Form(creative, asks, evidence)
        picked, answers = self.policy.compare(pairs, rows, form)
        p = answers[:, 0].exp()
        self.compared = form.fill(picked)[0]
        texts = creative.moon.processor.tokenizer.batch_decode(self.compared)
        found, checked = list[Assessment | None](), []
        for (side, kept), body, ask in zip(told, texts, asks, strict=True):
            found.append(read_assessment(body, ask.labels) if kept else None)
            claims = [check(question, reason, ask.first.facts) for question, reason in side.items()]
            checked.append((sum(wrong for wrong, _ in claims), sum(n for _, n in claims)))
        own = [i for i, one in enumerate(pairs.known) if one is None or i // 2 % recipe.own_every == 0]
        more = self._more()
        self.taught = comparisons(self.policy, pairs.followed_by(*more), own)
        self.work = replace(pairs, places=[()] * len(pairs.places)).followed_by(alone, *more)
        return Rollouts(written, p, 1 - p[rival], found, checked)

    def _more(self) -> list[Work]:
        """Both orders of further pairs with known reasons, `compare_pairs` for each one described, if any."""
        recipe = self.recipe
        count = recipe.compare_pairs * recipe.pairs
        drawn = draw(self.examples, count, recipe.seed + 1, self.step) if count else []
        told = [example for example in drawn if example.pair.assessment is not None]
        return [self._work(told, shown=False)] if told else []

    def _beside(self, chosen: list[int]) -> Beside:
        """With a pair's very first rollout go its comparisons, and its share of the pairs only compared."""
        recipe, per, asks = self.recipe, self.recipe.rollouts, 2 * self.recipe.pairs
        each = 2 * recipe.compare_pairs
        taught, own = list[int](), list[int]()
        for pair in (r // (2 * per) for r in chosen if not r % (2 * per)):
            start = asks + pair * each
            taught += [2 * pair, 2 * pair + 1]
            taught += range(start, min(start + each, len(self.taught[1])))
            if recipe.gap_weight:
                own += [(2 * pair + order) * per + g for g in range(per) for order in (0, 1)]
        rows = [i if i < asks else i + asks for i in taught]  # in the work those alone stand in between
        known = [self.work.known[i] if recipe.cot_weight else None for i in rows]
        bodies, wanted = label_targets(*self.taught, known, taught)
        more, texts, theirs = self._known(chosen)
        n, to = len(chosen), len(chosen) + len(rows)
        return Beside(
            rows + [r // per for r in own] + more,
            bodies + [self.compared[r] for r in own] + texts,
            wanted + [Wanted([], [])] * len(own) + theirs,
            slice(n, to),
            slice(n, to + len(own)),
        )


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
    if recipe.gap_weight and not creative.prompt.describe_first:
        raise UserError(
            "gap_weight needs a selector that describes first; of another one the reward 'consistency' "
            "speaks for the order. Leave it at 0."
        )
    examples = [example for source in recipe.sources for example in load_examples(source, data)]
    policy = VerdictPolicy(
        creative, resolve(recipe.precision, creative.moon.device), recipe.sampling_temperature
    )
    kind = DescriptionTrainer if creative.prompt.describe_first else VerdictTrainer
    trainer = kind(policy, recipe, examples, arguments(recipe))
    return run(trainer, recipe, creative, data, "Reason-to-Select")

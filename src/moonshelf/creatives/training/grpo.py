"""Reason-to-Select: GRPO over the written descriptions, with what is taught beside it, in one step.

    L = w_g GRPO(descriptions) + w_a LogLoss(answer, posterior) + w_o order consistency [+ w_c CE(known)]

Each creative of a pair is described G times, on one prefill, and the g-th description is compared with the
g-th of its rival, in both orders; the G descriptions of one creative are a group. The answer of a comparison
is one token, whose whole distribution is known, so its gradient needs no sampling. Comparing is taught beside
the rollouts and never after them: sampled words err more than those that it will judge by, and true answers
to them only teach doubt (measured, docs/experiments.md). It follows known evidence, and for some pairs the
policy's own greedy description. Where reasons are known, their cross-entropy can hold the writing to what it
learnt (InstructGPT's mix with pretraining data, 2203.02155; the use here is ours).

What a claim earns goes to the words of its own question alone, normalised over the group by itself: GRPO with
process supervision (DeepSeekMath, section 4.1.3), where a question's line is the step (ours: there a step is
paid for all that follow it, here for itself, since no line has to answer for another). All other rewards are
the whole rollout's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moonshelf.creatives.backends.describe import Form, ask_alone, read_written
from moonshelf.creatives.backends.model import CreativeModel
from moonshelf.creatives.evidence import check
from moonshelf.creatives.prompt import read_assessment, write_description
from moonshelf.creatives.schema import KEYS, Assessment
from moonshelf.creatives.training.data import (
    Example,
    PairRow,
    draw,
)
from moonshelf.creatives.training.policy import (
    ScoredPairs,
    Taught,
    VerdictPolicy,
    answer_loss,
    comparisons,
    label_targets,
    order_gap,
    reasons_loss,
    wholly,
)
from moonshelf.creatives.training.recipe import GrpoRecipe
from moonshelf.creatives.training.rewards import REWARDS, claims
from moonshelf.creatives.training.sft import SelectorTrainer, open_pairs, resume_from
from moonshelf.errors import UserError
from moonshelf.model.decode import Decoded, sampling
from moonshelf.model.precision import resolve
from moonshelf.training import quiet_dependencies, rollouts
from moonshelf.training.grpo import advantages, total
from moonshelf.training.rollouts import RolloutTrainer
from moonshelf.training.trainer import summary


@dataclass
class RolledPairs:
    """What was written in a step, R rows of which each G are of one ask."""

    written: list[Decoded]
    p: Tensor  # (R,): that the first creative is the better one, after these reasons
    other: Tensor  # (R,): the same by the other order
    found: list[Assessment | None]  # A being the first; None where the format was not kept
    checked: list[Checked]


Checked = dict[str, tuple[int, int]]  # claims by question: refuted, and all that could be checked


@dataclass
class Beside:
    """Rows that are scored in the same pass, after the rollouts; both orders of a pair are side by side."""

    compared: list[Taught]  # after known or greedy evidence: their answers are taught, and are to agree
    own: list[Taught]  # after what was sampled: they are to agree
    texts: list[Taught]  # known descriptions

    def __iter__(self) -> Iterator[Taught]:
        return iter(self.compared + self.own + self.texts)


class DescriptionTrainer(RolloutTrainer, SelectorTrainer):
    """One process's share: `recipe.pairs` pairs in both orders, G descriptions of each of their creatives.

    Rollout g of a creative is compared with rollout g of its rival, its own creative shown first; the rival's
    comparison is the other order. More pairs are only compared, after known evidence and without pictures: a
    few pairs a step made the comparison less steady than CoT-SFT left it. The creatives of yet more pairs
    have their known descriptions taught, for the same reason. That both orders agree is asked of the
    rollouts' own comparisons too: it needs no truth.
    """

    rewards = REWARDS

    def __init__(
        self, creative: CreativeModel, recipe: GrpoRecipe, examples: list[Example],
        validation: Sequence[Example] = (),
    ) -> None:  # fmt: skip
        self.creative, self.examples = creative, examples
        self.step: int  # of this process's schedule
        self.pairs: list[PairRow]  # of the step
        self.alone: list[PairRow]  # of each the first creative, to be described
        self.bodies: list[list[int]]  # of the rollouts
        self.compared: list[list[int]]  # of their comparisons
        self.more: list[PairRow]  # pairs, then further ones, whose comparisons are taught
        self.taught: tuple[list[Form], Tensor]  # … and the choices in these
        self.reading: list[PairRow]  # whose known descriptions are taught
        policy = VerdictPolicy(
            creative, resolve(recipe.precision, creative.moon.device), recipe.sampling_temperature
        )
        super().__init__(policy, recipe, creative.moon, 2 * recipe.pairs * recipe.rollouts, validation)

    def draw(self, step: int, share: float) -> tuple[int, list[PairRow]]:
        """This process's pairs of a step, in both orders."""
        turn = self.turn(step)
        rows = self.pair_rows(draw(self.examples, self.recipe.pairs, self.recipe.seed, turn), turn)
        if len(rows) != 2 * self.recipe.pairs:
            raise UserError("a picture of a training pair cannot be read: take the pair out of the feed.")
        return turn, rows

    def roll(self, batch: tuple[int, list[PairRow]]) -> tuple[list[Decoded], Tensor]:
        """Write G descriptions of both creatives of each pair, and reward them."""
        recipe, (self.step, self.pairs) = self.recipe, batch
        slot = self.step * 2 * recipe.pairs
        torch.manual_seed((recipe.seed * 1_000_003 + self.state.global_step) * 4099 + slot)
        rolled = self._roll()
        self.bodies = [w.ids for w in rolled.written]
        count = len(self.bodies)
        gained = self._rewards(rolled)
        claimed = self._credit(rolled, max(map(len, self.bodies)) + 1)
        self.figures |= {
            "reasons/length": sum(len(body) for body in self.bodies) / count,
            "reasons/closed": sum(w.closed for w in rolled.written) / count,
        }
        return rolled.written, advantages(gained, recipe.rollouts)[:, None] + claimed

    def _roll(self) -> RolledPairs:
        """Descriptions, what their comparisons come to, and what else this step teaches."""
        recipe, creative, per, prepare = self.recipe, self.creative, self.recipe.rollouts, self.moon.prepare
        texts = [write_description(row.known) if row.known is not None else "" for row in self.pairs]
        self.alone = [
            replace(
                row,
                ask=ask_alone(creative, row.ask, 0),
                body=prepare.ids(text) if text else [],
                pictures=row.pictures[:1],
            )
            for row, text in zip(self.pairs, texts, strict=True)
        ]
        written = self.model.write(self.alone, sampling(recipe.sampling_temperature), per)
        told = read_written(creative, written)
        rival = [(r // per ^ 1) * per + r % per for r in range(len(told))]
        asks = [self.pairs[r // per].ask for r in range(len(told))]
        forms = [Form(creative, asks[r], (told[r][0], told[rival[r]][0])) for r in range(len(told))]
        picked, answers = self.model.compare(forms)
        p = answers[:, 0].exp()
        self.compared = [form.fill(row)[0] for form, row in zip(forms, picked.tolist(), strict=True)]
        read = creative.moon.processor.tokenizer.batch_decode(self.compared)
        found, checked = list[Assessment | None](), list[Checked]()
        for (side, kept), body, ask in zip(told, read, asks, strict=True):
            found.append(read_assessment(body, ask.labels) if kept else None)
            checked.append({question: check(question, side[question], ask.first.facts) for question in side})
        own = [
            i
            for i, row in enumerate(self.pairs)
            if row.known is None or i // 2 % recipe.self_generated_every == 0
        ]
        compared = self._told(recipe.compare_pairs, recipe.seed + 1)
        self.more = self.pairs + (self.pair_rows(compared, self.step, shown=False) if compared else [])
        self.taught = comparisons(self.model, self.more, own)
        described = self._told(recipe.describe_pairs, recipe.seed + 2)
        self.reading = self.descriptions(described, self.step) if described else []
        return RolledPairs(written, p, 1 - p[rival], found, checked)

    def _told(self, each: int, seed: int) -> list[Example]:
        """Of `each` further pairs for each one described those with known reasons."""
        count = each * self.recipe.pairs
        drawn = draw(self.examples, count, seed, self.step) if count else []
        return [example for example in drawn if example.pair.assessment is not None]

    @torch.no_grad()
    def _rewards(self, rolled: RolledPairs) -> Tensor:
        """(R,) weighted sum of the rewards but `claims`, which `_credit` pays; all of them are logged."""
        recipe, per, count = self.recipe, self.recipe.rollouts, len(rolled.written)
        earned, weights = self.earned({
            "completions": [""] * count, "valid": [found is not None for found in rolled.found],
            "p": rolled.p.tolist(), "posterior": [self.pairs[r // per].target for r in range(count)],
            "other": rolled.other.tolist(),
            "refuted": [sum(wrong for wrong, _ in one.values()) for one in rolled.checked],
            "claimed": [sum(n for _, n in one.values()) for one in rolled.checked],
        })  # fmt: skip
        self.note_rewards(earned, total(earned, weights))
        outcome = torch.tensor([name != "claims" for name in recipe.rewards])
        return total(earned, weights * outcome)

    def _credit(self, rolled: RolledPairs, width: int) -> Tensor:
        """(R, width) advantage of each token by the claims of the question that it answers."""
        gained = {}  # by question, of each rollout
        for question in KEYS:
            wrong, counted = zip(*(one.get(question, (0, 0)) for one in rolled.checked), strict=True)
            earned = claims([], refuted=wrong, claimed=counted)
            paid = torch.tensor([torch.nan if one is None else one for one in earned])
            gained[question] = advantages(paid, self.recipe.rollouts).tolist()
        gain = torch.zeros(len(rolled.written), width)
        for r, w in enumerate(rolled.written):
            asked = token_questions(self.moon.processor.tokenizer, w.ids)
            gain[r, : len(asked)] = torch.tensor([gained[q][r] if q in gained else 0.0 for q in asked])
        return self.recipe.rewards.get("claims", 0.0) * gain

    def _beside(self, chosen: list[int]) -> Beside:
        """With a pair's very first rollout go its comparisons, and its share of the pairs beside it."""
        recipe, per, asks = self.recipe, self.recipe.rollouts, 2 * self.recipe.pairs
        each, at, own = 2 * recipe.compare_pairs, list[int](), list[Taught]()
        # Of an ask the known description goes with its first rollout.
        texts = [self.alone[r // per] for r in chosen if not r % per and self.alone[r // per].body]
        for pair in (r // (2 * per) for r in chosen if not r % (2 * per)):
            start = asks + pair * each
            at += [2 * pair, 2 * pair + 1, *range(start, min(start + each, len(self.more)))]
            texts += self.reading[pair :: recipe.pairs]
            for r in ((2 * pair + order) * per + g for g in range(per) for order in (0, 1)):
                if recipe.order_weight:
                    bare = replace(self.pairs[r // per], pictures=())
                    own.append(Taught(bare, self.compared[r], (), ()))
        known = [self.more[i].known if recipe.cot_weight else None for i in at]
        forms, picked = self.taught
        compared = label_targets([self.more[i] for i in at], [forms[i] for i in at], picked[at], known)
        end = self.moon.prepare.end_think
        return Beside(compared, own, [wholly(row, end) for row in texts] if recipe.cot_weight else [])

    def score(self, policy: Any, rows: list[int], width: int, whole: bool = True) -> ScoredPairs:
        """One pass over some rollouts and, with `whole`, over what is taught beside them."""
        n, per, end = len(rows), self.recipe.rollouts, self.moon.prepare.end_think
        beside = self._beside(rows) if whole else None
        rolled = [wholly(self.alone[r // per], end, self.bodies[r]) for r in rows]
        scored = policy([*rolled, *(beside or ())])
        logps, entropies = _wide(scored.logps[:n], width), _wide(scored.entropies[:n], width)
        return ScoredPairs(logps, entropies, (scored.logps[n:], beside), scored.answers[n:])

    def beside(self, scored: rollouts.Scored, rows: list[int]) -> dict[str, Tensor]:
        """Weighted losses of the answers, of the two orders' agreement, and of known reasons."""
        assert isinstance(scored, ScoredPairs)
        recipe, (logps, beside) = self.recipe, scored.rest
        terms: dict[str, Tensor] = {}
        answered, agreeing = len(beside.compared), len(beside.compared + beside.own)
        if answered:
            targets = [one.row.target for one in beside.compared]
            terms["answer"] = answer_loss(scored.answers[:answered], targets)
        if agreeing:
            terms["gap"] = recipe.order_weight * order_gap(scored.answers[:agreeing])
        counts = [len(one.tokens) for one in beside]
        for name, part in (("answers", slice(agreeing)), ("reasons", slice(agreeing, None))):
            if recipe.cot_weight and any(counts[part]):
                terms[f"known {name}"] = recipe.cot_weight * reasons_loss(logps[part], counts[part])
        return terms


def token_questions(tokenizer: Any, ids: list[int]) -> list[str]:
    """The question that each token of reasons or of a description answers; its line's first word."""
    pieces = [tokenizer.decode([i]) for i in ids]
    keys = [line.partition(":")[0].strip() for line in "".join(pieces).split(";")]
    asked, line = [], 0
    for piece in pieces:
        asked.append(keys[line])
        line += piece.count(";")
    return asked


def _wide(values: Tensor, width: int) -> Tensor:
    """(R, T) with `width` columns: a slice may lack the longest rollout, or have longer known reasons."""
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))


def train_grpo(recipe: GrpoRecipe, data: Path, dry_run: bool = False) -> Path:
    """Run GRPO on a selector that CoT-SFT made; returns the folder of the best one."""
    quiet_dependencies()
    creative = resume_from(recipe, recipe.model)
    examples, held_out = open_pairs(recipe, data)
    summary(recipe, creative.moon, f"{recipe.pairs} pairs in both orders, {recipe.rollouts} rollouts each")
    if not dry_run:
        DescriptionTrainer(creative, recipe, examples, held_out).train()
    return Path(recipe.out) / "checkpoint"

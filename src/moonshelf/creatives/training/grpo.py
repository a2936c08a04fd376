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

from collections.abc import Sequence
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
    NO_INTEREST,
    Example,
    PairBatch,
    draw,
    make_descriptions,
    make_pair_batch,
)
from moonshelf.creatives.training.policy import (
    ScoredPairs,
    VerdictPolicy,
    Wanted,
    answer_loss,
    comparisons,
    label_targets,
    order_gap,
    reasons_loss,
    whole,
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
    """Rows that are scored in the same pass, after the n rollouts."""

    rows: list[int]
    bodies: list[list[int]]
    wanted: list[Wanted]
    texts: int  # from this row on whole texts are taught, of those before single words
    answers: slice  # of all that is scored: whose answers are taught
    orders: slice  # both orders of pairs, side by side, that are to agree


class DescriptionTrainer(RolloutTrainer, SelectorTrainer):
    """One process's share: `recipe.pairs` pairs in both orders, G descriptions of each of their creatives.

    Rollout g of a creative is compared with rollout g of its rival, its own creative shown first; the rival's
    comparison is the other order. The work of a step has an ask of one picture for each of its asks, after
    them: that ask's first creative. Then come the asks of more pairs, which are only compared, after known
    evidence and without pictures: a few pairs a step made the comparison less steady than CoT-SFT left it.
    Last come the creatives of yet more pairs, whose known descriptions are taught, for the same reason. That
    both orders agree is asked of the rollouts' own comparisons too: it needs no truth.
    """

    rewards = REWARDS

    def __init__(
        self, creative: CreativeModel, recipe: GrpoRecipe, examples: list[Example],
        validation: Sequence[Example] = (),
    ) -> None:  # fmt: skip
        self.creative, self.examples = creative, examples
        self.step: int  # of this process's schedule
        self.work: PairBatch  # of the step, and what was written for it
        self.bodies: list[list[int]]  # of the rollouts
        self.compared: list[list[int]]  # of their comparisons
        self.taught: tuple[Form, Tensor]  # of asks of pairs: comparisons that are taught, choices in them
        self.reading: range  # rows of the work whose known descriptions are taught
        policy = VerdictPolicy(
            creative, resolve(recipe.precision, creative.moon.device), recipe.sampling_temperature
        )
        super().__init__(policy, recipe, creative.moon, 2 * recipe.pairs * recipe.rollouts, validation)

    def draw(self, step: int, share: float) -> tuple[int, PairBatch]:
        """This process's pairs of a step, in both orders."""
        turn = self.turn(step)
        work = self._work(draw(self.examples, self.recipe.pairs, self.recipe.seed, turn), turn)
        if len(work.asks) != 2 * self.recipe.pairs:
            raise UserError("a picture of a training pair cannot be read: take the pair out of the feed.")
        return turn, work

    def roll(self, batch: tuple[int, PairBatch]) -> tuple[list[Decoded], Tensor]:
        """Write G descriptions of both creatives of each pair, and reward them."""
        recipe, (self.step, self.work) = self.recipe, batch
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

    def _work(self, examples: list[Example], turn: int, shown: bool = True) -> PairBatch:
        recipe = self.recipe
        return make_pair_batch(
            self.creative, examples, f"{recipe.seed}/{turn}", NO_INTEREST, recipe.no_overlays,
            recipe.distractors, shown=shown,
        )  # fmt: skip

    def _row(self, r: int) -> int:
        """Of the work: the ask of one picture that rollout r answers."""
        return 2 * self.recipe.pairs + r // self.recipe.rollouts

    def _roll(self) -> RolledPairs:
        """Descriptions, what their comparisons come to, and what else this step teaches."""
        recipe, creative, per = self.recipe, self.creative, self.recipe.rollouts
        pairs, prepare = self.work, creative.moon.prepare
        known = [write_description(one) if one is not None else "" for one in pairs.known]
        alone = replace(
            pairs,
            asks=[ask_alone(creative, ask, 0) for ask in pairs.asks],
            bodies=[prepare.ids(text) if text else [] for text in known],
            places=[where[:1] for where in pairs.places],
        )
        written = self.model.write(alone, sampling(recipe.sampling_temperature), per)
        told = read_written(creative, written)
        rival = [(r // per ^ 1) * per + r % per for r in range(len(told))]
        rows = [r // per for r in range(len(told))]
        asks = [pairs.asks[i] for i in rows]
        evidence = [(side, told[rival[r]][0]) for r, (side, _) in enumerate(told)]
        form = Form(creative, asks, evidence)
        picked, answers = self.model.compare(pairs, rows, form)
        p = answers[:, 0].exp()
        self.compared = form.fill(picked)[0]
        texts = creative.moon.processor.tokenizer.batch_decode(self.compared)
        found, checked = list[Assessment | None](), list[Checked]()
        for (side, kept), body, ask in zip(told, texts, asks, strict=True):
            found.append(read_assessment(body, ask.labels) if kept else None)
            checked.append({question: check(question, side[question], ask.first.facts) for question in side})
        own = [
            i for i, one in enumerate(pairs.known) if one is None or i // 2 % recipe.self_generated_every == 0
        ]
        compared = self._told(recipe.compare_pairs, recipe.seed + 1)
        more = [self._work(compared, self.step, shown=False)] if compared else []
        self.taught = comparisons(self.model, pairs.followed_by(*more), own)
        self.work = replace(pairs, places=[()] * len(pairs.places)).followed_by(alone, *more)
        first = len(self.work.asks)
        if described := self._told(recipe.describe_pairs, recipe.seed + 2):
            read = make_descriptions(
                creative, described, f"{recipe.seed}/{self.step}", recipe.no_overlays, recipe.distractors
            )
            self.work = self.work.beside(read)
        self.reading = range(first, len(self.work.asks))
        return RolledPairs(written, p, 1 - p[rival], found, checked)

    def _told(self, each: int, seed: int) -> list[Example]:
        """Of `each` further pairs for each one described those with known reasons."""
        count = each * self.recipe.pairs
        drawn = draw(self.examples, count, seed, self.step) if count else []
        return [example for example in drawn if example.pair.assessment is not None]

    @torch.no_grad()
    def _rewards(self, rolled: RolledPairs) -> Tensor:
        """(R,) weighted sum of the rewards but `claims`, which `_credit` pays; all of them are logged."""
        recipe, work, per = self.recipe, self.work, self.recipe.rollouts
        count = len(rolled.written)
        earned, weights = self.earned({
            "completions": [""] * count, "valid": [found is not None for found in rolled.found],
            "p": rolled.p.tolist(), "posterior": [work.targets[r // per] for r in range(count)],
            "other": rolled.other.tolist(), "rubric": [f.rubric() if f else 0 for f in rolled.found],
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
        each = 2 * recipe.compare_pairs
        taught, own, read = list[int](), list[int](), list[int]()
        for pair in (r // (2 * per) for r in chosen if not r % (2 * per)):
            read += self.reading[pair :: recipe.pairs]
            start = asks + pair * each
            taught += [2 * pair, 2 * pair + 1]
            taught += range(start, min(start + each, len(self.taught[1])))
            if recipe.order_weight:
                own += [(2 * pair + order) * per + g for g in range(per) for order in (0, 1)]
        rows = [i if i < asks else i + asks for i in taught]  # in the work those alone stand in between
        known = [self.work.known[i] if recipe.cot_weight else None for i in rows]
        bodies, wanted = label_targets(*self.taught, known, taught)
        more, texts, theirs = self._texts(self._known(chosen) + read)
        n, to = len(chosen), len(chosen) + len(rows)
        return Beside(
            rows + [r // per for r in own] + more,
            bodies + [self.compared[r] for r in own] + texts,
            wanted + [Wanted([], [])] * len(own) + theirs,
            len(rows) + len(own),
            slice(n, to),
            slice(n, to + len(own)),
        )

    def _known(self, chosen: list[int]) -> list[int]:
        """Rows of the asks with known texts whose first rollout is in `chosen`, if they are taught."""
        rows = [self._row(r) for r in chosen if not r % self.recipe.rollouts]
        return [i for i in rows if self.work.bodies[i]] if self.recipe.cot_weight else []

    def _texts(self, rows: list[int]) -> tuple[list[int], list[list[int]], list[Wanted]]:
        bodies = [self.work.bodies[i] for i in rows]
        return rows, bodies, self._whole(bodies)  # of the known texts all is wanted

    def _whole(self, bodies: list[list[int]]) -> list[Wanted]:
        return [whole(body, self.moon.prepare.end_think) for body in bodies]

    def score(self, policy: Any, rows: list[int], width: int, whole: bool = True) -> ScoredPairs:
        """One pass over some rollouts and, with `whole`, over what is taught beside them."""
        own = [self.bodies[r] for r in rows]
        asks, bodies, wanted = [self._row(r) for r in rows], own, self._whole(own)
        beside = self._beside(rows) if whole else None
        if beside:
            asks, bodies, wanted = asks + beside.rows, own + beside.bodies, wanted + beside.wanted
        scored = policy(self.work, asks, bodies, wanted)
        n = len(rows)
        logps, entropies = _wide(scored.logps[:n], width), _wide(scored.entropies[:n], width)
        return ScoredPairs(logps, entropies, (scored.logps[n:], asks, beside), scored.answers)

    def beside(self, scored: rollouts.Scored, rows: list[int]) -> dict[str, Tensor]:
        """Weighted losses of the answers, of the two orders' agreement, and of known reasons."""
        assert isinstance(scored, ScoredPairs)
        recipe, work = self.recipe, self.work
        logps, asks, beside = scored.rest
        terms: dict[str, Tensor] = {}
        targets = [work.targets[i] for i in asks[beside.answers]]
        if targets:
            terms["answer"] = answer_loss(scored.answers[beside.answers], targets)
        orders = scored.answers[beside.orders]
        if len(orders):
            terms["gap"] = recipe.order_weight * order_gap(orders)
        counts = [len(one.tokens) for one in beside.wanted]
        for name, part in (("answers", slice(beside.texts)), ("reasons", slice(beside.texts, None))):
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

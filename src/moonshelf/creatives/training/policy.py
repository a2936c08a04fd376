"""The selector as the module that trainers train: one pass scores the reasons and the answers.

Both stages use it. The tower sees each picture once for both orders and all rollouts of a pair, and its
gradient is the sum over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moonshelf.creatives.backends.describe import COMPARED, Form, Side, choices, compare, describe, sides
from moonshelf.creatives.backends.model import CreativeModel
from moonshelf.creatives.schema import Assessment
from moonshelf.creatives.training.data import PairBatch
from moonshelf.model.decode import Decoded, Pick, greedy
from moonshelf.model.modeling import MoonModel
from moonshelf.model.precision import computing_in
from moonshelf.training import rollouts
from moonshelf.training.trainer import Stage


@dataclass
class Wanted:
    """Tokens of one row that are scored: what is wanted at which places of its body."""

    tokens: list[int]
    places: list[int]


def whole(body: Sequence[int], end: int) -> Wanted:
    """All of a body, and `</think>` after it, whose id is `end`."""
    return Wanted([*body, end], list(range(len(body) + 1)))


@dataclass
class ScoredPairs(rollouts.Scored):
    """One pass over R rows: of the wanted tokens, the body and `</think>` if not told."""

    answers: Any = None  # (R, 2) float32 tensor: log-probability of the first and of the second label


class VerdictPolicy(Stage):
    """`CreativeModel` as one module, so that DDP and FSDP see one forward pass a step."""

    creative: CreativeModel

    def __init__(self, creative: CreativeModel, dtype: torch.dtype, temperature: float = 1.0) -> None:
        super().__init__()
        self.backbone = creative.moon.backbone  # the head beside it is not trained
        self.creative = creative
        self.compute_dtype, self.temperature = dtype, temperature

    @property
    def moon(self) -> MoonModel:
        return self.creative.moon

    def forward(
        self,
        work: PairBatch,
        rows: Sequence[int],
        bodies: Sequence[Sequence[int]],
        wanted: Sequence[Wanted] | None = None,
    ) -> ScoredPairs:
        """Score `bodies` (R lists of tokens), body r for the ask `rows[r]` of `work`.

        `wanted` (R) None: every token of the body and the `</think>` after it.
        """
        creative = self.creative
        moon = creative.moon
        asks, places = [work.asks[i] for i in rows], [work.places[i] for i in rows]
        tails = [creative.tail(body) for body in bodies]
        if wanted is None:
            wanted = [whole(body, moon.prepare.end_think) for body in bodies]
        with computing_in(self.compute_dtype, moon.backbone):
            seen = None
            if any(places):  # pictures of other rows are not looked at
                pixels, grid, places = work.only(places)
                seen = creative.see_pixels(pixels, grid)
            batch, visual = creative.batch(asks, tails, places, seen)
            states = moon.read(batch, visual).states
            n = torch.arange(len(rows), device=states.device)
            answers = moon.logits(states[n, batch.emb]).float().log_softmax(-1)
            count = torch.tensor([len(one.tokens) for one in wanted], device=states.device)
            length = torch.tensor([len(tail) for tail in tails], device=states.device)
            first = batch.emb - length + 1  # where `<think>` is: it speaks of the first token
            row = n.repeat_interleave(count)
            told = [place for one in wanted for place in one.places]
            at = first[row] + torch.tensor(told, dtype=torch.long, device=states.device)
            tokens = [token for one in wanted for token in one.tokens]
            logps, entropies = rollouts.score_tokens(
                moon, states[row, at], torch.tensor(tokens, dtype=torch.long, device=states.device), count,
                int(count.max()), self.temperature,
            )  # fmt: skip
        labels = torch.tensor([[creative.label_ids[label] for label in ask.labels] for ask in asks])
        return ScoredPairs(logps, entropies, answers=answers.gather(1, labels.to(answers.device)))

    @torch.no_grad()
    def write(self, work: PairBatch, pick: Pick = greedy, times: int = 1) -> list[Decoded]:
        """Reasons that the policy writes for each ask, `times` each, side by side."""
        creative = self.creative
        with computing_in(self.compute_dtype, creative.moon.backbone):
            seen = creative.see_pixels(work.pixels, work.grid)
            return creative.write(work.asks, work.places, seen, pick, times)

    @torch.no_grad()
    def describe(self, work: PairBatch, rows: Sequence[int]) -> list[tuple[Side, Side]]:
        """What the policy says of both creatives of the asks `rows`, for a selector that describes first."""
        creative = self.creative
        asks, places = [work.asks[i] for i in rows], [work.places[i] for i in rows]
        with computing_in(self.compute_dtype, creative.moon.backbone):
            seen = creative.see_pixels(work.pixels, work.grid)
            told = describe(creative, asks, places, seen, greedy)
        return [(first, second) for (first, _), (second, _) in told]

    @torch.no_grad()
    def compare(self, work: PairBatch, rows: Sequence[int], form: Form) -> tuple[Tensor, Tensor]:
        """Choices (R, 7) of the policy, and log-probabilities (R, 2) of its answers after them."""
        creative, asks = self.creative, [work.asks[i] for i in rows]
        with computing_in(self.compute_dtype, creative.moon.backbone):
            picked, final = compare(creative, asks, form)
            return picked, creative.answer_logits(final, asks).log_softmax(-1)


def comparisons(policy: VerdictPolicy, work: PairBatch, own: Sequence[int]) -> tuple[Form, Tensor]:
    """What a selector that describes first compares, and its choices (R, 7): known, or the policy's own.

    The evidence and choices of the asks `own` are the policy's, greedily; of the others those that are known.
    """
    evidence = [sides(one) if one is not None else ({}, {}) for one in work.known]
    picked = torch.tensor([choices(one) if one is not None else [0] * len(COMPARED) for one in work.known])
    if own:
        training = policy.training
        policy.eval()
        for i, told in zip(own, policy.describe(work, own), strict=True):
            evidence[i] = told
        form = Form(policy.creative, [work.asks[i] for i in own], [evidence[i] for i in own])
        picked[list(own)] = policy.compare(work, own, form)[0]
        policy.train(training)
    return Form(policy.creative, work.asks, evidence), picked


def label_targets(
    form: Form, picked: Tensor, known: Sequence[Assessment | None], rows: Sequence[int] | None = None
) -> tuple[list[list[int]], list[Wanted]]:
    """Bodies of a form with the choices `picked` (R, 7), and the answers that `known` assessments want there.

    Of all rows of the form, or of some `rows`, to which `known` belongs then.
    What is wanted need not be what was picked: after its own choices, too, a policy is to choose rightly
    (DAgger's idea, 1011.0686). Where the evidence is the known one, so is what in it follows from words.
    """
    bodies, slots = form.fill(picked)
    chosen = list(range(len(bodies)) if rows is None else rows)
    wanted = []
    for r, one in zip(chosen, known, strict=True):
        if one is None:
            wanted.append(Wanted([], []))
            continue
        at = slots[r].tolist()
        tokens = [options[k] for options, k in zip(form.heads[r].tolist(), choices(one), strict=True)]
        inferred = form.inferred(r) if form.evidence[r] == sides(one) else []
        wanted.append(
            Wanted(
                tokens + [token for _, _, token in inferred],
                at + [at[column] - back for column, back, _ in inferred],
            )
        )
    return [bodies[r] for r in chosen], wanted


def reasons_loss(logps: Tensor, counts: Sequence[int]) -> Tensor:
    """Mean cross-entropy (a scalar) of the tokens that are taught, by their log-probabilities (R, T).

    Row r has `counts[r]` of them, or 0 where nothing is taught: that row does not count.
    """
    taught = torch.tensor([count > 0 for count in counts], device=logps.device)
    return -(logps * taught[:, None]).sum() / max(1, sum(counts))


def answer_loss(answers: Tensor, targets: Sequence[float]) -> Tensor:
    """Log loss of the answers (R, 2) against the posteriors that the first is better; a scalar."""
    q = torch.tensor(targets, device=answers.device)
    return -(q * answers[:, 0] + (1 - q) * answers[:, 1]).mean()


def order_gap(answers: Tensor) -> Tensor:
    """How far the two orders of each pair disagree; a scalar.

    `answers` (R, 2) has a pair's orders side by side. Kullback–Leibler divergence both ways, halved, between
    what they say of the same creative: as R-Drop's (2106.14448) of two passes, here of two orders (ours).
    """
    logps = answers.log_softmax(-1)
    one, other = logps[0::2], logps[1::2].flip(-1)
    return ((one.exp() - other.exp()) * (one - other)).sum(-1).mean() / 2

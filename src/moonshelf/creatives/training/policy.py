"""The selector as the module that trainers train: one pass scores the reasons and the answers.

Both stages use it. The tower sees each picture once for both orders and all rollouts of a pair, and its
gradient is the sum over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from moonshelf.creatives.backends.describe import COMPARED, Form, Side, choices, compare, describe, sides
from moonshelf.creatives.backends.model import CreativeModel
from moonshelf.creatives.schema import Assessment
from moonshelf.creatives.training.data import PairRow
from moonshelf.model.decode import Decoded, Pick, greedy
from moonshelf.model.modeling import MoonModel
from moonshelf.model.precision import computing_in
from moonshelf.training import rollouts
from moonshelf.training.trainer import Stage


@dataclass(frozen=True)
class Taught:
    """A row as it is scored: the body that it is read with, and what is wanted at which places of that."""

    row: PairRow
    body: Sequence[int]
    tokens: Sequence[int]
    places: Sequence[int]


def wholly(row: PairRow, end: int, body: Sequence[int] | None = None) -> Taught:
    """All of a body (None: the row's own), and `</think>` after it, whose id is `end`."""
    body = row.body if body is None else body
    return Taught(row, body, [*body, end], range(len(body) + 1))


@dataclass
class ScoredPairs(rollouts.Scored):
    """One pass over R rows: of the wanted tokens."""

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

    def forward(self, taught: Sequence[Taught]) -> ScoredPairs:
        """Score what is wanted of R rows."""
        creative, moon = self.creative, self.moon
        asks, tails = [one.row.ask for one in taught], [creative.tail(one.body) for one in taught]
        with computing_in(self.compute_dtype, moon.backbone):
            batch, visual = creative.batch(asks, tails, [one.row.pictures for one in taught])
            states = moon.read(batch, visual).states
            n = torch.arange(len(taught), device=states.device)
            answers = moon.logits(states[n, batch.emb]).float().log_softmax(-1)
            count = torch.tensor([len(one.tokens) for one in taught], device=states.device)
            length = torch.tensor([len(tail) for tail in tails], device=states.device)
            first = batch.emb - length + 1  # where `<think>` is: it speaks of the first token
            row = n.repeat_interleave(count)
            told = [place for one in taught for place in one.places]
            at = first[row] + torch.tensor(told, dtype=torch.long, device=states.device)
            tokens = [token for one in taught for token in one.tokens]
            logps, entropies = rollouts.score_tokens(
                moon, states[row, at], torch.tensor(tokens, dtype=torch.long, device=states.device), count,
                int(count.max()), self.temperature,
            )  # fmt: skip
        labels = torch.tensor([[creative.label_ids[label] for label in ask.labels] for ask in asks])
        return ScoredPairs(logps, entropies, answers=answers.gather(1, labels.to(answers.device)))

    @torch.no_grad()
    def write(self, rows: Sequence[PairRow], pick: Pick = greedy, times: int = 1) -> list[Decoded]:
        """Reasons that the policy writes for each ask, `times` each, side by side."""
        with computing_in(self.compute_dtype, self.moon.backbone):
            return self.creative.write([row.ask for row in rows], [row.pictures for row in rows], pick, times)

    @torch.no_grad()
    def describe(self, rows: Sequence[PairRow]) -> list[tuple[Side, Side]]:
        """What the policy says of both creatives of some asks."""
        with computing_in(self.compute_dtype, self.moon.backbone):
            return describe(self.creative, [row.ask for row in rows], [row.pictures for row in rows])

    @torch.no_grad()
    def compare(self, forms: Sequence[Form]) -> tuple[Tensor, Tensor]:
        """Choices (R, 7) of the policy, and log-probabilities (R, 2) of its answers after them."""
        with computing_in(self.compute_dtype, self.moon.backbone):
            picked, final = compare(self.creative, forms)
            return picked, self.creative.answer_logits(final, [form.ask for form in forms]).log_softmax(-1)


def comparisons(
    policy: VerdictPolicy, rows: Sequence[PairRow], own: Sequence[int]
) -> tuple[list[Form], Tensor]:
    """What a selector compares, and its choices (R, 7): known, or the policy's own.

    The evidence and choices of the rows `own` are the policy's, greedily; of the others those that are known.
    """
    evidence = [sides(row.known) if row.known is not None else ({}, {}) for row in rows]
    picked = torch.tensor(
        [choices(row.known) if row.known is not None else [0] * len(COMPARED) for row in rows]
    )
    training = policy.training
    policy.eval()
    for i, told in zip(own, policy.describe([rows[i] for i in own]) if own else (), strict=True):
        evidence[i] = told
    forms = [Form(policy.creative, row.ask, both) for row, both in zip(rows, evidence, strict=True)]
    if own:
        picked[list(own)] = policy.compare([forms[i] for i in own])[0]
    policy.train(training)
    return forms, picked


def label_targets(
    rows: Sequence[PairRow], forms: Sequence[Form], picked: Tensor, known: Sequence[Assessment | None]
) -> list[Taught]:
    """Rows, without pictures, with the choices `picked` (R, 7) in their forms, and the answers that `known`
    assessments want there.

    What is wanted need not be what was picked: after its own choices, too, a policy is to choose rightly
    (DAgger's idea, 1011.0686). Where the evidence is the known one, so is what in it follows from words.
    """
    found = []
    for row, form, choice, one in zip(rows, forms, picked.tolist(), known, strict=True):
        body, slots = form.fill(choice)
        tokens, places = list[int](), list[int]()
        if one is not None:
            tokens, places = [form.heads[k] for k in choices(one)], list(slots)
            for column, back, token in form.inferred() if form.evidence == sides(one) else ():
                tokens.append(token)
                places.append(slots[column] - back)
        found.append(Taught(replace(row, pictures=()), body, tokens, places))
    return found


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

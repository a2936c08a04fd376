"""Describe, then compare: each image is described alone, and a pair is compared by what was said of the two.

Reasons written in one go ask a small backbone to read two images and to keep apart which is which, while a
comparison is being made. Here the evidence of a creative is written with that creative alone in sight, once,
whatever pairs and orders it stands in, so that it cannot depend on the order; then only the labels of the
questions are open. They are the choices that each are the likeliest after all that stands before them, found
by fixed-point iteration (Jacobi decoding, 2305.10427): all labels are read from one pass with those of the
last pass in place, until none changes. The format of the reasons stays that of `prompt`. Ours; the precedents
are pointwise reasons before a pairwise verdict in LLM judges (PRePair, 2406.12319).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moonshelf.creatives.judging import Ask
from moonshelf.creatives.prompt import read_description, write_comparison
from moonshelf.creatives.protocol import QUESTIONS, Assessment
from moonshelf.errors import UserError
from moonshelf.model.decode import Decoded, Pick

if TYPE_CHECKING:
    from moonshelf.creatives.model_backend import CreativeModel

PASSES = len(QUESTIONS) + 1  # these always suffice: each settles one label more; two or three mostly do


Side = dict[str, str]  # what is said of one creative, by question


class Form:
    """The reasons of R asks with their evidence in place and their answers open."""

    def __init__(
        self, model: CreativeModel, asks: Sequence[Ask], evidence: Sequence[tuple[Side, Side]]
    ) -> None:
        """`evidence` of each ask's first and second creative; `UserError` if the tokenizer is unfit."""
        prepare = model.moon.prepare
        self.pieces = [prepare.text_ids(write_comparison(*both)) for both in evidence]
        known = {labels: _answers(model, labels) for labels in {ask.labels for ask in asks}}
        self.words = [known[ask.labels] for ask in asks]  # tokens, by row, question and choice
        self.starts = [[_common(choices) for choices in row] for row in self.words]
        # (R, questions, 3): the token that tells each choice from the others
        self.heads = torch.tensor(
            [
                [[one[start] for one in choices] for choices, start in zip(*both, strict=True)]
                for both in zip(self.words, self.starts, strict=True)
            ]
        )

    def fill(self, picked: Tensor) -> tuple[list[list[int]], Tensor]:
        """Bodies with the choices `picked` (R, questions), and where in them each is told, as `picked`."""
        bodies, slots = [], []
        for row, choices, equal, chosen in zip(
            self.pieces, self.words, self.starts, picked.tolist(), strict=True
        ):
            body, at = list[int](), []
            for piece, options, start, k in zip(row, choices, equal, chosen, strict=True):
                body += piece
                at.append(len(body) + start)
                body += options[k]
            bodies.append(body)
            slots.append(at)
        return bodies, torch.tensor(slots)


def choices(assessment: Assessment) -> list[int]:
    """The answers of an assessment, A being the first, as a form counts them."""
    order = {"A=B": 0, "A>B": 1, "A<B": 2, "no": 0, "yes": 1}
    return [order[finding.answer] for finding in assessment.findings]


def sides(assessment: Assessment) -> tuple[Side, Side]:
    """The evidence of an assessment: what is said of A, and of B."""
    found = assessment.findings
    return {f.question: f.reason_a for f in found}, {f.question: f.reason_b for f in found}


def describe_and_compare(
    model: CreativeModel, asks: Sequence[Ask], places: Sequence[tuple[int, ...]], seen: Any, pick: Pick
) -> list[Decoded]:
    """Reasons of each ask as if they had been written in one go; `states` are of no token."""
    told = describe(model, asks, places, seen, pick)
    form = Form(model, asks, [(first[0], second[0]) for first, second in told])
    picked, final = compare(model, asks, places, seen, form)
    none = final.new_zeros((0, final.shape[1]))
    return [
        Decoded(body, first[1] and second[1], none, state)
        for body, (first, second), state in zip(form.fill(picked)[0], told, final, strict=True)
    ]


def _key(ask: Ask, side: int, where: tuple[int, ...]) -> tuple[Any, ...]:
    return where[side], ask.overlays[side], ask.title, ask.interest


def ask_alone(model: CreativeModel, ask: Ask, side: int) -> Ask:
    """The first (0) or second (1) creative of an ask to be described."""
    creative, said = (ask.first, ask.second)[side], ask.overlays[side]
    return replace(ask, first=creative, second=creative, labels=model.prompt.alone, overlays=(said, said))


def describe(
    model: CreativeModel, asks: Sequence[Ask], places: Sequence[tuple[int, ...]], seen: Any, pick: Pick
) -> list[tuple[tuple[Side, bool], tuple[Side, bool]]]:
    """What is said of both creatives of each ask, and whether it keeps the format.

    A creative is described once under the same words, in however many asks it stands.
    """
    alone = {
        _key(ask, side, where): ask_alone(model, ask, side)
        for ask, where in zip(asks, places, strict=True)
        for side in (0, 1)
    }
    written = model.write(list(alone.values()), [(key[0],) for key in alone], seen, pick)
    found = dict(zip(alone, read_written(model, written), strict=True))
    return [
        (found[_key(ask, 0, where)], found[_key(ask, 1, where)])
        for ask, where in zip(asks, places, strict=True)
    ]


def read_written(model: CreativeModel, written: Sequence[Decoded]) -> list[tuple[Side, bool]]:
    """Descriptions as evidence by question, and whether each keeps the format; none where it does not."""
    bodies = model.moon.processor.tokenizer.batch_decode([w.ids for w in written])
    told = [read_description(body) for body in bodies]
    return [(side or {}, w.closed and side is not None) for side, w in zip(told, written, strict=True)]


@torch.no_grad()
def compare(
    model: CreativeModel, asks: Sequence[Ask], places: Sequence[tuple[int, ...]], seen: Any, form: Form
) -> tuple[Tensor, Tensor]:
    """Choices (R, questions), long, and the states (R, d) at `<answer>` that follow them."""
    prepare = model.moon.prepare
    picked = torch.zeros(form.heads.shape[:2], dtype=torch.long)  # no, or even
    n = torch.arange(len(asks))
    for last in range(PASSES):
        bodies, slots = form.fill(picked)
        tails = [[prepare.think, *body, prepare.end_think, *model.after] for body in bodies]
        batch, visual = model.batch(asks, tails, places, seen)
        states = model.moon.read(batch, visual).states
        think = batch.emb.cpu() + 1 - torch.tensor([len(tail) for tail in tails])
        # The state at `<think>` speaks of the body's first token.
        spoken = states[n[:, None], think[:, None] + slots]
        likely = model.moon.logits(spoken).float().cpu().gather(2, form.heads).argmax(-1)
        if torch.equal(likely, picked) or last == PASSES - 1:
            break
        picked = likely
    return picked, states[n, batch.emb]


def _common(choices: list[list[int]]) -> int:
    """Tokens that all begin with."""
    return next((i for i, tokens in enumerate(zip(*choices, strict=False)) if len(set(tokens)) > 1), 0)


def _answers(model: CreativeModel, labels: tuple[str, str]) -> list[list[list[int]]]:
    """Tokens of what may answer each question, three a question; the first is where the search starts."""
    sides, gates = (
        [model.moon.prepare.ids(f" {word}") for word in words]
        for words in (("even", *labels), ("no", "yes", "no"))
    )
    for choices, different in ((sides, 3), (gates, 2)):
        start = _common(choices)
        if len({tuple(choice[start : start + 1]) for choice in choices} - {()}) != different:
            raise UserError("describe_first needs a tokenizer that tells each two answers by one token.")
    return [sides if question.compares else gates for question in QUESTIONS]

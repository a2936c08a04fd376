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
from moonshelf.creatives.protocol import QUESTIONS
from moonshelf.errors import UserError
from moonshelf.model.decode import Decoded, Pick

if TYPE_CHECKING:
    from moonshelf.creatives.model_backend import CreativeModel

PASSES = len(QUESTIONS) + 1  # these always suffice: each settles one label more; two or three mostly do


def describe_and_compare(
    model: CreativeModel, asks: Sequence[Ask], places: Sequence[tuple[int, ...]], seen: Any, pick: Pick
) -> list[Decoded]:
    """Reasons of each ask as if they had been written in one go; `states` are of no token."""
    told = describe(model, asks, places, seen, pick)
    sides = [
        (told[_key(ask, 0, where)], told[_key(ask, 1, where)])
        for ask, where in zip(asks, places, strict=True)
    ]
    bodies, final = compare(model, asks, places, seen, [(a[0], b[0]) for a, b in sides])
    none = final.new_zeros((0, final.shape[1]))
    return [
        Decoded(body, first[1] and second[1], none, state)
        for body, (first, second), state in zip(bodies, sides, final, strict=True)
    ]


def _key(ask: Ask, side: int, where: tuple[int, ...]) -> tuple[Any, ...]:
    return where[side], ask.overlays[side], ask.title, ask.interest


def describe(
    model: CreativeModel, asks: Sequence[Ask], places: Sequence[tuple[int, ...]], seen: Any, pick: Pick
) -> dict[tuple[Any, ...], tuple[dict[str, str], bool]]:
    """What is said of every creative under its words, by question, and whether it keeps the format."""
    alone: dict[tuple[Any, ...], Ask] = {}
    for ask, where in zip(asks, places, strict=True):
        for side, creative in enumerate((ask.first, ask.second)):
            said, labels = ask.overlays[side], model.prompt.alone
            alone[_key(ask, side, where)] = replace(
                ask, first=creative, second=creative, labels=labels, overlays=(said, said)
            )
    written = model.write(list(alone.values()), [(key[0],) for key in alone], seen, pick)
    bodies = model.moon.processor.tokenizer.batch_decode([w.ids for w in written])
    found = {}
    for key, body, one in zip(alone, bodies, written, strict=True):
        evidence = read_description(body)
        found[key] = evidence or {}, one.closed and evidence is not None
    return found


@torch.no_grad()
def compare(
    model: CreativeModel,
    asks: Sequence[Ask],
    places: Sequence[tuple[int, ...]],
    seen: Any,
    evidence: Sequence[tuple[dict[str, str], dict[str, str]]],
) -> tuple[list[list[int]], Tensor]:
    """Bodies of the reasons, token by token, and the states (B, d) at `<answer>` that follow them."""
    prepare = model.moon.prepare
    pieces = [prepare.text_ids(write_comparison(*both)) for both in evidence]
    known = {labels: _answers(model, labels) for labels in {ask.labels for ask in asks}}
    words = [known[ask.labels] for ask in asks]  # tokens, by row, question and choice
    starts = [[_common(choices) for choices in row] for row in words]
    heads = torch.tensor(
        [
            [[one[start] for one in choices] for choices, start in zip(*both, strict=True)]
            for both in zip(words, starts, strict=True)
        ]
    )
    picked = torch.zeros(heads.shape[:2], dtype=torch.long)  # no, or even
    n = torch.arange(len(asks))
    for last in range(PASSES):
        bodies, slots = [], []
        for row, choices, equal, chosen in zip(pieces, words, starts, picked.tolist(), strict=True):
            body, at = list[int](), []
            for piece, options, start, k in zip(row, choices, equal, chosen, strict=True):
                body += piece
                at.append(len(body) + start)
                body += options[k]
            bodies.append(body)
            slots.append(at)
        tails = [[prepare.think, *body, prepare.end_think, *model.after] for body in bodies]
        batch, visual = model.batch(asks, tails, places, seen)
        states = model.moon.read(batch, visual).states
        think = batch.emb.cpu() + 1 - torch.tensor([len(tail) for tail in tails])
        # The state at `<think>` speaks of the body's first token.
        spoken = states[n[:, None], think[:, None] + torch.tensor(slots)]
        likely = model.moon.logits(spoken).float().cpu().gather(2, heads).argmax(-1)
        if torch.equal(likely, picked) or last == PASSES - 1:
            break
        picked = likely
    return bodies, states[n, batch.emb]


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

"""Describe, then compare: each image is described alone, and a pair is compared by what was said of the two.

Reasons written in one go ask a small backbone to read two images and to keep apart which is which, while a
comparison is being made. Here the evidence of a creative is written with that creative alone in sight, once,
whatever pairs and orders it stands in, so that it cannot depend on the order. Then the pair is compared by
these words alone, without the images: the reasons are faithful because the verdict rests on nothing else, and
a row of words costs a tenth of one with two images. Only the answers to the seven aspects are open. They are
the choices that each are the likeliest after all that stands before them, found by fixed-point iteration
(Jacobi decoding, 2305.10427): all are read from one pass with those of the last pass in place, until none
changes. The two gates follow: the same image is one file, and those of which nothing different was said are
too similar. The format of the reasons stays that of `prompt`. Ours; the precedents are pointwise reasons
before a pairwise verdict in LLM judges (PRePair, 2406.12319), and concept bottlenecks (2007.04612).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from moonshelf.creatives.backends.base import PairInput, PairPrediction
from moonshelf.creatives.evidence import SOUGHT, grounded, readable
from moonshelf.creatives.prompt import read_assessment, read_description, write_comparison
from moonshelf.creatives.schema import QUESTIONS, Assessment, unasked
from moonshelf.errors import UserError
from moonshelf.model.decode import Decoded, Pick, banned_tokens, greedy
from moonshelf.product import ImageRef

if TYPE_CHECKING:
    from moonshelf.creatives.backends.model import CreativeModel, Pixels

COMPARED = [i for i, question in enumerate(QUESTIONS) if question.compares]
PASSES = len(COMPARED) + 1  # these always suffice: each settles one label more; two or three mostly do
ASKS_A_BATCH = 32  # rows that are read and written together; ours, measured flat from 16 to 64 on two cores
REMEMBERED = 10_000  # descriptions: a few MiB
# Logits of one row in different batches differ by rounding, by up to 1.6e-5 in float32. Of two tokens
# nearer than this the row is read once more by itself, so that what else is judged beside it decides nothing.
TIE = 1e-3

Key = TypeVar("Key")
Side = dict[str, str]  # what is said of one creative, by question
Said = tuple[Side, bool]  # … and whether it keeps the format
# What a description depends on, but for the model: the image (its hash where known) and the words about it.
Described = tuple[str | ImageRef, str, str, tuple[str, ...]]


class Form:
    """The reasons of an ask with their evidence in place and their answers open."""

    def __init__(self, model: CreativeModel, ask: PairInput, evidence: tuple[Side, Side]) -> None:
        """`evidence` of the ask's first and second creative; `UserError` if the tokenizer is unfit."""
        prepare, missing = model.moon.prepare, unasked(ask.title, ask.interest)
        self.ask, self.evidence, self.tokenizer = ask, evidence, model.moon.processor.tokenizer
        self.texts = write_comparison(*evidence)
        self.pieces = prepare.text_ids(self.texts)
        self.words = _answers(model, ask.labels)  # tokens of each choice
        self.start = _common(self.words)
        self.heads = [choice[self.start] for choice in self.words]  # that tell the choices apart
        # Nothing was given that the question asks about, so that neither is better.
        self.unasked = [QUESTIONS[i].key in missing for i in COMPARED]
        self.gates = [prepare.ids(f" {said}") for said in _gates(ask, *evidence)]

    def fill(self, picked: Sequence[int]) -> tuple[list[int], list[int]]:
        """The body with the choices `picked` (7), and where in it each is told."""
        body, slots = list[int](), list[int]()
        for i, piece in enumerate(self.pieces):
            body += piece
            if i in COMPARED:
                slots.append(len(body) + self.start)
                body += self.words[picked[len(slots) - 1]]
            else:
                body += self.gates[i]
        return body, slots

    def inferred(self) -> list[tuple[int, int, int]]:
        """Tokens of the evidence that follow from the title, the queries and the words before them.

        Of each the aspect (0 to 6), how far it stands before that aspect's answer, and the token.
        """
        return [
            (column, back + self.start, token)
            for column, i in enumerate(COMPARED)
            for back, token in _inferred(self.tokenizer, self.texts[i])
        ]


def _gates(ask: PairInput, first: Side, second: Side) -> list[str]:
    """Answers to the questions that compare nothing, in their order."""
    one, other = ask.first, ask.second
    same = one.image == other.image or (one.sha256 != "" and one.sha256 == other.sha256)
    return ["yes" if same else "no", "yes" if same or (first and first == second) else "no"]


def _inferred(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Tokens of one aspect's evidence that follow from words alone: places before its end, and ids."""
    spans = [found.span(name) for found in SOUGHT.finditer(text) for name in ("sought", "met") if found[name]]
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = list(zip(read["input_ids"], read["offset_mapping"], strict=True))
    # A token has the space before its word, which is part of no span.
    return [
        (len(tokens) - i, token)
        for i, (token, (begin, end)) in enumerate(tokens)
        if any(begin < stop and end > start for start, stop in spans)
    ]


def choices(assessment: Assessment) -> list[int]:
    """The answers of an assessment to the seven aspects, A being the first, as a form counts them."""
    order = {"A=B": 0, "A>B": 1, "A<B": 2}
    return [order[assessment[QUESTIONS[i].key].answer] for i in COMPARED]


def sides(assessment: Assessment) -> tuple[Side, Side]:
    """The evidence of an assessment: what is said of A, and of B."""
    found = assessment.findings
    return {f.question: f.reason_a for f in found}, {f.question: f.reason_b for f in found}


def predict(model: CreativeModel, asks: Sequence[PairInput], pick: Pick) -> list[PairPrediction]:
    """Predictions by descriptions of single creatives; an image that cannot be read gives `p_first` None.

    What was said of a creative is said again of it under the same words, if the model may remember.
    """
    told = {} if model.told is None else model.told
    keys = [(_identity(ask, 0), _identity(ask, 1)) for ask in asks]
    new = {key: ask for key, ask in _singles(model, asks, keys).items() if key not in told}
    found = {key: told[key] for both in keys for key in both if key in told}
    for part in _parts(list(new)):
        found |= _described(model, {key: new[key] for key in part}, pick)
    # Only an image of known content is remembered: another one may come to lie at the same address.
    told |= {key: found[key] for key in new if key in found and isinstance(key[0], str)}
    while len(told) > REMEMBERED:
        del told[next(iter(told))]
    results = [PairPrediction(None)] * len(asks)
    for rows in _parts([i for i, both in enumerate(keys) if found.keys() >= set(both)]):
        said = [(found[keys[i][0]], found[keys[i][1]]) for i in rows]
        for i, prediction in zip(rows, _compared(model, [asks[i] for i in rows], said), strict=True):
            results[i] = prediction
    return results


def _compared(
    model: CreativeModel, asks: Sequence[PairInput], said: Sequence[tuple[Said, Said]]
) -> list[PairPrediction]:
    """Predictions by what was said of both creatives, as far as title and interest bear it out."""
    checked = [
        [grounded(side, ask.title, ask.interest) for side, _ in both]
        for ask, both in zip(asks, said, strict=True)
    ]
    forms = [
        Form(model, ask, (first[0], second[0])) for ask, (first, second) in zip(asks, checked, strict=True)
    ]
    with model.moon.inferring():
        picked, final = compare(model, forms)
        likely = model.answer_logits(final, asks).softmax(-1)[:, 0].cpu().tolist()
    bodies = [form.fill(row)[0] for form, row in zip(forms, picked.tolist(), strict=True)]
    texts = model.moon.processor.tokenizer.batch_decode(bodies)
    found = []
    for ask, p, body, text, both, claims in zip(asks, likely, bodies, texts, said, checked, strict=True):
        assessment = read_assessment(text, ask.labels) if all(valid for _, valid in both) else None
        dropped = tuple(dict.fromkeys(claim for _, out in claims for claim in out))
        shown = readable(assessment) if assessment else None
        found.append(PairPrediction(p, shown, text, len(body), dropped))
    return found


def _identity(ask: PairInput, side: int) -> Described:
    creative = (ask.first, ask.second)[side]
    return creative.sha256 or creative.image, *_words(ask, side)


def _words(ask: PairInput, side: int) -> tuple[str, str, tuple[str, ...]]:
    """What a description of a creative depends on beside its image."""
    return ask.overlays[side], ask.title, ask.interest


def _described(
    model: CreativeModel, asks: Mapping[Described, PairInput], pick: Pick
) -> dict[Described, Said]:
    """What is said of single creatives, without those whose image cannot be read."""
    pictures = model.patchify(ask.first.image for ask in asks.values())
    shown = {key: ask for key, ask in asks.items() if ask.first.image in pictures}
    if not shown:
        return {}
    with model.moon.inferring():
        places = [(pictures[ask.first.image],) for ask in shown.values()]
        written = model.write(list(shown.values()), places, pick)
        near = near_ties(model, written) if pick is greedy else []
    keys = list(shown)
    found = dict(zip(keys, read_written(model, written), strict=True))
    for key in (keys[n] for n in near):
        found |= _described(model, {key: asks[key]}, likeliest)
    return found


def likeliest(logits: Tensor) -> Tensor:
    """`greedy` for a row by itself: nothing is guessed ahead, since guesses follow from earlier rows."""
    return greedy(logits)


def near_ties(model: CreativeModel, written: Sequence[Decoded]) -> list[int]:
    """Places of rows in which some token was chosen by less than `TIE`."""
    banned = banned_tokens(model.moon)
    near = []
    for n, one in enumerate(written):  # one at a time, for a large vocabulary fills the memory
        best = (model.moon.logits(one.states[:-1]).float() + banned).topk(2).values
        if float((best[:, 0] - best[:, 1]).min()) < TIE:
            near.append(n)
    return near


def _parts(rows: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(rows), ASKS_A_BATCH):
        yield rows[start : start + ASKS_A_BATCH]


def ask_alone(model: CreativeModel, ask: PairInput, side: int) -> PairInput:
    """The first (0) or second (1) creative of an ask to be described."""
    creative, said = (ask.first, ask.second)[side], ask.overlays[side]
    return replace(ask, first=creative, second=creative, labels=model.prompt.alone, overlays=(said, said))


def describe(
    model: CreativeModel, asks: Sequence[PairInput], shown: Sequence[tuple[Pixels, ...]]
) -> list[tuple[Side, Side]]:
    """What is said of both creatives of each ask, greedily, whose pictures are `shown`.

    A creative is described once under the same words, in however many asks it stands.
    """
    keys = [
        ((both[0], *_words(ask, 0)), (both[1], *_words(ask, 1)))
        for ask, both in zip(asks, shown, strict=True)
    ]
    alone = _singles(model, asks, keys)
    written = model.write(list(alone.values()), [(key[0],) for key in alone])
    found = dict(zip(alone, (side for side, _ in read_written(model, written)), strict=True))
    return [(found[first], found[second]) for first, second in keys]


def _singles(
    model: CreativeModel, asks: Sequence[PairInput], keys: Sequence[tuple[Key, Key]]
) -> dict[Key, PairInput]:
    """The creatives of `asks` to be described alone, once each, by their keys."""
    return {
        key: ask_alone(model, ask, side)
        for ask, both in zip(asks, keys, strict=True)
        for side, key in enumerate(both)
    }


def read_written(model: CreativeModel, written: Sequence[Decoded]) -> list[Said]:
    """Descriptions as evidence by question, and whether each keeps the format; none where it does not."""
    bodies = model.moon.processor.tokenizer.batch_decode([w.ids for w in written])
    told = [read_description(body) for body in bodies]
    return [(side or {}, w.closed and side is not None) for side, w in zip(told, written, strict=True)]


@torch.no_grad()
def compare(model: CreativeModel, forms: Sequence[Form]) -> tuple[Tensor, Tensor]:
    """Choices (R, 7), long, and the states (R, d) at `<answer>` that follow them; no image is looked at."""
    picked = torch.zeros(len(forms), len(COMPARED), dtype=torch.long)  # even
    heads = torch.tensor([form.heads for form in forms])[:, None].expand(-1, len(COMPARED), -1)
    unasked = torch.tensor([form.unasked for form in forms])
    final: dict[int, Tensor] = {}
    near: list[int] = []
    left = list(range(len(forms)))  # rows whose choices still change
    for last in range(PASSES):
        filled = [forms[r].fill(picked[r].tolist()) for r in left]
        tails = [model.tail(body) for body, _ in filled]
        batch, _ = model.batch([forms[r].ask for r in left], tails, [()] * len(left))
        states = model.moon.read(batch).states
        think = batch.emb.cpu() + 1 - torch.tensor([len(tail) for tail in tails])
        n = torch.arange(len(left))
        # The state at `<think>` speaks of the body's first token.
        spoken = states[n[:, None], think[:, None] + torch.tensor([slots for _, slots in filled])]
        likely = model.moon.logits(spoken).float().cpu().gather(2, heads[left])
        likely[unasked[left]] = torch.tensor([0.0, -torch.inf, -torch.inf])  # even
        best = likely.topk(2)
        settled = (best.indices[..., 0] == picked[left]).all(1) | (last == PASSES - 1)
        tied = (best.values[..., 0] - best.values[..., 1] < TIE).any(1)
        for i, r in enumerate(left):
            if settled[i]:
                final[r] = states[i, batch.emb[i]]
            else:
                picked[r] = best.indices[i, :, 0]
        near += [r for r, done, tie in zip(left, settled, tied, strict=True) if done and tie]
        left = [r for r, done in zip(left, settled, strict=True) if not done]
        if not left:
            break
    for r in near if len(forms) > 1 else []:
        (picked[r],), (final[r],) = compare(model, [forms[r]])
    return picked, torch.stack([final[r] for r in range(len(forms))])


def _common(choices: list[list[int]]) -> int:
    """Tokens that all begin with."""
    return next((i for i, tokens in enumerate(zip(*choices, strict=False)) if len(set(tokens)) > 1), 0)


def _answers(model: CreativeModel, labels: tuple[str, str]) -> list[list[int]]:
    """Tokens of what may answer an aspect; the first is where the search starts."""
    choices = [model.moon.prepare.ids(f" {word}") for word in ("even", *labels)]
    start = _common(choices)
    if len({tuple(choice[start : start + 1]) for choice in choices} - {()}) != len(choices):
        raise UserError("a selector needs a tokenizer that tells each two answers by one token.")
    return choices

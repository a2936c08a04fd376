"""Writing on a cache: token by token for a whole batch, finished rows leave it.

What is written stands between `<think>` and `</think>`; what follows it is fed by the caller, `<emb>` for a
vector, the opening of an answer for a verdict, and the state at its last token is what the caller reads.
Reserved tokens cannot be written, so a text cannot make the model emit them.

A pass feeds each row the token that was chosen last and, where that may save passes, more: the tokens after
`</think>`, which are certain, and guesses (`lookup`), which the pass itself checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moonshelf.model.lookup import followers
from moonshelf.model.modeling import Reading
from moonshelf.model.repeats import Repeats

if TYPE_CHECKING:
    from moonshelf.model.modeling import MoonModel
    from moonshelf.model.processing import Batch

Pick = Callable[[Tensor], Tensor]
GUESSES = 8  # tokens guessed ahead for a row; ours
GUESSED_TOKENS = 64  # of all rows in a pass: what two cores check about as quickly as one a row; ours


def greedy(logits: Tensor) -> Tensor:
    """(B, vocabulary) float32 -> (B,) int64: the likeliest token."""
    return logits.argmax(-1)


def sampling(temperature: float = 1.0) -> Pick:
    """A choice at random from softmax(logits / temperature), from torch's global generator."""

    def pick(logits: Tensor) -> Tensor:
        return torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0]

    return pick


@dataclass
class Decoded:
    """What was written for one row."""

    ids: list[int]  # tokens of the body
    closed: bool  # the model wrote `</think>` itself, before the limit
    states: Tensor  # (T, d): of `<think>`, the body and `</think>`
    final: Tensor  # (d,): at the last of the tokens that were fed after it
    likelihoods: list[float]  # log-probability of each token of the body, as it was chosen
    emptied: bool = False  # all that was written has been left out


def decode(
    model: MoonModel,
    batch: Batch,
    reading: Reading,
    after: Sequence[int],
    *,
    fed: bool = True,
    pick: Pick = greedy,
    gone: Callable[[int], bool] | None = None,
    repeats: Repeats | None = None,
    doubt: Callable[[list[int], list[float]], list[int]] | None = None,
) -> list[Decoded]:
    """Write between `<think>` and `</think>` for each row of a batch that was read with its cache kept.

    `fed`: the last token of each row is `<think>` and was read in the prefill; else it is fed first.
    A row goes through: tokens … `</think>` and the tokens of `after` (at least one) in one pass, gone. At the
    prompt's `max_rationale_tokens` the closing token is forced. `gone` says of a row of the batch whether
    nobody waits for it any more: it leaves at the next pass, and what is returned for it means nothing. With
    `repeats` a row that begins to repeat itself takes back what it wrote of that and closes the pair instead.
    `doubt` is asked before `</think>` which places of a body, given with its tokens' log-probabilities, are
    better left out: what follows does not see them, and they are not in what is returned.

    A greedy choice is guessed ahead where few rows are left: a pass checks several tokens as quickly as one
    there. What is written is the same, but for ties within rounding.
    """
    prepare, device, n = model.prepare, model.device, len(batch.emb)
    banned = banned_tokens(model)

    def chosen(logits: Tensor) -> list[tuple[int, int, float]]:
        """For each position the next token, the one that would close the pair, and log p of the next."""
        logits = logits.float() + banned
        closing = [prepare.end_think] * len(logits)
        if repeats is not None:
            semicolon = logits[:, repeats.semicolon] > logits[:, prepare.end_think]
            closing = torch.where(semicolon, repeats.semicolon, prepare.end_think).tolist()
        picked = pick(logits)
        likely = logits.gather(-1, picked[:, None])[:, 0] - logits.logsumexp(-1)
        return list(zip(picked.tolist(), closing, likely.tolist(), strict=True))

    lines = [_Line() for _ in range(n)]
    guesser = _Guesser(model, batch, after) if pick is greedy else None
    attention, cache = batch.attention.long(), reading.cache
    position = attention.sum(1) + reading.deltas[:, 0]
    if fed:
        last = reading.states[torch.arange(n, device=device), batch.emb]
        for line, state, choice in zip(lines, last, chosen(model.logits(last)), strict=True):
            line.states.append(state)
            line.choose(*choice)
    else:
        for line in lines:
            line.token = prepare.think
    active = list(range(n))
    while active:
        feeds = []
        for row in active:
            line = lines[row]
            if line.token == prepare.end_think:
                feeds.append([line.token, *after])
            else:
                ahead = guesser.guess(row, line, len(active)) if guesser is not None else []
                feeds.append([line.token, *ahead])
        width = max(map(len, feeds))
        tokens = torch.tensor([feed + [prepare.pad] * (width - len(feed)) for feed in feeds], device=device)
        real = torch.tensor([[i < len(feed) for i in range(width)] for feed in feeds], device=device)
        attention = torch.cat([attention, real.long()], 1)
        places = position[:, None] + torch.arange(width, device=device)
        states = model.backbone.model(
            input_ids=tokens,
            attention_mask=attention,
            position_ids=places[None].expand(3, -1, -1),
            use_cache=True,
            **{model.cache_name: cache},
        ).last_hidden_state
        choices = chosen(model.logits(states[real]))
        stay, used, begin = [], [], 0
        for place, (row, feed) in enumerate(zip(active, feeds, strict=True)):
            mine, begin = choices[begin : begin + len(feed)], begin + len(feed)
            if gone is not None and gone(row):
                lines[row].leave(states[place, 0])
                continue
            taken = _take(model, lines[row], feed, mine, states[place], len(after), repeats, doubt)
            if lines[row].final is None:
                stay.append(place)
                used.append(taken)
            elif guesser is not None:
                guesser.learn(lines[row])
        if used:
            read = torch.tensor(used, device=device)
            keep = torch.tensor(stay, device=device)
            if len(stay) < len(active):  # finished rows leave the batch and its cache
                attention, position = attention[keep], position[keep]
                cache.batch_select_indices(keep)
            if width > 1:  # guesses that were wrong stay in the cache, unseen
                attention[:, -width:] *= torch.arange(width, device=device)[None] < read[:, None]
            position = position + read
        active = [active[place] for place in stay]
        for place, row in enumerate(active):
            if back := lines[row].back:  # what was taken back stays in the cache, unseen too
                attention[place, attention[place].nonzero()[-back:]] = 0
                position[place] -= back
                lines[row].back = 0
            if left_out := lines[row].left_out:
                written = attention[place].nonzero()[-len(lines[row].ids) :, 0]
                attention[place, written[left_out]] = 0
                position[place] -= len(left_out)
                lines[row].leave_out()
    return [line.decoded() for line in lines]


@dataclass
class _Line:
    """A row while it is written; `token` is the next to be fed."""

    token: int = 0
    ids: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    closing: list[int] = field(default_factory=list)  # after each number of tokens, what closes the pair
    truncated: bool = False
    final: Tensor | None = None
    back: int = 0  # tokens that were taken back in this pass
    likely: list[float] = field(default_factory=list)  # log p of each of `ids`, then of `token`
    doubted: bool = False
    left_out: list[int] = field(default_factory=list)  # places of `ids` that will be hidden after this pass
    whole: list[int] | None = None  # `ids` before anything was left out

    def choose(self, token: int, close: int, likely: float) -> None:
        self.token = token
        self.closing.append(close)
        self.likely.append(likely)

    def take_back(self, kept: int, token: int) -> None:
        self.back = len(self.ids) - kept
        self.ids, self.states = self.ids[:kept], self.states[: kept + 1]
        self.closing, self.token = self.closing[: kept + 1], token
        self.likely = self.likely[: kept + 1]

    def leave_out(self) -> None:
        self.whole = self.ids
        stay = [place for place in range(len(self.ids)) if place not in set(self.left_out)]
        self.ids, self.likely = [self.ids[p] for p in stay], [self.likely[p] for p in stay]
        self.states = [self.states[0], *(self.states[1 + p] for p in stay)]
        self.left_out = []

    def leave(self, state: Tensor) -> None:
        self.states.append(state)
        self.final, self.truncated = state, True

    def decoded(self) -> Decoded:
        assert self.final is not None
        likely = self.likely[: len(self.ids)]
        emptied = bool(self.whole) and not self.ids
        return Decoded(self.ids, not self.truncated, torch.stack(self.states), self.final, likely, emptied)


def _take(
    model: MoonModel,
    line: _Line,
    feed: list[int],
    choice: list[tuple[int, int, float]],
    states: Tensor,
    following: int,
    repeats: Repeats | None,
    doubt: Callable[[list[int], list[float]], list[int]] | None,
) -> int:
    """Take what was fed as far as the choices agree with it; returns how many tokens that were.

    `choice[i]` (and `states[i]`) come from token i, whose right follower it is, with the one that would close
    the pair and its own log-probability; `following` is how many tokens stand after `</think>`.
    """
    prepare, limit = model.prepare, model.prompt.max_rationale_tokens
    for place, token in enumerate(feed):
        if token == prepare.end_think and doubt is not None and not line.doubted:
            line.doubted = True
            if left_out := doubt(line.ids, line.likely[: len(line.ids)]):
                line.left_out = left_out
                return place  # it is fed again when they are hidden
        line.states.append(states[place])
        if token == prepare.end_think:
            line.final = states[place + following]
            return len(feed)
        if token != prepare.think:
            line.ids.append(token)
        line.choose(*choice[place])
        if repeats is not None and (found := repeats.kept(line.ids, line.token)) is not None:
            kept, ends = found
            line.take_back(kept, prepare.end_think if ends else line.closing[kept])
            return place + 1
        if len(line.ids) >= limit and line.token != prepare.end_think:
            line.token, line.truncated = prepare.end_think, True
        if place + 1 == len(feed) or feed[place + 1] != line.token:
            return place + 1
    raise AssertionError("a feed is never empty")


class _Guesser:
    """Guesses for the rows of one batch, from the model's `lookup` and the rows' prompts."""

    def __init__(self, model: MoonModel, batch: Batch, after: Sequence[int]) -> None:
        self.lookup, self.after = model.lookup, list(after)
        self.think, self.stop = model.prepare.think, model.prepare.end_think
        self.limit = model.prompt.max_rationale_tokens
        self.batch = batch
        self.prompts: dict[int, dict[int, int]] = {}  # of rows that were guessed for; a full batch has none

    def guess(self, row: int, line: _Line, rows: int) -> list[int]:
        most = min(GUESSES, GUESSED_TOKENS // rows - 1, self.limit - len(line.ids) - 1)
        if most < 1:
            return []
        if row not in self.prompts:
            text = self.batch.input_ids[row][self.batch.text_mask[row]]
            self.prompts[row] = followers(text.tolist())
        told = [line.token] if line.token == self.think else [self.think, *line.ids, line.token]
        ahead = self.lookup.guess(told, self.prompts[row], most, self.stop)
        return [*ahead, *self.after] if ahead and ahead[-1] == self.stop else ahead

    def learn(self, line: _Line) -> None:
        if not line.truncated:
            written = line.ids if line.whole is None else line.whole
            self.lookup.learn([self.think, *written, self.stop])


def repeat_rows(batch: Batch, reading: Reading, times: int) -> tuple[Batch, Reading]:
    """Each row of a read batch `times` over, one after the other, so that rollouts share one prefill."""
    reading.cache.batch_repeat_interleave(times)
    repeated = partial(torch.repeat_interleave, repeats=times, dim=0)
    return batch.rows(repeated), reading.rows(repeated)


def banned_tokens(model: MoonModel) -> Tensor:
    """(vocabulary,) float32 with -inf for every token that a rationale must not hold."""
    bias = torch.zeros(model.vocabulary, device=model.device)
    bias[len(model.processor.tokenizer) :] = -torch.inf  # rows of the embedding that no token uses
    bias[sorted(reserved_tokens(model) - {model.prepare.end_think})] = -torch.inf
    return bias


def reserved_tokens(model: MoonModel) -> set[int]:
    """Ids of the prompt's own markup, which no text and no rationale holds."""
    tokenizer, prepare = model.processor.tokenizer, model.prepare
    return {*tokenizer.all_special_ids, prepare.image, *tokenizer.get_added_vocab().values()} | {
        prepare.think, prepare.end_think, prepare.emb,
    }  # fmt: skip

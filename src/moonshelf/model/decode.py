"""Writing on a cache: token by token for a whole batch, finished rows leave it.

What is written stands between `<think>` and `</think>`; what follows it is fed by the caller, `<emb>` for a
vector, the opening of an answer for a verdict, and the state at its last token is what the caller reads.
Reserved tokens cannot be written, so a text cannot make the model emit them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moonshelf.model.modeling import Reading

if TYPE_CHECKING:
    from moonshelf.model.modeling import MoonModel
    from moonshelf.model.processing import Batch

Pick = Callable[[Tensor], Tensor]


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


def decode(
    model: MoonModel,
    batch: Batch,
    reading: Reading,
    after: Sequence[int],
    *,
    fed: bool = True,
    pick: Pick = greedy,
    gone: Callable[[int], bool] | None = None,
) -> list[Decoded]:
    """Write between `<think>` and `</think>` for each row of a batch that was read with its cache kept.

    `fed`: the last token of each row is `<think>` and was read in the prefill; else it is fed first.
    A row goes through: tokens … `</think>`, the tokens of `after` (at least one), gone. At the prompt's
    `max_rationale_tokens` the closing token is forced. `gone` says of a row of the batch whether nobody waits
    for it any more: it leaves at the next step, and what is returned for it means nothing.
    """
    prepare, device, n = model.prepare, model.device, len(batch.emb)
    limit = model.prompt.max_rationale_tokens
    banned = banned_tokens(model)
    active = torch.arange(n, device=device)
    attention, cache = batch.attention.long(), reading.cache
    position = attention.sum(1) + reading.deltas[:, 0]
    written: list[list[int]] = [[] for _ in range(n)]
    truncated = [False] * n
    states: list[list[Tensor]] = [[] for _ in range(n)]
    following: list[list[int] | None] = [None] * n  # what is left of `after`, once the body is closed
    final: dict[int, Tensor] = {}
    if fed:
        last = reading.states[torch.arange(n, device=device), batch.emb]
        for i in range(n):
            states[i].append(last[i])
        current = pick(model.logits(last).float() + banned)
    else:
        current = torch.full((n,), prepare.think, device=device)
    while len(active):
        attention = torch.cat([attention, attention.new_ones(len(active), 1)], 1)
        output = model.backbone.model(
            input_ids=current[:, None],
            attention_mask=attention,
            position_ids=position.view(1, -1, 1).expand(3, -1, 1),
            past_key_values=cache,
            use_cache=True,
        )
        last = output.last_hidden_state[:, 0]
        choice = pick(model.logits(last).float() + banned).tolist()
        fed_now, stay, upcoming = current.tolist(), [], []
        for place, row in enumerate(active.tolist()):
            token, left = fed_now[place], following[row]
            if gone is not None and gone(row):
                states[row].append(last[place])
                final[row], truncated[row] = last[place], True
                continue
            if left is not None:
                if not left:
                    final[row] = last[place]
                    continue
                nxt = left.pop(0)
            else:
                states[row].append(last[place])
                if token == prepare.end_think:
                    nxt, *rest = after
                    following[row] = rest
                else:
                    if token != prepare.think:
                        written[row].append(token)
                    nxt = choice[place]
                    if len(written[row]) >= limit and nxt != prepare.end_think:
                        nxt, truncated[row] = prepare.end_think, True
            stay.append(place)
            upcoming.append(nxt)
        if len(stay) < len(active):  # finished rows leave the batch and its cache
            keep = torch.tensor(stay, dtype=torch.long, device=device)
            active, attention, position = active[keep], attention[keep], position[keep]
            if len(stay):
                cache.batch_select_indices(keep)
        current = torch.tensor(upcoming, dtype=torch.long, device=device)
        position = position + 1
    return [Decoded(written[i], not truncated[i], torch.stack(states[i]), final[i]) for i in range(n)]


def repeat_rows(batch: Batch, reading: Reading, times: int) -> tuple[Batch, Reading]:
    """Each row of a read batch `times` over, one after the other, so that rollouts share one prefill."""
    reading.cache.batch_repeat_interleave(times)
    tensors = {
        name: getattr(batch, name).repeat_interleave(times, 0)
        for name in ("input_ids", "attention", "image_mask", "text_mask", "rationale_mask", "emb")
    }
    states, raw, deltas = (
        x.repeat_interleave(times, 0) for x in (reading.states, reading.raw, reading.deltas)
    )
    taps = [tap.repeat_interleave(times, 0) for tap in reading.taps]
    return type(batch)(**tensors), Reading(states, raw, taps, deltas, reading.cache)


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

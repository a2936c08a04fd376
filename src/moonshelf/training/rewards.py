"""Rewards of joint training: plain functions, one number a completion.

Each is `reward(completions, **columns) -> list`; every column is a list of the same
length, and columns that a reward does not name are ignored. A completion is what the model wrote after the
opening `<think>`. None stands for "says nothing about this completion", as in TRL.

Retrieval is LREM's reward (arXiv 2510.14321). The graded length, the agreement with the catalogue and these
rules are ours:

- No reward is paid for a completion that breaks the format. Retrieval would otherwise pay a truncated
  rationale for what the picture alone is worth.
- The format does not ask for a key beyond the category: a catalogue that states only categories would teach
  invention. It does not ask for a category either. A bare minimum is the business of length and agreement.
- One value under two keys keeps the format (`colour: black; dial color: black`: 8 % of the records of one
  catalogue that we looked at, against 0.4 % for three keys), but agreement pays it only if the catalogue
  confirms both.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moonshelf.attributes import canonical, canonical_key, normalise_value
from moonshelf.prompts import (
    CATEGORY_SEPARATOR,
    END_THINK,
    THINK,
    clean_text,
    read_rationale,
    write_rationale,
)

Reward = Callable[..., list[float | None]]

# All ours. Tokens of the starter's: rationales made from records have 14 to 39 at the medians of four
# catalogues; LREM found 32 better than 16, 48 and 64; the prompt's default limit is 64.
SHORT, LONG, LIMIT = 8, 40, 64
MAX_REPEATS = 2  # times that one value, or one member of a list of values, may be written
ROUNDING = 1e-4  # of a mean rank
FREE_EXTRAS = 2  # pairs under keys of which the catalogue says nothing that cost nothing

_LIST = re.compile(r"\s*(?:[,/&]|\band\b)\s*")
_LOOP = re.compile(r"\b(\w+)(?:\W+\1\b){2,}")  # one word three times in a row


def read(completion: str, title: str = "") -> dict[str, str] | None:
    """Pairs that a completion states, canonical keys and normalised values; None if it earns no reward.

    That is if `read_rationale` refuses `<think>` + completion (truncated, nothing in it, no pairs, a key
    twice), if two keys are names of one attribute, if a key or value has no letter or digit, if it loops
    (one word three times in a row, one value more than `MAX_REPEATS` times), or if it is only the `title`
    that the model was shown, bare or under one key.
    """
    pairs = read_rationale(THINK + completion)
    if pairs is None or _LOOP.search(completion.lower()):
        return None
    said = {canonical_key(key): normalise_value(key, value) for key, value in pairs.items()}
    if len(said) < len(pairs) or not all(_plain(key) and _plain(value) for key, value in said.items()):
        return None
    whole = [completion.strip().removesuffix(END_THINK), *(said.values() if len(said) == 1 else ())]
    if title and _plain(clean_text(title)) in map(_plain, whole):
        return None
    stated = Counter(part for key, value in said.items() if key != "category" for part in _parts(key, value))
    return said if max(stated.values(), default=0) <= MAX_REPEATS else None


def format(completions: Sequence[str], **columns: Any) -> list[float | None]:
    """1 if the completion keeps the format (see `read`), else 0. Uses column `title` if there is one."""
    return [float(said is not None) for said in _read_all(completions, columns)]


def length(
    completions: Sequence[str],
    *,
    tokens: Sequence[int],
    short: int = SHORT,
    long: int = LONG,
    limit: int = LIMIT,
    **columns: Any,
) -> list[float | None]:
    """1 from `short` to `long` tokens; below it rises from 0 in a line, above it falls to 0 at `limit`.

    `tokens` counts what the model wrote, `</think>` included. Graded, so that rollouts of one group differ.
    """
    return [
        0.0 if said is None else max(0.0, min(count / short, 1.0, (limit - count) / max(1, limit - long)))
        for said, count in zip(_read_all(completions, columns), tokens, strict=True)
    ]


def retrieval(
    completions: Sequence[str], *, rank: Sequence[float], candidates: Sequence[int], **columns: Any
) -> list[float | None]:
    """1 − log rank / log N in [0, 1], from `ranks`; 0 if N is 1, since nothing was found among nothing.

    A rank may be a mean over several queries of equal N. ValueError if it is not within 1…N.
    """
    rewards: list[float | None] = []
    for said, place, n in zip(_read_all(completions, columns), rank, candidates, strict=True):
        if not 1 - ROUNDING <= place <= n * (1 + ROUNDING):
            raise ValueError(f"rank {place} of {n} candidates: it must be within 1 and that number")
        found = said is not None and n > 1
        rewards.append(min(1.0, max(0.0, 1 - math.log(place) / math.log(n))) if found else 0.0)
    return rewards


def attributes(
    completions: Sequence[str], *, truth: Sequence[Mapping[str, str | None] | None], **columns: Any
) -> list[float | None]:
    """F1 in [0, 1] of the pairs written against the catalogue's; None where the catalogue states nothing.

    `truth` maps canonical keys to values, among them `category` as a path `a > b > c`; None values (from
    a table with a column a key) are skipped. A truth that is word for word the `title` shown to the model
    is left out on both sides: copying it shows nothing.

    - A value agrees after `attributes.normalise_value`, hyphens and the order of a list apart. Part of a
      list earns its share (`cotton` of `cotton, polyester`: 1/2); one member too many, or one twice,
      earns nothing.
    - A category earns the Dice share of the steps that agree from the root on, 2·shared / (written + true): a
      wrong last step costs more than a missing one.
    - Keys that the catalogue lacks are neither right nor wrong, because catalogues are incomplete and a
      sleeve may well be seen that nobody recorded. Beyond `FREE_EXTRAS` they count as wrong, or listing
      all would be free.
    - One value under several keys counts as wrong under each, unless the catalogue has it under each.
    """
    rewards: list[float | None] = []
    titles = _titles(completions, columns)
    for said, facts, title in zip(_read_all(completions, columns), truth, titles, strict=True):
        known = _known(facts or {}, title)
        if not known:
            rewards.append(None)
        else:
            rewards.append(0.0 if said is None else _agreement(said, known))
    return rewards


REWARDS: dict[str, Reward] = {reward.__name__: reward for reward in (format, length, retrieval, attributes)}


@torch.no_grad()
def ranks(scores: Tensor, positive: Tensor, ignore: Tensor) -> tuple[Tensor, Tensor]:
    """Rank of each row's best positive and the number of candidates, itself included: (R,), (R,) int64.

    `scores` (R, N) float; `positive` (R, N) bool marks what the row should find, `ignore` (R, N) bool
    what is neither right nor wrong, such as the rest of its group; positive wins where both are set. Ties
    are ranked pessimistically (a constant score earns the last place), and so is NaN. Further positives
    are no candidates. ValueError if a row has no positive.
    """
    _check(scores, positive, ignore)
    best = scores.masked_fill(~positive, -torch.inf).amax(1, keepdim=True)
    negative = ~positive & ~ignore
    ahead = negative & ~(scores < best)  # not `>=`: a comparison with NaN is false
    return 1 + ahead.sum(1), 1 + negative.sum(1)


def _check(scores: Tensor, positive: Tensor, ignore: Tensor) -> None:
    if not scores.shape == positive.shape == ignore.shape or scores.dim() != 2:
        raise ValueError(f"scores {tuple(scores.shape)} and masks must be of one shape (rows, candidates)")
    lacking = (~positive.any(1)).nonzero().flatten().tolist()
    if lacking:
        raise ValueError(f"row {lacking[0]} has no positive: each rollout needs its own match")


def _titles(completions: Sequence[str], columns: Mapping[str, Any]) -> list[str]:
    return [title or "" for title in columns.get("title") or [""] * len(completions)]


def _read_all(completions: Sequence[str], columns: Mapping[str, Any]) -> list[dict[str, str] | None]:
    pairs = zip(completions, _titles(completions, columns), strict=True)
    return [read(completion, title) for completion, title in pairs]


def _plain(text: str) -> str:
    """Words only: case, hyphens and punctuation are no differences."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _parts(key: str, value: str) -> list[str]:
    """Members of a list of values, sorted; one member for most."""
    members = (_plain(normalise_value(key, member)) for member in _LIST.split(normalise_value(key, value)))
    return sorted(member for member in members if member)


def _steps(path: str) -> list[str]:
    return [_plain(step) for step in path.split(CATEGORY_SEPARATOR.strip())]


def _known(facts: Mapping[str, str | None], title: str) -> dict[str, str]:
    """The catalogue's pairs, cleaned as a rationale writes them, without any that is the title itself."""
    pairs = canonical({key: value for key, value in facts.items() if value})
    category = pairs.pop("category", "")
    written = read_rationale(write_rationale((category,), pairs)) or {}
    shown = _plain(clean_text(title))
    return {key: value for key, value in written.items() if _plain(value) not in ("", shown)}


def _agreement(said: Mapping[str, str], known: Mapping[str, str]) -> float:
    right, counted, extras = 0.0, 0, 0
    times = Counter(map(_plain, said.values()))
    confirmed = {key: _credit(key, value, known[key]) for key, value in said.items() if key in known}
    for key, value in said.items():
        twins = [other for other in said if _plain(said[other]) == _plain(value)]
        if times[_plain(value)] > 1 and any(confirmed.get(twin) != 1.0 for twin in twins):
            counted += 1
        elif key in known:
            counted += 1
            right += confirmed[key]
        else:
            extras += 1
    counted += max(0, extras - FREE_EXTRAS)
    return 2 * right / (counted + len(known))


def _credit(key: str, written: str, true: str) -> float:
    if key == "category":
        a, b = _steps(written), _steps(true)
        shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        return 2 * shared / (len(a) + len(b))
    said, wanted = _parts(key, written), _parts(key, true)
    if said == wanted:
        return 1.0
    members = set(said)
    return len(members) / len(set(wanted)) if len(members) == len(said) and members <= set(wanted) else 0.0

"""What is likely to be written next, guessed from what was written before and from the prompt.

Rationales repeat themselves: keys stand in one order, a category has one path, words come from the title. A
guess costs a look into a dictionary, and the model checks all guesses of a row in one pass, so a right one
saves a pass and a wrong one changes nothing (speculation by lookup, as in prompt lookup decoding and
lookahead; Leviathan et al., 2023, for the check). The last tokens are looked up in what earlier rows wrote,
longest first, then in the row's own prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

ORDERS = (5, 3, 2)  # tokens that are looked up; ours, longer ones are right more often
REMEMBERED = 40_000  # places of earlier texts: a few MiB


class Lookup:
    """Continuations of earlier texts. Any thread may ask; `learn` is the model's thread's."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], int] = {}

    def learn(self, ids: Sequence[int]) -> None:
        """A text that was written, with the tokens that opened and closed it. Of two continuations the later
        one is kept."""
        if len(self._next) > REMEMBERED:
            self._next = {}  # what is written now fills it again soon
        for end in range(1, len(ids)):
            for order in ORDERS:
                self._next[tuple(ids[max(0, end - order) : end])] = ids[end]

    def guess(self, ids: Sequence[int], prompt: dict[int, int], most: int, stop: int) -> list[int]:
        """At most `most` tokens that may follow `ids`, none after `stop`. `prompt`: see `followers`."""
        told, found = list(ids[-max(ORDERS) :]), list[int]()
        while len(found) < most:
            token = self._seen(told)
            if token is None:
                token = prompt.get(told[-1])
            if token is None:
                break
            found.append(token)
            told.append(token)
            if token == stop:
                break
        return found

    def _seen(self, ids: list[int]) -> int | None:
        for order in ORDERS:
            token = self._next.get(tuple(ids[-order:]))
            if token is not None:
                return token
        return None


def followers(ids: Sequence[int]) -> dict[int, int]:
    """For each token of a prompt's text the one that follows it, the last time that it occurs."""
    return dict(pairwise(ids))

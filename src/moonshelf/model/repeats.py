"""Rationales that repeat themselves, or close a pair that is none, are stopped while they are written.

Small models loop: one key again and again, `combos > combos`, "and body care and body care". Taking the next
best token instead would make them write odd words in the loop's place. So what repeats is taken back, and the
pair is closed where it began: with `;` or `</think>`, whichever the model held for likelier there; after a
key that came before or a pair without a value, with `</think>`. All others are written as ever.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_JOINING = frozenset(("&", "and", "or", "with", "of", "for", "in", "-", "/", "+", ","))  # end no value
_RUN = 3  # words that may stand only once in a part of a value


class Repeats:
    """Looks for repetition in the tokens of one model's rationales."""

    def __init__(self, tokenizer: Any, end: int) -> None:
        self.tokenizer, self.end = tokenizer, end
        found = tokenizer.encode(";", add_special_tokens=False)
        self.semicolon: int = found[0] if len(found) == 1 else end
        self._kinds: dict[int, str] = {end: ";"}  # the end closes a pair as a semicolon does

    def kept(self, ids: Sequence[int], token: int) -> tuple[int, bool] | None:
        """Before `token` is fed after `ids`: how many of these stay if they repeat something, and whether the
        rationale has to end there; None if they do not."""
        kind = self._kinds.get(token)
        if kind is None:
            piece = self.tokenizer.decode([token])
            mark = piece.strip()[:1]
            kind = self._kinds[token] = mark if mark and mark in ";>:" else " " if piece[:1].isspace() else ""
        if not kind:
            return None
        text = self.tokenizer.decode(list(ids))
        found = repeated(text, kind)
        if found is None:
            return None
        length, ends = found
        count = 0
        while count < len(ids) and len(self.tokenizer.decode(list(ids[: count + 1]))) <= length:
            count += 1
        return (count, ends) if count else None


def repeated(text: str, mark: str) -> tuple[int, bool] | None:
    """Where a text begins to repeat itself, seen when `mark` is next: `;`, `>`, `:`, or a word's space.

    Returns how many characters stay and whether nothing may follow them, or None.
    """
    *before, pair = text.split(";")
    key, _, value = pair.partition(":")
    if not value.strip() and before:
        earlier = {one.partition(":")[0].strip().lower() for one in before}
        no_pair = mark == ";" or (mark == ":" and key.strip().lower() in earlier)
        return (_end(text, text.rfind(";")), True) if no_pair else None
    *parents, part = value.split(">")
    above = {" ".join(parent.lower().split()) for parent in parents}
    if mark in ";>" and " ".join(part.lower().split()) in above:
        return _end(text, text.rfind(">")), False
    start = len(text) - len(part)
    words = [(match[0].lower(), start + match.end()) for match in re.finditer(r"\S+", part)]
    stay = _once([word for word, _ in words])
    if stay == len(words):
        return None
    while stay and words[stay - 1][0] in _JOINING:
        stay -= 1
    if above and (not stay or " ".join(word for word, _ in words[:stay]) in above):
        return _end(text, text.rfind(">")), False
    return (words[stay - 1][1], False) if stay else None


def _once(words: list[str]) -> int:
    """How many words stay so that the last do not repeat those just before, nor a run of them earlier."""
    for size in range(1, len(words) // 2 + 1):
        if words[-size:] == words[-2 * size : -size] and any(c.isalpha() for c in "".join(words[-size:])):
            return len(words) - size
    last = words[-_RUN:]
    if any(words[i : i + _RUN] == last for i in range(len(words) - _RUN)):
        return len(words) - _RUN
    return len(words)


def _end(text: str, place: int) -> int:
    return len(text[:place].rstrip())

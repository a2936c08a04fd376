"""Whether two words of a colour, a material or a pattern can both be right.

A reviewer's time is short, so a doubt is no conflict: a value counts only if `families.toml` knows it, and
two values conflict only if no family holds both and they share no word (`light blue` is `blue`, `faux
leather` is near `leather`).
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from moonshelf.attributes import normalise_value

_TABLE: dict[str, Any] = tomllib.loads(Path(__file__).with_name("families.toml").read_text(encoding="utf-8"))
FAMILIES: dict[str, list[str]] = _TABLE["families"]  # field -> families; a value may be in several
IN_TITLES: dict[str, str] = _TABLE["in_titles"]
_LIST = re.compile(r"\s*(?:[,/&+|]|\band\b|\bwith\b)\s*")
_ANY = {"multicolour", "mixed", "other", "others", "na", "n a", "none"}  # says nothing that could be wrong


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


_KNOWN: dict[str, dict[str, set[int]]] = {field: defaultdict(set) for field in FAMILIES}  # value -> families
for _field, _families in FAMILIES.items():
    for _number, _family in enumerate(_families):
        for _value in _family.split(", "):
            _KNOWN[_field][_plain(_value)].add(_number)


@lru_cache(maxsize=100_000)
def differ(field: str, record: str, said: str) -> bool:
    """Whether two values of colour, material or pattern cannot both be right.

    Examples:
        >>> differ("colour", "navy blue", "blue"), differ("colour", "red", "blue")
        (False, True)
    """
    ours, theirs = _members(field, record), _members(field, said)
    return bool(ours and theirs) and not any(_near(field, a, b) for a in ours for b in theirs)


def _members(field: str, value: str) -> list[str]:
    """The parts of a list of values, plainly written; empty where one of them is unknown or says nothing."""
    whole = _plain(normalise_value(field, value))
    parts = [whole] if whole in _KNOWN[field] else [_plain(p) for p in _LIST.split(value.casefold())]
    members = [_plain(normalise_value(field, part)) for part in parts if part]
    known = all(m not in _ANY and (m in _KNOWN[field] or m.split()[-1] in _KNOWN[field]) for m in members)
    return members if known else []


def _near(field: str, a: str, b: str) -> bool:
    # `dark wood`: what it is stands last
    first, second = (_KNOWN[field].get(v) or _KNOWN[field][v.split()[-1]] for v in (a, b))
    return bool(set(a.split()) & set(b.split())) or bool(first & second)

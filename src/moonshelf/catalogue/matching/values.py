"""What a title says in values: amounts with their units, packs, sizes, model numbers, other numbers.

"0,5 l" and "500 ml" are one amount, "6 x 33 cl" is a pack of six, "XL" and "x-large" one size, and
`DSC-W150/B` and `dscw150b` one model number. Units are in `units.toml`. An amount is one word in one form.
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from moonshelf.prompts import clean_text

TOLERANCE = 0.012  # of two amounts: 16.9 fl oz are 500 ml, a screen of 13.3 inches is 33.8 cm

Amounts = Mapping[str, frozenset[float]]  # by dimension, in its base unit

_TABLE = tomllib.loads(Path(__file__).with_name("units.toml").read_text(encoding="utf-8"))
_TIGHT, _SIZES = frozenset(_TABLE.pop("tight")), _TABLE.pop("sizes")
_UNITS = {unit: (name, float(base)) for name, units in _TABLE.items() for unit, base in units.items()}
_UNIT = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_AMOUNT = re.compile(
    r"(?<![\w.,])(?:(?P<times>\d{1,4}) ?[x×] ?)?(?P<number>\d+(?:[.,]\d+)*)"
    rf"(?P<gap>[ -]?)(?P<unit>{_UNIT})(?![^\W_])"
)
_PACK = re.compile(
    r"\b(?:pack|set|box|case|lot|carton|confezione|juego|paquete|lote|karton)s? (?:of|de|da|von|di)"
    r" (\d{1,4})\b"
)
_SIZE = re.compile(
    r"\b(?:(eu|uk|us|size|gr|grösse|größe|taille|talla|taglia)[ .:-]{0,2}(\d{1,2}(?:[.,]5)?)"
    r"|(xxs|xs|xl|xxl|xxxl|[23]xl|x[ -]large))\b"
)
_TOKEN = re.compile(r"[^\W_]+(?:[-./+,][^\W_]+)*")
_WORD = re.compile(r"[^\W_]+")
_DECIMAL = re.compile(r"\d+[.,]\d+")


class Values(NamedTuple):
    """What `read` finds; everything is folded."""

    words: tuple[str, ...]  # in order, amounts among them in one written form
    codes: frozenset[str]  # model numbers: letters and digits mixed, or five digits and more
    amounts: Amounts
    numbers: frozenset[str]  # other numbers, such as a year or a version
    sizes: frozenset[str]  # of clothes and shoes
    squashed: str  # letters and digits only: a model number is found in it however it is separated


@lru_cache(maxsize=100_000)
def read(text: str) -> Values:
    """Values of a title.

    Examples:
        >>> found = read("Acme Cola 6 x 0,33 l, DSC-W150/B")
        >>> dict(found.amounts) == {"pack": {6.0}, "volume": {330.0}}, "dscw150b" in found.codes
        (True, True)
    """
    plain = clean_text(text).casefold()
    amounts: dict[str, set[float]] = defaultdict(set)

    def amount(match: re.Match[str]) -> str:
        name, base = _UNITS[match["unit"]]
        if match["gap"] and match["unit"] in _TIGHT:
            return match[0]  # "8 m" of a shoe, "2 in 1"
        if match["times"]:
            amounts["pack"].add(float(match["times"]))
        value = round(number(match["number"]) * base, 4)
        amounts[name].add(value)
        return f" {name}{f'{value:.3g}'.replace('.', 'p').replace('+', '')} "  # 16.9 fl oz: volume500

    rest = _AMOUNT.sub(amount, _PACK.sub(r" \1 pack ", plain))
    words: list[str] = []
    codes, numbers = set[str](), set[str]()
    for token in _TOKEN.findall(rest):
        parts = [token] if _DECIMAL.fullmatch(token) else _WORD.findall(token)
        words += parts
        for one in {"".join(parts), *parts}:
            if _DECIMAL.fullmatch(one):
                numbers.add(f"{number(one):g}")
            elif one.isdigit():
                (codes if len(one) >= 5 else numbers).add(one.lstrip("0") or "0")
            elif len(one) >= 3 and any(c.isdigit() for c in one) and not one.startswith(tuple(amounts)):
                codes.add(one)
    sizes = {
        _SIZES[letters.replace("-", " ")] if letters
        else f"{system if system in ('eu', 'uk', 'us') else ''}{number(value):g}"
        for system, value, letters in _SIZE.findall(rest)
    }  # fmt: skip
    return Values(
        tuple(words), frozenset(codes), {name: frozenset(some) for name, some in amounts.items()},
        frozenset(numbers), frozenset(sizes), "".join(_WORD.findall(plain)),
    )  # fmt: skip


def number(text: str) -> float:
    """A number in either convention.

    Examples:
        >>> [number(text) for text in ("1,5", "0.5", "1,500", "1.234,5")]
        [1.5, 0.5, 1500.0, 1234.5]
    """
    parts = re.split(r"[.,]", text[:30])
    whole = len(parts) > 1 and len(parts[-1]) == 3 and len(parts[0]) <= 3 and parts[0] != "0"
    if len(parts) == 1 or whole:
        return float("".join(parts))
    return float("".join(parts[:-1]) + "." + parts[-1])


def near(a: Iterable[float], b: Iterable[float]) -> bool:
    """Whether two sets of amounts of one dimension share one, within TOLERANCE."""
    return any(abs(x - y) <= TOLERANCE * max(x, y) for x in a for y in b)


@lru_cache(maxsize=100_000)
def same(a: str, b: str) -> bool:
    """Whether two values of an attribute are one, however they are written.

    Examples:
        >>> same("500 ml", "0,5 l"), same("X-Large", "xl"), same("M", "L")
        (True, True, False)
    """
    one, two = read(a).amounts, read(b).amounts
    return letter_size(a) == letter_size(b) or (
        bool(one) and one.keys() == two.keys() and all(near(one[name], two[name]) for name in one)
    )


def letter_size(text: str) -> str:
    """A value of an attribute, folded; sizes in their short form."""
    folded = text.casefold().replace("-", " ").strip()
    return _SIZES.get(folded, folded)

"""Amounts and currencies as shops of the world write them.

Currencies are those of ISO 4217 and their symbols, both from CLDR (babel). The number is ours to read:
parsers of free text take the first number that they find (10 of `10-20 USD`, 5 of `only 5 left`), and a price
that is not understood is better than one that is wrong. So a cell holds one number, a currency, and words
that change neither; anything else raises.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

from moonshelf.feeds.vocabulary import WORDS, by_word

# Symbols by their commonest meaning; None: a currency that several countries write alike.
_SYMBOLS: dict[str, str | None] = {
    **by_word(WORDS["money"]["symbols"]),
    **dict.fromkeys(WORDS["money"]["several"]),
}
_BESIDE = frozenset(WORDS["money"]["beside"])
_NUMBER = re.compile(
    r"(?<![\d.,'])(?:\d{1,3}(?:[ '](?=\d{3}(?!\d))\d{3})+(?:[.,]\d+)?|\d[\d.,']*\d|\d|[.,]\d+)"
)
_DASHES = re.compile(r"^\s*[.,]\s*[-–—]{1,2}|=$")  # `5,-`, and `5=` in Russia
_NEGATIVE = re.compile(r"[^\d]{0,8}[-−]\s*[^\d\s]{0,4}\s*[.,]?\d|\(.*\d.*\)$")
_PLAIN = str.maketrans(
    "\xa0\u202f\u2009’٬٫，．￥￡＄￦", "   ''.,.¥£$₩", "\u200e\u200f\ufeff"
)  # the third are dropped


def price(value: Any, *, comma: bool = False) -> tuple[float, str | None]:
    """Amount and ISO 4217 code (None if not written or not clear) of `12,99 EUR`, `US $1,299.00`, `.99`, 5.0.

    One separator before exactly three digits groups thousands if a currency is written (`1.299 EUR`), but
    `1.299` alone is a machine's decimal fraction, unless other prices of the feed have a decimal `comma`.
    Raises ValueError for ranges, several amounts and unknown words; so do negative prices, with a reason that
    begins with "negative".

    >>> price("1.299,00 €"), price("from $5 each")
    ((1299.0, 'EUR'), (5.0, 'USD'))
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not 0 <= value < 1e12:
            raise ValueError("negative price" if value < 0 else "the price is not a usable number")
        return float(value), None
    written = str(value).strip()
    if len(written) > 60:
        raise ValueError("the price is not a number")
    text = "".join(
        str(unicodedata.decimal(c)) if c.isdecimal() else c for c in written.translate(_PLAIN)
    ).strip()
    if _NEGATIVE.match(text):
        raise ValueError(f"negative price {written!r}")
    numbers = list(_NUMBER.finditer(text))
    if len(numbers) == 1:
        number = numbers[0]
        beside = _beside(text[: number.start()], _DASHES.sub(" ", text[number.end() :], count=1))
        if beside is not None:
            amount = _number(number[0], beside[0], beside[1] or comma)
            if amount is not None and amount < 1e12:
                return amount, beside[0]
    raise ValueError(f"the price {written!r} is not understood")


def currency(text: str) -> str | None:
    """ISO 4217 code of a code or a symbol, or None."""
    found = _currency(text)
    return found[0] if found else None


@cache
def iso_codes() -> frozenset[str]:
    """Codes of money that is in use, and of the little that was replaced lately."""
    from babel.core import get_global

    spans = get_global("territory_currencies").values()
    in_use = frozenset(code for span in spans for code, _, end, tender in span if end is None and tender)
    return in_use.union(WORDS["money"]["retired"])


@cache
def _cldr_symbols() -> dict[str, str | None]:
    """Symbols that CLDR's languages write for their money; None where several currencies share one."""
    from babel import Locale
    from babel.localedata import locale_identifiers

    found: dict[str, set[str]] = {}
    for name in locale_identifiers():
        if "_" not in name:
            for code, symbol in Locale.parse(name).currency_symbols.items():
                key = _bare(str(symbol))
                if code in iso_codes() and key and not key.isascii():
                    found.setdefault(key, set()).add(code)
    return {symbol: codes.pop() if len(codes) == 1 else None for symbol, codes in found.items()}


def _bare(text: str) -> str:
    return re.sub(r"[\s\u200e\u200f]", "", text).rstrip(".").upper()


def _currency(text: str) -> tuple[str | None] | None:
    """(code,) of a currency, (None,) if it is one of several, None if it is no currency."""
    key = _bare(text.translate(_PLAIN))
    if not key or len(key) > 12:
        return None
    if key in _SYMBOLS:
        return (_SYMBOLS[key],)
    if key.isascii():
        return (key,) if len(key) == 3 and key.isalpha() and key in iso_codes() else None
    found = _cldr_symbols()
    return (found[key],) if key in found else None


def _beside(before: str, after: str) -> tuple[str | None, bool] | None:
    """What stands beside the number: (code, whether there is a currency), or None if not understood."""
    codes: list[str | None] = []
    for side in (before, after):
        words = [side] if _currency(side) else re.split(r"[\s/():;,*]+", side)
        for word in words:
            if not word or word.lower().rstrip(".") in _BESIDE:
                continue
            if (found := _currency(word)) is None:
                return None
            codes.append(found[0])
    named = list(dict.fromkeys(code for code in codes if code))
    if len(named) == 2 and "$" in before + after and "USD" in named:
        named.remove("USD")  # `$5 CAD`: a dollar, and which one
    return None if len(named) > 1 else (named[0] if named else None, bool(codes))


def _number(text: str, code: str | None, written: bool) -> float | None:
    text = re.sub(r"[' ]", "", text)
    last = max(text.rfind("."), text.rfind(","))
    if last < 0:
        return float(text)
    whole, fraction = text[:last], text[last + 1 :]
    mixed = "." in text and "," in text
    repeated = text.count(text[last]) > 1
    if not mixed and repeated:
        decimal = False  # 1.299.000
    elif not mixed and len(fraction) == 3 and whole and not whole.startswith("0"):
        thousandths = code in WORDS["money"]["three_decimals"]
        decimal = thousandths or (not written and text[last] == ".")
    else:
        decimal = True
    if decimal and mixed and repeated:
        return None  # 1,2.3,4
    groups = re.split(r"[.,]", whole if decimal else text)
    if any(len(group) not in (2, 3) for group in groups[1:]) or (len(groups) > 1 and len(groups[-1]) != 3):
        return None  # not groups of thousands (India groups by two above the thousand)
    return float(("".join(groups) or "0") + ("." + fraction if decimal else ""))

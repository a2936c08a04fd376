"""Single values of a feed brought to the form of a `Product`: text, price, GTIN, category, lists.

Every function takes what a stranger wrote and either returns a value or raises ValueError with a reason
that fits into a `Problem`; nothing else escapes.
"""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from typing import Any

# Bytes that are not UTF-8 arrive as lone surrogates (see `text.py`); Windows-1252 is what they nearly
# always are. Its five unassigned bytes fall through to Latin-1 control characters, which are dropped.
_BYTE = {0xDC00 + b: bytes([b]).decode("cp1252", "ignore") or " " for b in range(128, 256)}
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ENTITY = re.compile(r"&(#\d{1,7}|#x[0-9a-fA-F]{1,6}|[a-zA-Z]{2,32});")
_TAG = re.compile(r"<[a-zA-Z/!?][^<>]*>?")
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\s*\n\s*")


def clean(text: str) -> tuple[str, list[str]]:
    """Text without control characters and lone surrogates, stripped; and what had to be mended."""
    mended = []
    if not text.isascii() and _SURROGATE.search(text):
        if _ESCAPED_BYTE.search(text):
            text = text.translate(_BYTE)
            mended.append("bytes that are not UTF-8 were read as Windows-1252")
        if _SURROGATE.search(text):
            text = _SURROGATE.sub("\ufffd", text)
            mended.append("broken Unicode was replaced")
    if _CONTROL.search(text):
        text = _CONTROL.sub(" ", text)
        mended.append("control characters were removed")
    return text.strip(), mended


class _Text(HTMLParser):
    """Collects visible text; block elements end a line."""

    BLOCKS = frozenset(
        ("p", "br", "div", "li", "ul", "ol", "tr", "table", "h1", "h2", "h3", "h4", "h5", "h6")
    )
    SILENT = frozenset(("script", "style"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.SILENT:
            self._silent += 1
        elif tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SILENT:
            self._silent = max(0, self._silent - 1)
        elif tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data)


def strip_html(text: str) -> str:
    """Visible text of an HTML fragment; plain text (also with a bare `<`) is returned as it is."""
    if "<" in text and _TAG.search(text):
        parser = _Text()
        try:
            parser.feed(text)
            parser.close()
            text = "".join(parser.parts)
        except (AssertionError, ValueError):  # html.parser asserts on some malformed declarations
            text = html.unescape(_TAG.sub(" ", text))
        text = _BLANK_LINES.sub("\n", _SPACES.sub(" ", text.replace("\xa0", " ")))
        return text.strip()
    return unescape(text)


def unescape(text: str) -> str:
    """Complete entities decoded (`&amp;`); a bare ampersand stays."""
    return _ENTITY.sub(lambda m: html.unescape(m[0]), text) if "&" in text else text


_SYMBOLS = {
    "$": "USD", "US$": "USD", "€": "EUR", "£": "GBP", "₹": "INR", "RS": "INR", "RS.": "INR", "¥": "JPY",
    "₩": "KRW", "₽": "RUB", "₺": "TRY", "₫": "VND", "₪": "ILS", "₴": "UAH", "฿": "THB", "R$": "BRL",
    "A$": "AUD", "AU$": "AUD", "C$": "CAD", "CA$": "CAD", "NZ$": "NZD", "HK$": "HKD", "S$": "SGD",
    "ZŁ": "PLN", "KČ": "CZK", "FT": "HUF",
}  # fmt: skip
_THREE_DECIMALS = frozenset(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"))
_PRICE = re.compile(
    r"(?P<before>[^\d\s.,+()-]{0,3}[^\d\s,+()-]?)\s*"
    r"(?P<number>\d(?:[\d.,'’ \xa0\u202f]*\d)?)(?:[.,]-)?\s*(?P<after>[^\d\s,+()-]{0,4})"
)
_NEGATIVE = re.compile(r"[^\d]{0,5}[-−]\s*[^\d\s]{0,4}\s*\d|\(.*\d.*\)$")


def price(value: Any) -> tuple[float, str | None]:
    """Amount and ISO 4217 code (None where not written) of `12,99 EUR`, `USD 1,299.00`, `$5`, 5.0.

    One separator before exactly three digits groups thousands if a currency is written (`1.299 EUR`), but
    `1.299` alone is a machine's decimal fraction. Ranges and words raise; so do negative prices, with a
    reason that begins with "negative".
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        amount = _as_float(value)
        if not 0 <= amount < 1e12:
            raise ValueError("negative price" if amount < 0 else "the price is not a usable number")
        return amount, None
    text = str(value).strip()
    if len(text) > 40:
        raise ValueError("the price is not a number")
    if _NEGATIVE.match(text):
        raise ValueError(f"negative price {text!r}")
    match = _PRICE.fullmatch(text)
    if not match:
        raise ValueError(f"the price {text!r} is not understood")
    written = (match["before"] or match["after"]).upper()
    code = currency(written) if written else None
    if written and code is None:
        raise ValueError(f"the price {text!r} is not understood")
    number = _number(match["number"], code)
    if number is None or number >= 1e12:
        raise ValueError(f"the price {text!r} is not understood")
    return number, code


def currency(text: str) -> str | None:
    """ISO 4217 code of a code or a symbol, or None."""
    text = text.strip().upper()
    if text in _SYMBOLS:
        return _SYMBOLS[text]
    return text if len(text) == 3 and text.isascii() and text.isalpha() else None


def _as_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _number(text: str, code: str | None) -> float | None:
    text = re.sub(r"['’ \xa0\u202f]", "", text)
    if not text.isascii():
        text = "".join(c if c in ".," else str(int(c)) for c in text)
    last = max(text.rfind("."), text.rfind(","))
    if last < 0:
        return float(text)
    whole, fraction = text[:last], text[last + 1 :]
    separators = {c for c in text if c in ".,"}
    if len(separators) == 1 and text.count(text[last]) > 1:
        decimal = False  # 1.299.000
    elif len(separators) == 1 and len(fraction) == 3 and not whole.startswith("0"):
        decimal = code in _THREE_DECIMALS or (code is None and text[last] == ".")
    else:
        decimal = True
    if decimal and len(separators) == 2 and text.count(text[last]) > 1:
        return None  # 1,2.3,4
    groups = re.split(r"[.,]", whole if decimal else text)
    if any(len(group) not in (2, 3) for group in groups[1:]) or (len(groups) > 1 and len(groups[-1]) != 3):
        return None  # not groups of thousands (India groups by two above the thousand)
    return float("".join(groups) + ("." + fraction if decimal else ""))


def gtin(text: str) -> str:
    """GTIN-8/12/13/14 with a right check digit, digits only. Raises ValueError with what is wrong."""
    from stdnum import ean
    from stdnum.exceptions import InvalidChecksum, InvalidFormat, InvalidLength

    digits = re.sub(r"[\s\-]", "", text.strip().lstrip("'"))
    try:
        return str(ean.validate(digits))
    except InvalidChecksum:
        raise ValueError(f"the check digit of GTIN {digits!r} is wrong") from None
    except InvalidLength:
        hint = ""
        if digits.isdigit() and 8 < len(digits) < 12 and ean.is_valid(digits.zfill(12)):
            hint = " (it seems to have lost its leading zeros)"
        raise ValueError(f"GTIN {text[:30]!r} has {len(digits)} digits, not 8, 12, 13 or 14{hint}") from None
    except InvalidFormat:
        hint = " (a spreadsheet rounded it)" if re.fullmatch(r"\d[.,]\d+[eE]\+?\d+", digits) else ""
        raise ValueError(f"GTIN {text[:30]!r} is not a number{hint}") from None


def category(value: Any) -> tuple[str, ...]:
    """Path from the root to the leaf, of `A > B > C`, `A/B/C` with spaces around, or a list."""
    if isinstance(value, (list, tuple)):
        parts = [as_text(part) for part in value]
    else:
        text = unescape(as_text(value))
        separator = next((s for s in (">", "›", "»", "|", " / ", "::") if s in text), None)
        parts = text.split(separator) if separator else [text]
    return tuple(name for part in parts[:20] if (name := clean(part)[0][:200]))


def availability(text: str) -> str:
    """`In Stock`, `in_stock` and `https://schema.org/InStock` become `in_stock`."""
    text = text.strip().rsplit("/", 1)[-1]
    return re.sub(r"[\s_\-]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text)).lower()


def as_text(value: Any) -> str:
    """Any value as a string: yes/no for booleans, lists joined by ", ", mappings as JSON, None empty."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value != value:
            return ""
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**100 else ""
    if isinstance(value, (list, tuple)):
        if all(not isinstance(item, (list, tuple, dict)) for item in value):
            return ", ".join(text for item in value if (text := as_text(item)))
        return json.dumps(value, ensure_ascii=False, default=_describe)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=_describe)
    return _describe(value)


def _describe(value: Any) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, (bytes, bytearray)) else str(value)

"""Single values of a feed brought to the form of a `Product`: text, GTIN, category, lists, prices.

Every function takes what a stranger wrote and either returns a value or raises ValueError with a reason
that fits into a `Problem`; nothing else escapes.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from functools import cache
from typing import Any

from moonshelf.feeds.vocabulary import WORDS, by_word
from moonshelf.identifiers import gtin_of

# Bytes that are not UTF-8 arrive as lone surrogates (see `text.py`); Windows-1252 is what they nearly
# always are. Its five unassigned bytes fall through to Latin-1 control characters, which are dropped.
_BYTE = {0xDC00 + b: bytes([b]).decode("cp1252", "ignore") or " " for b in range(128, 256)}
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ENTITY = re.compile(
    r"&(#\d{1,7};|#x[0-9a-fA-F]{1,6};|[a-zA-Z]{2,30}\d{0,2};|(?:amp|lt|gt|quot|nbsp|copy|reg|trade)(?![\w=;]))"
)
_TAG = re.compile(
    r"</?(?P<name>[a-zA-Z][\w:-]*+)"
    # attributes with quoted `>`, any others, or what is left of a text that was cut within a tag
    r"(?P<rest>\s(?:[^<>\"']++|\"[^\"]*+\"|'[^']*+')*+>|(?:/|\s[^<>]*+)?>|\s[^<>]*+$)"
)
_CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_DECLARATION = re.compile(r"<[!?][a-zA-Z][^>]*+>")
_SILENT = re.compile(r"<(script|style)(?:\s[^<>]*+)?>.*?(?:</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE)
_ELEMENTS = frozenset(WORDS["html"]["elements"])
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
    return text.strip().strip("\ufeff").strip(), mended


def plain(text: str, *, lines: bool = False) -> str:
    """Visible text of what may be an HTML fragment, escaped once, twice or not at all.

    Tags are removed where they are tags of HTML: `x<y and y>z` and `Size <M` stay. With `lines`, block
    elements end a line; without, the text is one line.
    """
    if "<" not in text and "&" not in text:
        return text
    for _ in range(2):
        if (bare := _without_tags(text)) is not None:
            bare = re.sub(r"[^\S\n]+", " ", unescape(unescape(bare)).replace("\xa0", " "))
            return _BLANK_LINES.sub("\n" if lines else " ", bare).strip()
        text = unescape(text)
    return text.replace("\xa0", " ").strip()


def _without_tags(text: str) -> str | None:
    """The text without tags, its entities as they are; None if there are none."""
    if "<" not in text:
        return None
    marked = _closed(_CDATA, "]]>", text, lambda match: html.escape(match[1], quote=False))
    marked = _SILENT.sub("", _closed(_COMMENT, "-->", marked))
    marked = _closed(_DECLARATION, ">", marked)
    marked = _TAG.sub(_shown_of_tag, marked)
    return None if marked == text else marked


def _closed(pattern: re.Pattern[str], end: str, text: str, shown: Any = "") -> str:
    """The text with what is closed replaced; what is not would be sought to the text's end each time."""
    at = text.rfind(end) + len(end)
    return text if at < len(end) else pattern.sub(shown, text[:at]) + text[at:]


def _shown_of_tag(match: re.Match[str]) -> str:
    """What is seen of what looks like a tag."""
    name, rest = match["name"].lower(), match["rest"].strip("/> \t\r\n")
    if name not in _ELEMENTS and not ("-" in name or ":" in name):
        return match[0]
    if "=" not in rest and not (match[0].endswith(">") and (not rest or name in WORDS["html"]["flagged"])):
        return match[0]  # of attributes that are only words, `a <b and c> d` is no tag
    return "\n" if name in WORDS["html"]["blocks"] else ""


def unescape(text: str) -> str:
    """Entities decoded (`&amp;`, and the old ones also without their semicolon); a bare ampersand stays."""
    return _ENTITY.sub(lambda m: html.unescape(m[0]), text) if "&" in text else text


def gtin(text: str) -> str:
    """GTIN-8/12/13/14 with a right check digit, digits only, UPC-E written out. ValueError says why not."""
    from stdnum import ean
    from stdnum.exceptions import InvalidChecksum, InvalidFormat, InvalidLength

    digits = re.sub(r"[\s\-]", "", text.strip().lstrip("'"))
    digits = re.sub(r"(?<=\d{7})[.,]0+$", "", digits)  # of a spreadsheet that took it for a number
    try:
        return gtin_of(digits)
    except InvalidChecksum:
        raise ValueError(f"the check digit of GTIN {digits!r} is wrong") from None
    except InvalidLength:
        lost = digits.isdigit() and 8 < len(digits) < 12 and ean.is_valid(digits.zfill(12))
        hint = " (it seems to have lost its leading zeros)" if lost else ""
        raise ValueError(f"GTIN {text[:30]!r} has {len(digits)} digits, not 8, 12, 13 or 14{hint}") from None
    except InvalidFormat:
        hint = " (a spreadsheet rounded it)" if re.fullmatch(r"\d[.,]\d+[eE]\+?\d+", digits) else ""
        raise ValueError(f"GTIN {text[:30]!r} is not a number{hint}") from None


def category(value: Any) -> tuple[str, ...]:
    """Path from the root to the leaf, of a list or of the text of one path or several (`paths`)."""
    if isinstance(value, (list, tuple)):
        parts = [as_text(part) for part in value]
    else:
        parts = max(paths(plain(as_text(value))), key=len, default=[])
    return tuple(name for part in parts[:20] if (name := clean(part)[0][:200]))


def paths(text: str) -> list[list[str]]:
    """Categories of a text, each from its root: `A > B > C`, `A / B`, `/A/B`, `A > B | A > C`.

    A comma may be part of a name (`Food, Beverages & Tobacco > Tea`), so it separates only paths of one root.
    """
    several: list[str] = [text]
    levels = next((sign for sign in (">", "›", "»") if sign in text), "")
    if levels:
        for sign in ("\n", "|", ";", ","):
            cells = [cell.strip() for cell in text.split(sign) if cell.strip()]
            roots = {cell.split(levels)[0].strip().lower() for cell in cells}
            if len(cells) > 1 and (sign != "," or len(roots) == 1):
                several = cells
                break
    elif ";" in text and all("/" in cell for cell in text.split(";") if cell.strip()):
        several, levels = text.split(";"), "/"
    elif text.lower().startswith("default category/"):  # Magento's root, which says nothing
        several, levels = text.split(","), "/"
    elif re.fullmatch(r"/?(?:\w[^/\d]+/){2,}\w[^/]+|/[^/]+(?:/[^/]+)*", text):
        levels = "/"
    else:
        levels = next((sign for sign in ("|", " / ", "::") if sign in text), "\0")
    found = [[name.strip() for name in cell.split(levels) if name.strip()] for cell in several]
    return [path[path[0].lower() == "default category" and len(path) > 1 :] for path in found if path]


def assigned(text: str) -> dict[str, str] | None:
    """Attributes of `color=Red,material=Cotton, wool` or of `Colour:Red:0,Size:M:1`, else None."""
    for several, sign in ((r",(?=[^=,]+=)", "="), (r",(?=[^:,]+:[^:,]+:)", ":")):
        parts = [part.split(sign, 1) for part in re.split(several, text)]
        if all(len(part) == 2 and part[0].strip() for part in parts):
            pairs = {name.strip(): re.sub(r":\d+(:\d)?$", "", value).strip() for name, value in parts}
            if sign == "=" or all(re.search(r":\d+(:\d)?$", value) for _, value in parts):
                return pairs
    return None


def details(text: str) -> dict[str, str]:
    """Attributes of Google's `Section:Name:Value,Section:Name:Value`."""
    parts = [[piece.strip() for piece in part.split(":")] for part in text.split(",")]
    return {part[1]: part[2] if len(part) == 3 else ":".join(part) for part in parts if len(part) > 1}


_AVAILABLE = by_word(WORDS["availability"])


def availability(text: str) -> str:
    """`In Stock`, `in_stock` and `https://schema.org/InStock` become `in_stock`."""
    text = text.strip().rsplit("/", 1)[-1]
    if (known := _AVAILABLE.get(text.lower())) is not None:
        return known
    return re.sub(r"[\s_\-]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text)).lower()


def as_text(value: Any) -> str:
    """Any value as a string: yes/no for booleans, lists joined by ", ", mappings as JSON, None empty."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**100 else ""
    if isinstance(value, (list, tuple)) and not any(isinstance(i, (list, tuple, dict)) for i in value):
        return ", ".join(text for item in value if (text := as_text(item)))
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, ensure_ascii=False, default=_describe)
    return _describe(value)


def _describe(value: Any) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, (bytes, bytearray)) else str(value)


# ---- amounts and currencies ------------------------------------------------------------------------------
# Currencies are those of ISO 4217 and their symbols, both from CLDR (babel). The number is ours to read:
# parsers of free text take the first number that they find (10 of `10-20 USD`, 5 of `only 5 left`), and a
# price that is not understood is better than one that is wrong. So a cell holds one number, a currency, and
# words that change neither; anything else raises.

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
    return (_currency(text) or (None,))[0]


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

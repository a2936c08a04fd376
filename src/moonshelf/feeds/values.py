"""Single values of a feed brought to the form of a `Product`: text, GTIN, category, lists (prices: `prices`).

Every function takes what a stranger wrote and either returns a value or raises ValueError with a reason
that fits into a `Problem`; nothing else escapes.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

from moonshelf.feeds.prices import currency as currency
from moonshelf.feeds.prices import price as price
from moonshelf.feeds.vocabulary import WORDS
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


_AVAILABLE = {
    **dict.fromkeys(("1", "yes", "y", "true", "instock"), "in_stock"),
    **dict.fromkeys(("0", "no", "n", "false", "outofstock"), "out_of_stock"),
}


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

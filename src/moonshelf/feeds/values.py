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

from moonshelf.feeds.prices import currency as currency
from moonshelf.feeds.prices import price as price

# Bytes that are not UTF-8 arrive as lone surrogates (see `text.py`); Windows-1252 is what they nearly
# always are. Its five unassigned bytes fall through to Latin-1 control characters, which are dropped.
_BYTE = {0xDC00 + b: bytes([b]).decode("cp1252", "ignore") or " " for b in range(128, 256)}
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ENTITY = re.compile(
    r"&(#\d{1,7};|#x[0-9a-fA-F]{1,6};|[a-zA-Z]{2,30}\d{0,2};|(?:amp|lt|gt|quot|nbsp|copy|reg|trade)(?![\w=;]))"
)
# Every `<`; with a name and what follows up to `>`, or to the end of a text that was cut within a tag.
_TAG = re.compile(
    r"<(?:!--|[!?][a-zA-Z]|/?(?P<name>[a-zA-Z][\w:-]*+)(?P<rest>\s[^<>]*+$|(?:/|\s[^<>]*+)?>))?"
)
_CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
_ELEMENTS = frozenset(
    [
        "a",
        "abbr",
        "address",
        "area",
        "article",
        "aside",
        "audio",
        "b",
        "bdi",
        "bdo",
        "big",
        "blockquote",
        "body",
        "br",
        "button",
        "canvas",
        "caption",
        "center",
        "cite",
        "code",
        "col",
        "colgroup",
        "data",
        "dd",
        "del",
        "details",
        "dfn",
        "dir",
        "div",
        "dl",
        "dt",
        "em",
        "embed",
        "fieldset",
        "figcaption",
        "figure",
        "font",
        "footer",
        "form",
        "frame",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "head",
        "header",
        "hr",
        "html",
        "i",
        "iframe",
        "img",
        "input",
        "ins",
        "kbd",
        "label",
        "legend",
        "li",
        "link",
        "main",
        "map",
        "mark",
        "marquee",
        "menu",
        "meta",
        "meter",
        "nav",
        "nobr",
        "noscript",
        "object",
        "ol",
        "optgroup",
        "option",
        "output",
        "p",
        "param",
        "picture",
        "pre",
        "q",
        "s",
        "samp",
        "script",
        "section",
        "select",
        "small",
        "source",
        "span",
        "strike",
        "strong",
        "style",
        "sub",
        "summary",
        "sup",
        "svg",
        "path",
        "table",
        "tbody",
        "td",
        "template",
        "textarea",
        "tfoot",
        "th",
        "thead",
        "time",
        "title",
        "tr",
        "track",
        "tt",
        "u",
        "ul",
        "var",
        "video",
        "wbr",
    ]
)
_FLAGGED = frozenset(
    ("input", "video", "audio", "script", "option", "details", "select", "textarea", "iframe", "hr")
)
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
    return text.strip().strip("\ufeff").strip(), mended


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


def plain(text: str, *, lines: bool = False) -> str:
    """Visible text of what may be an HTML fragment, escaped once, twice or not at all.

    Tags are removed where they are tags of HTML: `x<y and y>z` and `Size <M` stay. With `lines`, block
    elements end a line; without, the text is one line.
    """
    if "<" not in text and "&" not in text:
        return text
    marked = _marked(text)
    if marked is None:
        text = unescape(text)
        marked = _marked(text)
    if marked is None:
        return unescape(text).replace("\xa0", " ").strip()
    text = unescape(_without_tags(marked)).replace("\xa0", " ")
    return _BLANK_LINES.sub("\n" if lines else " ", _SPACES.sub(" ", text)).strip()


def _marked(text: str) -> str | None:
    """The text with every `<` that begins no tag escaped, or None if there is no tag."""
    if "<" not in text:
        return None
    if "<![CDATA[" in text and (end := text.rfind("]]>")) >= 0:
        text = _CDATA.sub(lambda match: html.escape(match[1], quote=False), text[: end + 3]) + text[end + 3 :]
    found, comments_end, tags_end = False, text.rfind("-->"), text.rfind(">")

    def keep(match: re.Match[str]) -> str:
        nonlocal found
        name, rest = match["name"], (match["rest"] or "").strip("/> \t\r\n")
        if name is None:
            tag = len(match[0]) > 1 and match.start() < (comments_end if match[0] == "<!--" else tags_end)
        elif name.lower() not in _ELEMENTS and not ("-" in name or ":" in name):
            tag = False
        else:  # of attributes that are only words, `a <b and c> d` is no tag
            tag = "=" in rest or (match[0].endswith(">") and (not rest or name.lower() in _FLAGGED))
        found = found or tag
        if tag and name and not match[0].endswith(">"):  # the text was cut within this tag
            return ""
        return match[0] if tag else "&lt;" + match[0][1:]

    marked = _TAG.sub(keep, text)
    return marked if found else None


def _without_tags(text: str) -> str:
    parser = _Text()
    try:
        parser.feed(text)
        parser.close()
        return "".join(parser.parts)
    except (AssertionError, ValueError):  # html.parser asserts on some malformed declarations
        return html.unescape(re.sub(r"<[^<>]*>", " ", text))


def unescape(text: str) -> str:
    """Entities decoded (`&amp;`, and the old ones also without their semicolon); a bare ampersand stays."""
    return _ENTITY.sub(lambda m: html.unescape(m[0]), text) if "&" in text else text


def gtin(text: str) -> str:
    """GTIN-8/12/13/14 with a right check digit, digits only. Raises ValueError with what is wrong."""
    from stdnum import ean
    from stdnum.exceptions import InvalidChecksum, InvalidFormat, InvalidLength

    digits = re.sub(r"[\s\-]", "", text.strip().lstrip("'"))
    digits = re.sub(r"(?<=\d{7})[.,]0+$", "", digits)  # of a spreadsheet that took it for a number
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


_AVAILABLE = {
    **dict.fromkeys(("1", "yes", "y", "true", "instock"), "in_stock"),
    **dict.fromkeys(("0", "no", "n", "false", "outofstock"), "out_of_stock"),
}


def assigned(text: str) -> dict[str, str] | None:
    """Attributes of `color=Red,material=Cotton, wool` or of `Colour:Red:0,Size:M:1`, else None."""
    for several, sign in ((r",(?=[^=,]+=)", "="), (r",(?=[^:,]+:[^:,]+:)", ":")):
        parts = [part.split(sign, 1) for part in re.split(several, text)]
        if all(len(part) == 2 and part[0].strip() for part in parts):
            pairs = {name.strip(): re.sub(r":\d+(:\d)?$", "", value).strip() for name, value in parts}
            if sign == "=" or all(re.search(r":\d+(:\d)?$", value) for _, value in parts):
                return pairs
    return None


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

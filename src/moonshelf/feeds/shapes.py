"""Lists and mappings as values, in JSON and XML or printed into a table's cell, brought to plain values.

Exports write one thing in many shapes: `["a", "b"]`, `{"name": "Mugs"}`, `{"value": "9.90", "currency":
"EUR"}`, `[{"language_tag": "en_US", "value": "Mug"}]`, `{"en": "Mug", "de": "Tasse"}`, `[{"src": "a.jpg"}]`.
Cells hold them as JSON, or as Python, Ruby or numpy print them. A shape is told by its keys, and each kind of
field (text, price, picture, category, attributes) takes the value that it wants. What is not understood is no
value; the caller keeps it in `extra` and says so.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from itertools import islice
from typing import Any

from moonshelf.attributes import fold
from moonshelf.feeds import values
from moonshelf.feeds.vocabulary import WORDS

_MAX_PRINTED = 200_000  # characters of a cell that is read as Python prints it; JSON may be longer
_MAX_DEPTH = 8  # of lists and mappings in one value
_MAX_ITEMS = 1_000  # of one list of pictures
_STRING = r"[bBrRuU]?(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
_TOKEN = re.compile(
    rf"(?P<string>{_STRING})(?P<next>\s+(?=['\"]))?|(?P<open>['\"].*)|(?P<arrow>=>)|(?P<call>[A-Za-z_][\w.]*\()|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<sign>[+-])\s*(?![\s\d.])",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_WORDS = {"null": "None", "nil": "None", "nan": "None", "NaN": "None", "true": "True", "false": "False"}
_ESCAPES = frozenset("\\'\"abfnrtvxuUN01234567\n")
_NOTHING: tuple[Any, ...] = (None, "", [], {})
_IMAGE_NAME = re.compile(r"(?i)^(https?:)?//|\.(jpe?g|png|webp|gif|bmp|tiff?|avif)(\?\S*)?$")
_CLOSES = {"[": "]", "{": "}", "(": ")"}

_KEYS = {kind: tuple(names) for kind, names in WORDS["shapes"].items()}  # the most telling first
_ON_SALE = frozenset(_KEYS["amount"][:8])  # 0 there says that nothing is on sale
_TAG = re.compile(r"([a-z]{2})([-_][A-Za-z]{2,4})?")


def opened(value: Any, *, numbers: bool = False) -> Any:
    """The list or mapping that a text prints, or the value as it is.

    A list of bare numbers in a text stays a text ("[2024]" may be part of a title) unless `numbers`.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] == '"' and text[-1:] == '"' and text[1:2] in "[{":  # printed twice
        try:
            inner = json.loads(text)
        except (ValueError, RecursionError):
            return value
        text = inner.strip() if isinstance(inner, str) else text
    if text.startswith("array(") and text.endswith(")"):
        text = text[6:-1].split(", dtype=")[0].strip()
    if len(text) < 2 or _CLOSES.get(text[0]) != text[-1]:
        return value
    found = _parsed(text)
    if not isinstance(found, (list, dict)) or (not numbers and found and _only_numbers(found)):
        return value
    return found


def _parsed(text: str) -> Any:
    if text[0] in "[{":
        try:
            return json.loads(text, strict=False)
        except (ValueError, RecursionError):
            pass
    if len(text) > _MAX_PRINTED or not re.search("['\"]", text):
        return None
    try:
        return _as_json(ast.literal_eval(_TOKEN.sub(_as_python, text)))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _as_json(value: Any) -> Any:
    """What Python prints and JSON cannot, as JSON has it: names are texts, and bytes that hold text are."""
    if isinstance(value, dict):
        return {str(_as_json(name)): _as_json(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(inner) for inner in value]
    if isinstance(value, set):
        return [_as_json(inner) for inner in sorted(value, key=repr)]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value  # a picture
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)


def _as_python(match: re.Match[str]) -> str:
    """One token of what JSON, Python, Ruby or numpy printed, as Python writes it."""
    if string := match["string"]:
        string = _ESCAPE.sub(lambda m: m[0] if m[1] in _ESCAPES else "\\" + m[0], string)
        return f"{string}," if match["next"] else string  # numpy prints no commas; Python would join the two
    if match["arrow"]:
        return ":"
    if match["call"]:  # Decimal('9.90'), OrderedDict([…]): the value is the argument
        return "("
    if match["sign"] or match["open"]:
        return " ! "  # not closed; or a chain of signs, which is no value and nests deeply
    word = match["word"]
    return _WORDS.get(word, word)


def _only_numbers(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(item, (int, float)) for item in found)


@dataclass(slots=True)
class Spoken:
    """A text, the language that it was tagged with, and what it is in the others."""

    text: str
    language: str | None = None
    others: dict[str, str] = field(default_factory=dict)


def spoken(value: Any, prefer: str | None = None, *, joint: str = ", ", ids: bool = False) -> Spoken | None:
    """The text of a value in one language, or None where its shape is not understood.

    Of several languages the one like `prefer` is taken, else the first. Lists are joined by `joint`. With
    `ids`, a mapping may name a thing by its id.
    """
    tagged = list(_tagged(value, joint, ids, 0))
    if any(text is None for _, text in tagged):
        return None
    languages: dict[str | None, list[str]] = {}
    for language, text in tagged:
        if text:
            languages.setdefault(language, []).append(text)
    named = [language for language in languages if language is not None]
    chosen = _like(prefer, named) or next(iter(named), None)
    taken = languages.pop(chosen, []) if chosen is not None else []
    taken = taken + languages.pop(None, [])
    others = {language: joint.join(texts) for language, texts in languages.items() if language is not None}
    return Spoken(joint.join(dict.fromkeys(taken)), chosen, others)


def _like(prefer: str | None, languages: list[str]) -> str | None:
    if prefer is None:
        return None
    wanted = prefer.replace("_", "-").lower()
    same = [language for language in languages if language.replace("_", "-").lower() == wanted]
    near = [language for language in languages if language[:2].lower() == wanted[:2]]
    return next(iter(same or near), None)


def _tagged(value: Any, joint: str, ids: bool, depth: int) -> Iterator[tuple[str | None, str | None]]:
    """Languages and texts of a value in its order; the text is None where a shape is not understood."""
    if value is None:
        return
    if depth > _MAX_DEPTH:
        yield None, None
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tagged(item, joint, ids, depth + 1)
    elif not isinstance(value, Mapping):
        yield None, values.as_text(value).strip()
    elif value:
        keys = _folded(value)
        language = _first(keys, _KEYS["language"], str)
        known = (*_KEYS["value"], *_KEYS["link"], *(_KEYS["id"] if ids else ()))
        inner = _first(keys, known)
        if inner is None and any(name in keys for name in known):
            return
        if inner is not None:
            for tag, text in _tagged(inner, joint, ids, depth + 1):
                yield (tag or language), text
        elif all(_is_tag(key) for key in value):
            for key, item in value.items():
                for _, text in _tagged(item, joint, ids, depth + 1):
                    yield str(key), text
        elif len(value) == 1:
            yield from _tagged(next(iter(value.values())), joint, ids, depth + 1)
        else:
            yield None, None


def _is_tag(key: Any) -> bool:
    match = _TAG.fullmatch(key) if isinstance(key, str) else None
    return match is not None and match[1] in WORDS["languages"]["keys"]


def _first(keys: Mapping[str, Any], names: Iterable[str], kind: type | None = None) -> Any:
    """What stands under the most telling of some names, blank values apart."""
    held = (keys[name] for name in names if keys.get(name) not in _NOTHING)
    return next((value for value in held if kind is None or isinstance(value, kind)), None)


def _folded(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {fold(key): item for key, item in value.items() if isinstance(key, str)}


@dataclass(slots=True)
class Money:
    """An amount as it was written, and its ISO 4217 code."""

    amount: Any
    currency: str | None = None


_NO_WORD = re.compile(r"[\W\d_]*|[a-z]{2,3}([-_][A-Za-z]{2,4})?|[A-Z]{3}")


def leaves(value: Any, depth: int = 0) -> Iterator[str]:
    """Words that a value holds anywhere, but for its keys, numbers, languages and currencies."""
    if isinstance(value, (Mapping, list, tuple)):
        for item in (value.values() if isinstance(value, Mapping) else value) if depth < 50 else ():
            yield from leaves(item, depth + 1)
    elif isinstance(value, str) and not _NO_WORD.fullmatch(value.strip()):
        yield value.strip()


def money(value: Any) -> list[Money]:
    """Amounts of a number, a text, a mapping of amount and currency, or a list of them."""
    return list(_money(value, None, 0))


def _money(value: Any, currency: str | None, depth: int) -> Iterator[Money]:
    value = opened(value, numbers=True)
    if value is None or depth > _MAX_DEPTH:
        return
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _money(item, currency, depth + 1)
        return
    if not isinstance(value, Mapping):
        yield Money(value, currency)
        return
    keys = _folded(value)
    code = _first(keys, _KEYS["currency"], str)
    currency = (values.currency(code) if code else None) or currency
    if (small := _small_units(keys)) is not None:
        yield Money(small, currency)
        return
    for name in _KEYS["amount"]:
        amount = keys.get(name)
        if amount in _NOTHING or (name in _ON_SALE and amount in (0, "0", "0.00", False)):
            continue
        yield from _money(amount, currency, depth + 1)
        return
    rest = [item for name, item in keys.items() if name not in _KEYS["currency"]]
    if len(rest) == 1 and code is None and len(value) == 1:  # {"$numberDecimal": "9.90"}, {"EUR": 9.9}
        yield from _money(rest[0], _iso(next(iter(value))) or currency, depth + 1)
    elif rest and all(_iso(name) for name in value):
        for name, item in value.items():
            yield from _money(item, _iso(name), depth + 1)


def _iso(name: Any) -> str | None:
    return values.currency(name) if isinstance(name, str) and name.isupper() and len(name) == 3 else None


def _small_units(keys: Mapping[str, Any]) -> Decimal | None:
    """The amount of a mapping that counts in millionths, cents, or units and nanos."""
    try:
        if keys.get("amount micros") is not None:
            return Decimal(str(keys["amount micros"])) / 1_000_000
        if keys.get("cent amount") is not None:
            return Decimal(str(keys["cent amount"])).scaleb(-int(keys.get("fraction digits", 2)))
        if "units" in keys or "nanos" in keys:
            return Decimal(str(keys.get("units") or 0)) + Decimal(str(keys.get("nanos") or 0)) / 1_000_000_000
    except (InvalidOperation, ValueError, TypeError):
        return None
    return None


@dataclass(slots=True)
class Picture:
    """Bytes or a reference of one picture, or what could not be read as one."""

    value: Any
    role: str | None = None
    name: str = ""  # beside bytes
    single: bool = False  # a mapping's value is one reference, a text may hold several


def pictures(value: Any) -> list[Picture]:
    """Pictures of a path, an address, bytes, a mapping with one of them, or lists of these in any depth."""
    return list(islice(_pictures(value, None, 0), _MAX_ITEMS))


def _pictures(value: Any, role: str | None, depth: int) -> Iterator[Picture]:
    value = opened(value)
    if value is None or value == "" or value == b"":
        return
    if depth > _MAX_DEPTH:
        yield Picture(None, role)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _pictures(item, role, depth + 1)
    elif isinstance(value, Mapping):
        yield from _of_mapping(value, role, depth)
    else:
        yield Picture(value, role)


def _of_mapping(value: Mapping[Any, Any], role: str | None, depth: int) -> Iterator[Picture]:
    keys = _folded(value)
    given = keys.get("role")
    role = given[:40] if isinstance(given, str) and given.strip() else role
    data = keys.get("bytes") or keys.get("data")
    if isinstance(data, (bytes, bytearray)):
        yield Picture(data, role, _first(keys, ("path", "url", "src", "filename"), str) or "")
        return
    lists = [item for item in value.values() if isinstance(item, (list, tuple))]
    if len(lists) == len(value) > 1 and len({len(item) for item in lists}) == 1:  # a table of columns
        rows = [dict(zip(value, row, strict=True)) for row in zip(*lists, strict=True)]
        yield from _pictures(rows, role, depth + 1)
        return
    one = _first(keys, _KEYS["picture"])
    many = [keys[name] for name in _KEYS["gallery"] if keys.get(name)]
    if one is None and not many:  # {"main": …, "back": …}, {"0": …}
        many = [item for item in value.values() if isinstance(item, (list, Mapping)) or is_picture_name(item)]
        if not many:
            yield Picture(None, role)
    for item in (one, *many):
        if isinstance(item, str) and opened(item) is item:
            yield Picture(item, role, single=True)
        else:
            yield from _pictures(item, role, depth + 1)


def is_picture_name(value: Any) -> bool:
    return isinstance(value, str) and bool(_IMAGE_NAME.search(value.strip()))


def categories(value: Any, prefer: str | None = None) -> list[list[str]]:
    """Paths as names from the root to the leaf; several for lists in a list. Languages as in `spoken`."""
    value = opened(value)
    if _has_languages(value):
        text = spoken(value, prefer, joint=" > ")
        return [[text.text]] if text and text.text else []
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, (list, tuple)) for item in value):
        return [names for item in value if (names := _category(item, 0))]
    names = _category(value, 0)
    return [names] if names else []


def _has_languages(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(
            isinstance(item, Mapping) and not _folded(item).keys().isdisjoint(_KEYS["language"])
            for item in value
        )
    return isinstance(value, Mapping) and bool(value) and all(_is_tag(key) for key in value)


def _category(value: Any, depth: int) -> list[str]:
    value = opened(value)
    if depth > _MAX_DEPTH or value is None:
        return []
    if isinstance(value, Mapping):
        keys = _folded(value)
        if isinstance(parent := keys.get("parent"), Mapping):
            own = {name: item for name, item in keys.items() if name != "parent"}
            return [*_category(parent, depth + 1), *_category(own, depth + 1)]
        inner = _first(keys, _KEYS["category"])
        if inner is None:
            text = spoken(value)
            return [text.text] if text and text.text else []
        if isinstance(inner, str) and inner.startswith("/") and not inner.startswith("//"):
            return [part for part in inner.split("/") if part.strip()]  # Amazon's nodes
        return _category(inner, depth + 1)
    if isinstance(value, (list, tuple)):
        return [name for item in value for name in _category(item, depth + 1)]
    name = values.as_text(value).strip()
    return [name] if name else []


def attributes(value: Any) -> dict[str, Any] | None:
    """Names and values of a mapping, or of a list of mappings or pairs that hold a name and a value."""
    value = opened(value)
    if isinstance(value, Mapping):
        if "attribute name" in _folded(value):
            return _pair(value)
        inner = next(iter(value.values()), None)
        if len(value) == 1 and (isinstance(inner, (list, tuple)) or _pair(inner)):  # <attributes><attribute>…
            found = attributes([inner] if isinstance(inner, Mapping) else inner)
            if found is not None:
                return found
        return {str(name): item for name, item in value.items()}
    if not isinstance(value, (list, tuple)):
        return None
    merged: dict[str, Any] = {}
    for item in value:
        item = opened(item)
        if isinstance(item, Mapping):
            pairs = _pair(item) or {str(name): content for name, content in item.items()}
        elif isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], str):
            pairs = {item[0]: item[1]}
        else:
            return None
        for name, content in pairs.items():
            merged[name] = [*_listed(merged[name]), *_listed(content)] if name in merged else content
    return merged


def _pair(item: Any) -> dict[str, Any]:
    """`{"name": …, "value": …}` in its many spellings as one pair, else empty."""
    if not isinstance(item, Mapping):
        return {}
    keys = _folded(item)
    name = next((key for key in _KEYS["attribute"] if _first(keys, [key], str)), None)
    held = [key for key in ("attribute value", "param value", *_KEYS["value"]) if key in keys and key != name]
    return {keys[name]: keys[held[0]]} if name and held else {}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]

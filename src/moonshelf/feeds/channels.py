"""What a channel refuses of a feed: `moonshelf check FEED --for google|meta|shopify|agentic`.

The rules are data, `channels.toml`, each with the channel's page that says so. A feed in the channel's
own form is judged by its cells as they are written, for these are what is uploaded; of any other feed what
was read is judged, as it would be written into the channel's form. Nothing is fetched: whether an address
leads to a page, or a picture is large enough, is not known here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from moonshelf.attributes import fold
from moonshelf.errors import Problem, UserError
from moonshelf.feeds import shapes, values
from moonshelf.feeds.base import Row
from moonshelf.feeds.build import split_images
from moonshelf.feeds.columns import simple
from moonshelf.identifiers import is_placeholder
from moonshelf.product import Product

CHANNELS: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_PRICE = re.compile(r"(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?) ?([A-Z]{3})?")
_PICTURES = ("jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "avif", "heic", "svg", "psd", "pdf")
_simple = lru_cache(10_000)(simple)


@dataclass(frozen=True, slots=True)
class Finding(Problem):
    """One rule that a row breaks; `fatal`: the channel would reject the row for it."""

    channel: str = ""
    source: str = ""  # the page that has the rule


class Channel:
    """The rules of one channel for feeds of one dialect. Raises UserError for a channel that is not known."""

    def __init__(self, name: str, dialect: str) -> None:
        if (entry := CHANNELS.get(name)) is None:
            raise UserError(f"there is no channel '{name}': choose one of {', '.join(CHANNELS)}.")
        self.key, self.as_written = name, dialect in entry["dialects"]
        self.about = (name, entry["name"], entry["spec"], entry["read"], self.as_written)
        self._places = {
            field: [simple(field), *(place if place[0] == "=" else simple(place) for place in places)]
            for field, places in entry["fields"].items()
        }
        self._rules: list[list[Any]] = [[*rule, entry["spec"]][:5] for rule in entry["rules"]]
        self._many = {field for field, test, *_ in self._rules if test in ("url", "pictures", "at_most")}

    def judge(self, row: Row) -> list[Finding]:
        """The rules that a row breaks, the first that rejects a field and what is said before it."""
        if self.as_written:
            cells = [{_simple(name): value for name, value in record.items()} for record in row.raw]
        else:
            cells = [_as_read(row.product)] if row.product is not None else []
        if not cells:
            return []

        @cache
        def look(field: str) -> list[str]:
            return self._values(field, cells)

        found: list[Finding] = []
        closed: set[str] = set()
        id = row.product.id if row.product else next(iter(row.problems)).id if row.problems else None
        for field, test, held, level, source in self._rules:
            if field not in closed and (reason := _broken(test, look(field), held, look)):
                found.append(Finding(row.number, field, reason, id, level == "rejects", self.key, source))
                closed |= {field} if level == "rejects" else set()
        return found

    def repeated(self, row: int, first: int, id: str) -> list[Finding]:
        """What the channel says of two rows with one id; some take neither."""
        said = "the id is used in row {} too"
        return [
            Finding(one, field, said.format(other), id, level == "rejects", self.key, source)
            for field, test, held, level, source in self._rules
            if test == "unique"
            for one, other in ((row, first), (first, row))[: 2 if held == "all" else 1]
        ]

    def _values(self, field: str, cells: Sequence[Mapping[str, Any]]) -> list[str]:
        """What fills a field of the channel, as text; of a field of addresses each by itself."""
        found: list[Any] = []
        for place in self._places.get(field) or [simple(field)]:
            held = (record.get(place) for record in cells)
            found = found or [value for value in held if value not in (None, "", [], {})]
        if field in self._many:
            pictures = (picture.value for value in found for picture in shapes.pictures(value))
            found = [part for value in pictures if isinstance(value, str) for part in split_images(value)]
        texts = (str(v).lower() if isinstance(v, bool) else values.as_text(v).strip() for v in found)
        return list(dict.fromkeys(filter(None, texts)))


def _as_read(product: Product) -> dict[str, Any]:
    """What was read as a channel would have it: `=NAME` of the product's fields, other names as they are."""
    found: dict[str, Any] = {simple(n): v for n, v in {**product.extra, **product.attributes}.items()}
    found |= {f"={name}": getattr(product, name) for name in Product.model_fields}
    addresses = [ref.url or ref.path or "bytes in the feed" for ref in product.images]
    amount = "" if product.price is None else f"{product.price:.2f}"
    return found | {
        "=images": addresses[:1], "=more_images": addresses[1:], "=category": " > ".join(product.category),
        "=amount": amount, "=price": amount and f"{amount} {product.currency or ''}".strip(),
    }  # fmt: skip


# ---- tests: why a value, or what a row holds for a field, breaks a rule; "" where it does not --------------


def _broken(test: str, found: list[str], held: Any, look: Callable[[str], list[str]]) -> str:
    if test == "needed":
        if found or held is True:
            return "" if found else "it is missing"
        for other, wanted in held.items():
            asked = [v for v in look(other) if not wanted or _same(v) in map(_same, wanted)]
            if asked:
                return f"it is missing, and {other} {asked[0][:40]!r} asks for it"
        return ""
    if test == "one_of":
        return "" if any(map(look, held)) else f"none of {', '.join(held)} is given"
    if test == "at_most":
        return f"there are {len(found)}, at most {held} are taken" if len(found) > held else ""
    if test == "below":
        return next((why for v in found for other in look(held) if (why := _below(v, other))), "")
    if test == "unlike":
        return f"it is the same as {held}" if set(found) & set(look(held)) else ""
    return next((why for v in found if (why := TESTS[test](v, held))), "") if test in TESTS else ""


def _same(text: str) -> str:
    return fold(text).replace(" ", "")


def _amount(text: str) -> tuple[float, str] | None:
    match = _PRICE.fullmatch(text)
    return (float(match[1].replace(",", "")), match[2] or "") if match else None


def _below(text: str, other: str) -> str:
    low, high = _amount(text), _amount(other)
    if low is None or high is None or (low[0] < high[0] and low[1] == high[1]):
        return ""
    return f"{text!r} is not less than {other!r} in the same currency"


def _url(text: str, most: int) -> str:
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.username
    except ValueError:
        good = False
    if not good or re.search(r"\s", text):
        return f"{text[:60]!r} is not an address on the web that begins with https://"
    return _most(text, most) if most else ""


def _most(text: str, most: int) -> str:
    return f"it has {len(text):,} characters, at most {most:,} are taken" if len(text) > most else ""


def _price(text: str, above: float) -> str:
    amount = _amount(text)
    if amount is None or values.currency(amount[1]) is None:
        return f"{text[:30]!r} is not a number with a decimal point and an ISO 4217 code, such as 12.99 EUR"
    return "" if amount[0] > above else f"{text[:30]!r} is not more than nothing"


def _gtin(text: str, _: Any) -> str:
    try:
        for one in text.split(","):
            values.gtin(one)
    except ValueError as error:
        return str(error)
    return ""


def _picture(text: str, taken: list[str]) -> str:
    suffix = text.split("?")[0].rpartition(".")[2].lower()
    refused = suffix in _PICTURES and suffix not in taken
    return f"pictures of the kind {suffix!r} are not taken" if refused else ""


def _value(text: str, taken: list[str]) -> str:
    return "" if _same(text) in map(_same, taken) else f"{text[:40]!r} is none of {', '.join(taken)}"


TESTS: dict[str, Callable[[str, Any], str]] = {
    "url": _url, "price": _price, "pictures": _picture, "most": _most, "values": _value,
    "gtin": _gtin,
    "matches": lambda v, rule: "" if re.fullmatch(rule[0], v) else f"{v[:40]!r} {rule[1]}",
    "text": lambda v, _: "it holds HTML" if "<" in v and values.plain(v) != v else "",
    "spoken": lambda v, _: "it is all in capitals" if v.isupper() and sum(map(str.isalpha, v)) > 5 else "",
    "real": lambda v, _: f"{v[:40]!r} is a filler, not a name" if is_placeholder(v) else "",
}  # fmt: skip

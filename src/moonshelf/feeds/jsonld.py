"""schema.org products: JSON-LD files, and the JSON-LD blocks of HTML pages.

Takes `Product`, its subtypes and `ProductGroup` wherever they stand (a list, an `@graph`, an `ItemList`, the
`mainEntity` of a page), resolves references by `@id`, and gives variants what their group says. A group is
given as its variants, or as one product if it has none. A node is visited once, so references in a circle
end. Products that are merely named as similar or related are left out. What an offer names as `itemOffered`
is a product; inside the offers of another one it is a variant of that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from moonshelf.errors import UserError
from moonshelf.feeds import values
from moonshelf.feeds.base import FeedBroken, Row, Source, set_aside
from moonshelf.feeds.build import Draft
from moonshelf.feeds.encodings import encoding_of
from moonshelf.feeds.offers import Choice, choose, flat
from moonshelf.feeds.vocabulary import WORDS

Node = dict[str, Any]
_SAID = WORDS["schema_org"]
_PRODUCTS, _NOT_OURS = frozenset(_SAID["products"]), frozenset(_SAID["not_ours"])
_GTINS, _ATTRIBUTES = _SAID["gtins"], _SAID["attributes"]
_KNOWN = _NOT_OURS.union(_SAID["known"], _GTINS, _ATTRIBUTES)
_OWN = frozenset((*_SAID["own"], *_GTINS))  # of a group: not passed on to its variants


def read(source: Source) -> Iterator[Row]:
    """Rows of a JSON-LD or HTML file. Raises UserError if it cannot be parsed or has no product."""
    try:
        data = source.read_document()
    except FeedBroken as error:
        raise UserError(f"{source.name} cannot be read: {error}.") from None
    encoding = encoding_of(data[:4096])
    text = data.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "replace")
    number = 0
    documents = []
    if text.lstrip("\ufeff \t\r\n").startswith("<"):
        for position, block in enumerate(_blocks(text), 1):
            try:
                documents.append(_parsed(block))
            except (ValueError, RecursionError):
                number += 1
                yield set_aside(number, "row", f"JSON-LD block {position} of the page is not valid JSON")
    else:
        try:
            documents.append(_parsed(text))
        except (ValueError, RecursionError) as error:
            where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise UserError(f"{source.name} is not valid JSON{where}.") from None
    index: dict[str, Node] = {}
    for found in _products(documents, index):
        number += 1
        yield _row(source, number, found, index)
    if number == 0:
        raise UserError(f"{source.name} holds no schema.org Product.")


_VOCABULARY = re.compile(r"^(https?://(www\.)?schema\.org/|schema:)")


def _parsed(text: str) -> Any:
    """JSON whose names are without the vocabulary's prefix. Raises ValueError, RecursionError."""

    def plain(pairs: list[tuple[str, Any]]) -> Node:
        return {_VOCABULARY.sub("", name): value for name, value in pairs}

    return json.loads(text, strict=False, object_pairs_hook=plain)


class _Blocks(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            kind = dict(attrs).get("type") or ""
            self._inside = kind.strip().lower().startswith("application/ld+json")
            if self._inside:
                self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.blocks[-1] += data


def _blocks(page: str) -> list[str]:
    """Contents of the page's JSON-LD scripts."""
    parser = _Blocks()
    try:
        parser.feed(page)
        parser.close()
    except AssertionError:  # html.parser asserts on some malformed declarations; keep what was found
        pass
    blocks = (re.sub(r"^\s*(<!--|//<!\[CDATA\[)|(-->|//\]\]>)\s*$", "", block) for block in parser.blocks)
    return [block for block in blocks if block.strip()]


def _types(node: Node) -> set[str]:
    kinds = node.get("@type")
    listed = kinds if isinstance(kinds, list) else [kinds]
    return {kind.rsplit("/", 1)[-1].rsplit(":", 1)[-1].lower() for kind in listed if isinstance(kind, str)}


def _walk(documents: list[Any]) -> Iterator[tuple[Node, bool]]:
    """Every object of the documents in their order, and whether it stands where a variant stands."""
    stack: list[tuple[Any, bool]] = [(document, False) for document in reversed(documents)]
    while stack:
        value, variant = stack.pop()
        if isinstance(value, list):
            stack += [(item, variant) for item in reversed(value)]
        elif isinstance(value, dict):
            yield value, variant
            stack += [
                (child, name == "hasVariant")
                for name, child in reversed(value.items())
                if isinstance(child, (dict, list)) and name not in _NOT_OURS
            ]


@dataclass(slots=True)
class _Found:
    """A product with what stands around it."""

    node: Node
    group: Node | None = None  # that it is a variant of
    offers: list[Node] = field(default_factory=list)  # that name it as what they offer


def _products(documents: list[Any], index: dict[str, Node]) -> list[_Found]:
    """Product nodes in document order. `index` takes all nodes by their `@id`."""
    nodes: list[Node] = []
    offering: list[Node] = []
    for node, variant in _walk(documents):
        if len(node) == 1 and "@id" in node:
            continue  # a reference
        if isinstance(name := node.get("@id"), str):
            index.setdefault(name, node)
        if "itemOffered" in node:
            offering.append(node)
        kinds = _types(node)
        if kinds & _PRODUCTS or "productgroup" in kinds or (variant and not kinds):
            nodes.append(node)
    found = {id(node): _Found(node) for node in nodes}  # by identity: nodes need not have an @id
    expanded: set[int] = set()
    for offer in offering:
        for value in _listed(offer["itemOffered"]):
            item = _resolve(value, index)
            if item is not None and id(item) in found:
                found[id(item)].offers.append(offer)
    for node in nodes:
        if id(node) not in found:
            continue
        for value in _listed(node.get("hasVariant")):
            item = _resolve(value, index)
            if item is not None and id(item) in found and "productgroup" not in _types(item):
                _join(found[id(item)], node, expanded)
        group = _resolve(node.get("isVariantOf"), index)
        if group is not None and group is not node and "productgroup" not in _types(node):
            _join(found[id(node)], group, expanded)
        for offered in flat(_listed(node.get("offers")), lambda value: _resolve(value, index)):
            for value in _listed(offered.get("itemOffered")):
                item = _resolve(value, index)
                if item is None or item is node or id(item) not in found:
                    continue
                if _is_same(item, node):
                    del found[id(item)]  # the product once more
                else:
                    _join(found[id(item)], node, expanded)
                    expanded.add(id(node))
    return [
        one
        for key, one in found.items()
        if key not in expanded or (one.group is None and not _has_variants(one.node, found))
    ]


def _join(variant: _Found, group: Node, expanded: set[int]) -> None:
    if variant.group is None and variant.node is not group:
        variant.group = group
        if "productgroup" in _types(group):
            expanded.add(id(group))


def _has_variants(group: Node, found: dict[int, _Found]) -> bool:
    return any(one.group is group for one in found.values())


def _is_same(item: Node, node: Node) -> bool:
    """Whether an offer names the product that it belongs to once more."""
    own = _names(item)
    return bool(own & _names(node)) or (not own and item.get("name") in (None, node.get("name")))


def _names(node: Node) -> set[str]:
    """What identifies a product."""
    return {
        text for name in ("@id", "sku", "productID", "mpn", *_GTINS) if (text := _text(node.get(name), {}))
    }


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _resolve(value: Any, index: dict[str, Node]) -> Node | None:
    """The node that a value is or refers to."""
    if isinstance(value, str):
        return index.get(value)
    if not isinstance(value, dict):
        return None
    name = value.get("@id")
    return index.get(name, value) if isinstance(name, str) and len(value) <= 2 else value


def _text(value: Any, index: dict[str, Node]) -> str:
    """Text of a literal, a language-tagged literal, or a thing with a name; of several the first."""
    for item in _listed(value):
        if isinstance(item, dict):
            item = _resolve(item, index) or item
            item = next((item[key] for key in ("@value", "name", "value", "url") if item.get(key)), None)
        if item is not None and not isinstance(item, (dict, list)) and (text := values.as_text(item).strip()):
            return text
    return ""


def _row(source: Source, number: int, found: _Found, index: dict[str, Node]) -> Row:
    draft = Draft(source, number)
    node, group = found.node, found.group
    merged = dict(node)
    if group is not None:
        merged = {name: value for name, value in group.items() if name not in _OWN} | merged
        owner = next(
            (
                text
                for name in ("productGroupID", "sku", "@id", "name")
                if (text := _text(group.get(name), index))
            ),
            "",
        )
        draft.set("group_id", owner)
    else:
        draft.set(
            "group_id", _text(merged.get("inProductGroupWithID") or merged.get("productGroupID"), index)
        )
    given = _listed(node.get("offers")) or found.offers or _listed(merged.get("offers"))
    choice = choose(
        given, lambda value: _resolve(value, index), lambda value: _text(value, index), source.currency
    )
    offer = choice.offer

    def get(name: str) -> str:
        return _text(merged.get(name), index)

    names = ("sku", "productID", "productGroupID", "@id", *_GTINS, "mpn", "url")
    candidates = (*(get(name) for name in names), *(_text(offer.get(name), index) for name in names))
    for text in (*candidates, get("identifier")):
        if "id" not in draft.values:
            draft.set("id", text)
    draft.set("title", get("name"))
    draft.set("description", get("description"))
    draft.set("brand", get("brand") or get("manufacturer"))
    draft.set("mpn", get("mpn"))
    draft.set("link", get("url") or _text(offer.get("url"), index))
    draft.set("language", get("inLanguage") or _language(merged.get("name")))
    draft.set(
        "gtin", next((text for name in _GTINS if (text := get(name) or _text(offer.get(name), index))), "")
    )
    category = [_text(part, index) for part in _listed(merged.get("category"))]
    draft.set("category", category if len(category) > 1 else "".join(category))
    _price(draft, choice, index)
    for value in _listed(merged.get("image")):
        image = _resolve(value, index)
        address = value if image is None else image.get("contentUrl") or image.get("url") or image.get("@id")
        for part in _listed(address):
            if isinstance(part, str):
                draft.image_text(part, "alternate" if draft.images else "main")
    _describe(draft, merged, index)
    return draft.finish()


def _language(value: Any) -> str:
    first = next(iter(_listed(value)), None)
    return values.as_text(first.get("@language")) if isinstance(first, dict) else ""


def _price(draft: Draft, choice: Choice, index: dict[str, Node]) -> None:
    if (price := choice.price) is not None:
        if price.penalty == 4:
            draft.warn("price", "only a list price is given, which may not be what a shopper pays")
        elif price.penalty > 1:
            draft.warn("price", "the price is not one that everybody pays today, but there is no other")
        if choice.others:
            draft.say(
                "price", f"there are offers in {', '.join(choice.others)} too: {price.currency} is taken"
            )
        draft.set("currency", price.currency)
        draft.price(price.amount)
        draft.put("list_price", price.list_price)
        draft.put("highest_price", choice.highest if choice.highest != price.amount else "")
    draft.set("availability", _text(choice.offer.get("availability"), index))


def _describe(draft: Draft, merged: Node, index: dict[str, Node]) -> None:
    """Attributes from the properties that schema.org names and `additionalProperty`; the rest is extra."""
    for name in _ATTRIBUTES:
        found = [_quantity(value, index) for value in _listed(merged.get(name))]
        draft.attribute(name, ", ".join(text for text in found if text))
    audience = _resolve(merged.get("audience"), index) or {}
    draft.attribute("gender", _text(audience.get("suggestedGender"), index))
    for value in _listed(merged.get("additionalProperty")):
        if (item := _resolve(value, index)) is not None:
            draft.attribute(
                _text(item.get("name") or item.get("propertyID"), index), _quantity(item, index, "value")
            )
    for name, value in merged.items():
        if name not in _KNOWN:
            draft.put(name, value)


def _quantity(value: Any, index: dict[str, Node], key: str | None = None) -> str:
    """A value with its unit: `{"value": 3, "unitText": "kg"}` is "3 kg"."""
    if not isinstance(value, dict):
        return _text(value, index)
    text = (
        ", ".join(t for item in _listed(value.get(key)) if (t := _text(item, index)))
        if key
        else _text(value, index)
    )
    unit = _text(value.get("unitText") or value.get("unitCode"), index)
    return f"{text} {unit}" if text and unit else text

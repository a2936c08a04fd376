"""schema.org products: JSON-LD files, and the JSON-LD blocks of HTML pages.

Takes `Product`, its subtypes and `ProductGroup` wherever they stand (a list, an `@graph`, an `ItemList`, the
`mainEntity` of a page), resolves references by `@id`, and gives variants what their group says. A group is
given as its variants, or as one product if it has none. A node is visited once, so references in a circle
end. Products that are merely named as similar or related are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

from moonshelf.errors import UserError
from moonshelf.feeds import values
from moonshelf.feeds.base import FeedBroken, Row, Source, set_aside
from moonshelf.feeds.build import Draft
from moonshelf.feeds.encodings import encoding_of

Node = dict[str, Any]
_PRODUCTS = frozenset(
    ("product", "individualproduct", "productmodel", "someproducts", "vehicle", "car", "book")
)
_NOT_OURS = frozenset((
    "isRelatedTo", "isSimilarTo", "isAccessoryOrSparePartFor", "isConsumableFor", "review", "reviews",
    "itemReviewed", "predecessorOf", "successorOf", "itemOffered",
))  # fmt: skip
_GTINS = ("gtin", "gtin13", "gtin14", "gtin12", "gtin8")
_ATTRIBUTES = ("color", "material", "pattern", "size", "weight", "width", "height", "depth")
_KNOWN = frozenset((
    "@id", "@type", "@context", "name", "description", "image", "brand", "manufacturer", "category", "offers",
    "sku", "productID", "mpn", "url", "inLanguage", "additionalProperty", "audience", "hasVariant",
    "isVariantOf", "productGroupID", "inProductGroupWithID", *_GTINS, *_ATTRIBUTES, *_NOT_OURS,
))  # fmt: skip
_OWN = frozenset((  # of a group: not passed on to its variants
    "@id", "@type", "hasVariant", "sku", "productID", "productGroupID", "variesBy", "mpn", *_GTINS,
))  # fmt: skip


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
                documents.append(json.loads(block, strict=False))
            except (ValueError, RecursionError):
                number += 1
                yield set_aside(number, "row", f"JSON-LD block {position} of the page is not valid JSON")
    else:
        try:
            documents.append(json.loads(text, strict=False))
        except (ValueError, RecursionError) as error:
            where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise UserError(f"{source.name} is not valid JSON{where}.") from None
    for node, group, index in _products(documents):
        number += 1
        yield _row(source, number, node, group, index)
    if number == 0:
        raise UserError(f"{source.name} holds no schema.org Product.")


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


def _products(documents: list[Any]) -> Iterator[tuple[Node, Node | None, dict[str, Node]]]:
    """Product nodes in document order, each with the group it is a variant of, and all nodes by `@id`."""
    index: dict[str, Node] = {}
    nodes: list[Node] = []
    for node, variant in _walk(documents):
        if len(node) == 1 and "@id" in node:
            continue  # a reference
        if isinstance(name := node.get("@id"), str):
            index.setdefault(name, node)
        kinds = _types(node)
        if kinds & _PRODUCTS or "productgroup" in kinds or (variant and not kinds):
            nodes.append(node)
    group_of: dict[int, Node] = {}  # by identity: nodes need not have an @id
    for node in nodes:
        for value in _listed(node.get("hasVariant")):
            variant_node = _resolve(value, index)
            if variant_node is not None and "productgroup" not in _types(variant_node):
                group_of.setdefault(id(variant_node), node)
        group = _resolve(node.get("isVariantOf"), index)
        if group is not None and group is not node and "productgroup" not in _types(node):
            group_of.setdefault(id(node), group)
    expanded = {id(group) for group in group_of.values()}
    for node in nodes:
        if not ("productgroup" in _types(node) and id(node) in expanded):
            yield node, group_of.get(id(node)), index


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


def _row(source: Source, number: int, node: Node, group: Node | None, index: dict[str, Node]) -> Row:
    draft = Draft(source, number)
    merged = dict(node)
    if group is not None:
        merged = {name: value for name, value in group.items() if name not in _OWN} | merged
        owner = next(
            (text for name in ("productGroupID", "@id", "name") if (text := _text(group.get(name), index))),
            "",
        )
        draft.set("group_id", owner)
    else:
        draft.set(
            "group_id", _text(merged.get("inProductGroupWithID") or merged.get("productGroupID"), index)
        )
    offers = [
        offer for value in _listed(merged.get("offers")) if (offer := _resolve(value, index)) is not None
    ]
    offer = offers[0] if offers else {}

    def get(name: str) -> str:
        return _text(merged.get(name), index)

    names = ("sku", "productID", "productGroupID", "@id", *_GTINS, "mpn", "url")
    draft.set(
        "id", next((text for name in names if (text := get(name))), "") or _text(offer.get("sku"), index)
    )
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
    _price(draft, offer, index)
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


def _price(draft: Draft, offer: Node, index: dict[str, Node]) -> None:
    specification = next(iter(_listed(offer.get("priceSpecification"))), None)
    inner = _resolve(specification, index) or {}
    for place in (offer, inner):
        amount = next(
            (text for key in ("price", "lowPrice", "minPrice") if (text := _text(place.get(key), index))), ""
        )
        if amount:
            draft.set("currency", _text(place.get("priceCurrency") or offer.get("priceCurrency"), index))
            draft.price(amount)
            break
    draft.set("availability", _text(offer.get("availability"), index))


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

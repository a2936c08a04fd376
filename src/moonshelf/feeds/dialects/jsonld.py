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
from typing import Any

from moonshelf.errors import UserError
from moonshelf.feeds import values
from moonshelf.feeds.base import FeedBroken, Row, Source, rejected
from moonshelf.feeds.build import Draft
from moonshelf.feeds.dialects.offers import Graph, Node, Price, choose, kinds, listed
from moonshelf.feeds.encodings import encoding_of
from moonshelf.feeds.vocabulary import WORDS

_SAID = WORDS["schema_org"]
_PRODUCTS, _NOT_OURS = frozenset(_SAID["products"]), frozenset(_SAID["not_ours"])
_GTINS, _ATTRIBUTES = _SAID["gtins"], _SAID["attributes"]
_NAMED = ("sku", "productID", "productGroupID", "@id", *_GTINS, "mpn", "url")  # what may serve as an id
_KNOWN = _NOT_OURS.union(_SAID["known"], _GTINS, _ATTRIBUTES)
_OWN = frozenset((*_SAID["own"], *_GTINS))  # of a group: not passed on to its variants
_SCRIPT = re.compile(
    r"<!--.*?(?:-->|\Z)|<script\b([^<>]*)>(.*?)(?:</script\s*>|\Z)", re.DOTALL | re.IGNORECASE
)
_LINKED = re.compile(r"type\s*=\s*[\"']?\s*application/ld\+json", re.IGNORECASE)
_WRAPS = re.compile(r"^\s*(<!--|//<!\[CDATA\[)|(-->|//\]\]>)\s*$")
_VOCABULARY = re.compile(r"^(https?://(www\.)?schema\.org/|schema:)")


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
        scripts = (found[2] for found in _SCRIPT.finditer(text) if found[1] and _LINKED.search(found[1]))
        blocks = (block for script in scripts if (block := _WRAPS.sub("", script)).strip())
        for position, block in enumerate(blocks, 1):
            try:
                documents.append(_parsed(block))
            except (ValueError, RecursionError):
                number += 1
                yield rejected(number, "row", f"JSON-LD block {position} of the page is not valid JSON")
    else:
        try:
            documents.append(_parsed(text))
        except (ValueError, RecursionError) as error:
            where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise UserError(f"{source.name} is not valid JSON{where}.") from None
    graph = Graph()
    for found in _products(documents, graph):
        number += 1
        yield _row(source, number, found, graph)
    if number == 0:
        raise UserError(f"{source.name} holds no schema.org Product.")


def _parsed(text: str) -> Any:
    """JSON whose names are without the vocabulary's prefix. Raises ValueError, RecursionError."""

    def plain(pairs: list[tuple[str, Any]]) -> Node:
        return {_VOCABULARY.sub("", name): value for name, value in pairs}

    return json.loads(text, strict=False, object_pairs_hook=plain)


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


def _products(documents: list[Any], graph: Graph) -> list[_Found]:
    """Product nodes in document order. The graph takes all nodes by their `@id`."""
    nodes: list[Node] = []
    offering: list[Node] = []
    for node, variant in _walk(documents):
        if len(node) == 1 and "@id" in node:
            continue  # a reference
        if isinstance(name := node.get("@id"), str):
            graph.nodes.setdefault(name, node)
        if "itemOffered" in node:
            offering.append(node)
        types = kinds(node)
        if types & _PRODUCTS or "productgroup" in types or (variant and not types):
            nodes.append(node)
    found = {id(node): _Found(node) for node in nodes}  # by identity: nodes need not have an @id
    expanded: set[int] = set()  # groups that are given as their variants

    def known(value: Any) -> list[Node]:
        """The products that a value names."""
        items = map(graph.resolve, listed(value))
        return [item for item in items if item is not None and id(item) in found]

    def join(variant: Node, group: Node) -> None:
        one = found[id(variant)]
        if one.group is None and variant is not group:
            one.group = group
            if "productgroup" in kinds(group):
                expanded.add(id(group))

    for offer in offering:
        for item in known(offer["itemOffered"]):
            found[id(item)].offers.append(offer)
    for node in nodes:
        if id(node) not in found:
            continue
        for item in known(node.get("hasVariant")):
            if "productgroup" not in kinds(item):
                join(item, node)
        group = graph.resolve(node.get("isVariantOf"))
        if group is not None and "productgroup" not in kinds(node):
            join(node, group)
        for offered in graph.offers(listed(node.get("offers"))):
            for item in known(offered.get("itemOffered")):
                if item is node:
                    continue
                if _is_same(item, node):
                    del found[id(item)]  # the product once more
                else:
                    join(item, node)
                    expanded.add(id(node))
    groups = {id(one.group) for one in found.values()}
    return [one for key, one in found.items() if not (key in expanded and (one.group or key in groups))]


def _is_same(item: Node, node: Node) -> bool:
    """Whether an offer names the product that it belongs to once more."""
    own, known = (
        {
            text
            for name in ("@id", "sku", "productID", "mpn", *_GTINS)
            if (text := Graph().text(one.get(name)))
        }
        for one in (item, node)
    )
    return bool(own & known) or (not own and item.get("name") in (None, node.get("name")))


def _row(source: Source, number: int, found: _Found, graph: Graph) -> Row:
    draft = Draft(source, number)
    node, group = found.node, found.group
    merged = dict(node)
    if group is not None:
        merged = {name: value for name, value in group.items() if name not in _OWN} | merged
        draft.set("group_id", graph.first(group, "productGroupID", "sku", "@id", "name"))
    else:
        draft.set("group_id", graph.first(merged, "inProductGroupWithID", "productGroupID"))
    given = listed(node.get("offers")) or found.offers or listed(merged.get("offers"))
    offer, price, others = choose(given, graph, source.currency)
    candidates = [graph.text(one.get(name)) for one in (merged, offer) for name in _NAMED]
    for text in (*candidates, graph.text(merged.get("identifier"))):
        if "id" not in draft.values:
            draft.set("id", text)
    for name in ("description", "mpn"):
        draft.set(name, graph.text(merged.get(name)))
    draft.set("title", graph.text(merged.get("name")))
    draft.set("brand", graph.first(merged, "brand", "manufacturer"))
    draft.set("link", graph.text(merged.get("url")) or graph.text(offer.get("url")))
    title = next(iter(listed(merged.get("name"))), None)
    tagged = values.as_text(title.get("@language")) if isinstance(title, dict) else ""
    draft.set("language", graph.text(merged.get("inLanguage")) or tagged)
    gtins = (graph.text(merged.get(name)) or graph.text(offer.get(name)) for name in _GTINS)
    draft.set("gtin", next(filter(None, gtins), ""))
    category = [graph.text(part) for part in listed(merged.get("category"))]
    draft.set("category", category if len(category) > 1 else "".join(category))
    if price is not None:
        _price(draft, price, others)
        highest = graph.text(offer.get("highPrice"))
        draft.put("highest_price", highest if highest != price.amount else "")
    draft.set("availability", graph.text(offer.get("availability")))
    for value in listed(merged.get("image")):
        image = graph.resolve(value)
        address = value if image is None else image.get("contentUrl") or image.get("url") or image.get("@id")
        for part in listed(address):
            if isinstance(part, str):
                draft.image_text(part, "alternate" if draft.images else "main")
    _describe(draft, merged, graph)
    return draft.finish()


def _price(draft: Draft, price: Price, others: list[str]) -> None:
    if price.penalty == 4:
        draft.warn("price", "only a list price is given, which may not be what a shopper pays")
    elif price.penalty > 1:
        draft.warn("price", "the price is not one that everybody pays today, but there is no other")
    if others:
        draft.say("price", f"there are offers in {', '.join(others)} too: {price.currency} is taken")
    draft.set("currency", price.currency)
    draft.price(price.amount)
    draft.put("list_price", price.list_price)


def _describe(draft: Draft, merged: Node, graph: Graph) -> None:
    """Attributes from the properties that schema.org names and `additionalProperty`; the rest is extra."""

    def quantity(value: Any, content: Any) -> str:
        """A value with its unit: `{"value": 3, "unitText": "kg"}` is "3 kg"."""
        text = ", ".join(text for item in content if (text := graph.text(item)))
        unit = graph.text(value.get("unitText") or value.get("unitCode")) if isinstance(value, dict) else ""
        return f"{text} {unit}" if text and unit else text

    for name in _ATTRIBUTES:
        found = [quantity(value, [value]) for value in listed(merged.get(name))]
        draft.attribute(name, ", ".join(text for text in found if text))
    audience = graph.resolve(merged.get("audience")) or {}
    draft.attribute("gender", graph.text(audience.get("suggestedGender")))
    for value in listed(merged.get("additionalProperty")):
        if (item := graph.resolve(value)) is not None:
            named = graph.text(item.get("name") or item.get("propertyID"))
            draft.attribute(named, quantity(item, listed(item.get("value"))))
    for name, value in merged.items():
        if name not in _KNOWN:
            draft.put(name, value)

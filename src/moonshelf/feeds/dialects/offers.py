"""Which of the offers of a schema.org product is shown: the cheapest that is in stock.

An offer counts with what a shopper pays now: its own price, or a sale price where one is valid today, never
a list or struck-through price, a member's or a bulk price, or a price for a unit of measure, unless there is
no other. Offers inside an `AggregateOffer` count like others; its `lowPrice` only where they name none. Of
offers alike in stock, those that are valid today, that sell and that are new come first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from moonshelf.feeds import values
from moonshelf.feeds.vocabulary import WORDS, by_word

Node = dict[str, Any]
_SAID = WORDS["schema_org"]
_STOCK = {word: int(rank) for word, rank in by_word(_SAID["stock"]).items()}
_UNSAID = 1


class Graph:
    """Nodes by their `@id`, and what values mean among them."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def resolve(self, value: Any) -> Node | None:
        """The node that a value is or refers to."""
        if isinstance(value, str):
            return self.nodes.get(value)
        if not isinstance(value, dict):
            return None
        name = value.get("@id")
        return self.nodes.get(name, value) if isinstance(name, str) and len(value) <= 2 else value

    def text(self, value: Any) -> str:
        """Text of a literal, a language-tagged literal, or a thing with a name; of several the first."""
        for item in listed(value):
            if isinstance(item, dict):
                item = self.resolve(item) or item
                item = next((item[key] for key in ("@value", "name", "value", "url") if item.get(key)), None)
            if not isinstance(item, (dict, list)) and (text := values.as_text(item).strip()):
                return text
        return ""

    def first(self, node: Node, *names: str) -> str:
        """The first text of a node under these names."""
        return next((text for name in names if (text := self.text(node.get(name)))), "")

    def offers(self, given: list[Any]) -> Iterator[Node]:
        """Offers, also those inside an AggregateOffer, which lends them what they leave out."""
        for value in given:
            node = self.resolve(value)
            if node is None:
                continue
            inner = [one for one in map(self.resolve, listed(node.get("offers"))) if one is not None]
            shared = {name: node[name] for name in _SAID["shared"] if name in node}
            for offer in inner:
                yield {**shared, **offer}
            if not any("price" in offer or "priceSpecification" in offer for offer in inner):
                yield node


@dataclass(slots=True)
class Price:
    """What an offer costs: the amount as it was written, and how far it is from what everybody pays today."""

    amount: str
    currency: str
    penalty: int = 0
    list_price: str = ""

    @property
    def number(self) -> float:
        try:
            return values.price(f"{self.amount} {self.currency}".strip())[0]
        except ValueError:
            return float("inf")


def choose(
    given: list[Any], graph: Graph, currency: str | None = None
) -> tuple[Node, Price | None, list[str]]:
    """The best of the offers, in `currency` where one is in it, else in that of the best; its price, and the
    currencies that were not taken."""
    today = datetime.now(UTC).date()
    ranked = []
    for offer in graph.offers(given):
        price = _price(offer, graph, today)
        stock, *rest = _standing(offer, graph, today)
        ranked.append(((price is None, stock, price.penalty if price else 9, *rest), offer, price))
    if not ranked:
        return {}, None, []
    best = min(rank for rank, _, _ in ranked)
    alike = [(offer, price) for rank, offer, price in ranked if rank == best]
    codes = [price.currency for _, price in alike if price]
    wanted = currency if currency in codes else next(iter(codes), "")
    offer, price = min(
        (one for one in alike if one[1] is None or one[1].currency == wanted),
        key=lambda one: one[1].number if one[1] else 0,
    )
    others = {other.currency for _, _, other in ranked if other} - {"", wanted}
    return offer, price, sorted(others)


def _price(offer: Node, graph: Graph, today: date) -> Price | None:
    code = graph.text(offer.get("priceCurrency")).upper()
    amount = graph.first(offer, "price", "lowPrice", "minPrice")
    own, reference = bool(amount), ""
    found = [Price(amount, code)] if own else []
    for item in listed(offer.get("priceSpecification")):
        spec = graph.resolve(item)
        if spec is None or kinds(spec).intersection(_SAID["charges"]):
            continue
        if not (amount := graph.first(spec, "price", "minPrice")):
            continue
        kind = _name(graph.text(spec.get("priceType")))
        price = Price(amount, graph.text(spec.get("priceCurrency")).upper() or code)
        untaxed = graph.text(spec.get("valueAddedTaxIncluded")).lower() in ("no", "false")
        if kind in _SAID["reference_prices"]:
            reference = reference or amount
            price.penalty = 4
        elif _conditional(spec, graph, own):
            price.penalty = 3
        elif not _valid(spec, graph, today):
            price.penalty = 2
        elif (own and kind != "saleprice") or untaxed:
            price.penalty = 1
        found.append(price)
    if not found:
        return None
    best = min(found, key=lambda one: (one.penalty, one.number))
    best.list_price = reference if reference != best.amount else ""
    return best


def _standing(offer: Node, graph: Graph, today: date) -> tuple[int, bool, bool, bool]:
    """How far an offer is from a new thing that is in stock and sold today; 0 and False are best."""
    stock, business, condition = (
        _name(graph.text(offer.get(name))) for name in ("availability", "businessFunction", "itemCondition")
    )
    return (
        _STOCK.get(stock, _UNSAID),
        not _valid(offer, graph, today),
        bool(business) and "sell" not in business,
        bool(condition) and "new" not in condition,
    )


def _valid(node: Node, graph: Graph, today: date) -> bool:
    def days(*names: str) -> Iterator[date]:
        for name in names:
            try:
                yield date.fromisoformat(graph.text(node.get(name))[:10])
            except ValueError:
                continue

    return all(day <= today for day in days("validFrom", "availabilityStarts")) and all(
        day >= today for day in days("validThrough", "priceValidUntil", "availabilityEnds")
    )


def _conditional(spec: Node, graph: Graph, own: bool) -> bool:
    """Whether a price is a member's, for several pieces, or for a unit of measure or time beside the offer's
    own price."""
    quantity = graph.resolve(spec.get("eligibleQuantity")) or {}
    try:
        bulk = float(graph.first(quantity, "minValue", "value") or 1) > 1
    except ValueError:
        bulk = False
    by_unit = own and any(spec.get(name) for name in _SAID["conditional"])
    return bulk or by_unit or bool(spec.get("validForMemberTier"))


def kinds(node: Node) -> set[str]:
    """Types of a node, without the vocabulary's prefix, in small letters."""
    return {_name(kind) for kind in listed(node.get("@type")) if isinstance(kind, str)}


def _name(text: str) -> str:
    """`https://schema.org/InStock` and `schema:InStock` are `instock`; so is `In stock`."""
    last = text.rsplit("/", 1)[-1].rsplit("#", 1)[-1].rsplit(":", 1)[-1]
    return "".join(c for c in last if c.isalnum()).lower()


def listed(value: Any) -> list[Any]:
    """A list of what may be one value, several or none."""
    return value if isinstance(value, list) else [] if value is None else [value]

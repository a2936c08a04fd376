"""Which of the offers of a schema.org product is shown: the cheapest that is in stock.

An offer counts with what a shopper pays now: its own price, or a sale price where one is valid today, never
a list or struck-through price, a member's or a bulk price, or a price for a unit of measure, unless there is
no other. Offers inside an `AggregateOffer` count like others; its `lowPrice` only where they name none. Of
offers alike in stock, those that are valid today, that sell and that are new come first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from moonshelf.feeds import values
from moonshelf.feeds.vocabulary import WORDS, by_word

Node = Mapping[str, Any]
Resolve = Callable[[Any], Node | None]
Text = Callable[[Any], str]

_SAID = WORDS["schema_org"]
_STOCK = {word: int(rank) for word, rank in by_word(_SAID["stock"]).items()}
_UNSAID = 1
_REFERENCE, _CHARGES = frozenset(_SAID["reference_prices"]), frozenset(_SAID["charges"])


@dataclass(slots=True)
class Price:
    """What an offer costs: the amount as it was written, and how far it is from what everybody pays today."""

    amount: str
    currency: str
    penalty: int
    list_price: str = ""

    @property
    def number(self) -> float:
        try:
            return values.price(f"{self.amount} {self.currency}".strip())[0]
        except ValueError:
            return float("inf")


@dataclass(slots=True)
class Choice:
    """The offer that is shown, its price, and remarks."""

    offer: Node
    price: Price | None = None
    others: list[str] = field(default_factory=list)  # currencies that were not taken
    highest: str = ""


def choose(given: list[Any], resolve: Resolve, text: Text, currency: str | None = None) -> Choice:
    """The best of the offers, in `currency` where one is in it, else in that of the best."""
    today = datetime.now(UTC).date()
    priced = [(offer, _price(offer, resolve, text, today)) for offer in flat(given, resolve)]
    if not priced:
        return Choice({})
    standing = {id(offer): _standing(offer, text, today) for offer, _ in priced}

    def rank(one: tuple[Node, Price | None]) -> tuple[Any, ...]:
        offer, price = one
        penalty = price.penalty if price else 9
        stock, *rest = standing[id(offer)]
        return (price is None, stock, penalty, *rest)

    best = min(rank(one) for one in priced)
    alike = [one for one in priced if rank(one) == best]
    codes = [price.currency for _, price in alike if price]
    wanted = currency if currency in codes else next(iter(codes), "")
    offer, price = min(
        (one for one in alike if one[1] is None or one[1].currency == wanted),
        key=lambda one: one[1].number if one[1] else 0,
    )
    others = sorted({other.currency for _, other in priced if other and other.currency not in ("", wanted)})
    return Choice(offer, price, others, text(offer.get("highPrice")))


def flat(given: list[Any], resolve: Resolve) -> Iterator[Node]:
    """Offers, also those inside an AggregateOffer, which lends them what they leave out."""
    for value in given:
        node = resolve(value)
        if node is None:
            continue
        inner = [offer for item in _listed(node.get("offers")) if (offer := resolve(item)) is not None]
        shared = {name: node[name] for name in _SAID["shared"] if name in node}
        for offer in inner:
            yield {**shared, **offer}
        if not any("price" in offer or "priceSpecification" in offer for offer in inner):
            yield node


def _price(offer: Node, resolve: Resolve, text: Text, today: date) -> Price | None:
    code = text(offer.get("priceCurrency")).upper()
    found = [
        Price(amount, code, 0)
        for name in ("price", "lowPrice", "minPrice")
        if (amount := text(offer.get(name)))
    ][:1]
    own = bool(found)
    reference = ""
    for item in _listed(offer.get("priceSpecification")):
        spec = resolve(item)
        if spec is None or _kinds(spec) & _CHARGES:
            continue
        amount = next((t for name in ("price", "minPrice") if (t := text(spec.get(name)))), "")
        if not amount:
            continue
        kind = _name(text(spec.get("priceType")))
        price = Price(amount, text(spec.get("priceCurrency")).upper() or code, 0)
        if kind in _REFERENCE:
            reference = reference or amount
            price.penalty = 4
        elif _bulk(spec, resolve, text) or _conditional(spec, own):
            price.penalty = 3
        elif not _valid(spec, text, today):
            price.penalty = 2
        elif (own and kind != "saleprice") or text(spec.get("valueAddedTaxIncluded")).lower() in (
            "no",
            "false",
        ):
            price.penalty = 1
        found.append(price)
    if not found:
        return None
    best = min(found, key=lambda one: (one.penalty, one.number))
    if reference and reference != best.amount:
        best.list_price = reference
    return best


def _standing(offer: Node, text: Text, today: date) -> tuple[int, bool, bool, bool]:
    """How far an offer is from a new thing that is in stock and sold today; 0 and False are best."""
    business = _name(text(offer.get("businessFunction")))
    condition = _name(text(offer.get("itemCondition")))
    return (
        _STOCK.get(_name(text(offer.get("availability"))), _UNSAID),
        not _valid(offer, text, today),
        bool(business) and "sell" not in business,
        bool(condition) and "new" not in condition,
    )


def _valid(node: Node, text: Text, today: date) -> bool:
    begins = [_day(text(node.get(name))) for name in ("validFrom", "availabilityStarts")]
    ends = [_day(text(node.get(name))) for name in ("validThrough", "priceValidUntil", "availabilityEnds")]
    return all(day is None or day <= today for day in begins) and all(
        day is None or day >= today for day in ends
    )


def _day(written: str) -> date | None:
    try:
        return date.fromisoformat(written[:10])
    except ValueError:
        return None


def _bulk(spec: Node, resolve: Resolve, text: Text) -> bool:
    """Whether a price is for several pieces only."""
    quantity = resolve(spec.get("eligibleQuantity")) or {}
    try:
        return float(text(quantity.get("minValue")) or text(quantity.get("value")) or 1) > 1
    except ValueError:
        return False


def _conditional(spec: Node, own: bool) -> bool:
    """Whether a price is a member's, or for a unit of measure or time beside the offer's own price."""
    return bool(spec.get("validForMemberTier")) or (
        own and any(spec.get(name) for name in _SAID["conditional"])
    )


def _kinds(node: Node) -> set[str]:
    return {_name(kind) for kind in _listed(node.get("@type")) if isinstance(kind, str)}


def _name(text: str) -> str:
    """`https://schema.org/InStock` and `schema:InStock` are `instock`; so is `In stock`."""
    last = text.rsplit("/", 1)[-1].rsplit("#", 1)[-1].rsplit(":", 1)[-1]
    return "".join(c for c in last if c.isalnum()).lower()


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]

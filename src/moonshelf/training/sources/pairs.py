"""From catalogue records to training items: pictures, text, the facts a rationale states, and groups.

A rationale states what a picture or title can show (category path, then visible attributes in a fixed
order); season, size, weight, model numbers and the like are left out, because a model taught to write what
it cannot see learns to guess. One item is one colour variant of a product where the feed tells variants
apart. Items of one group are never negatives of each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from moonshelf.attributes import canonical
from moonshelf.product import ImageRef, Product
from moonshelf.prompts import clean_text, write_rationale

# Order in which a rationale states attributes; other visible ones follow in the feed's order.
ORDER = ("name", "colour", "pattern", "material", "shape", "gender", "use", "style")
HIDDEN = frozenset(
    (
        "category", "season", "year", "size", "brand", "age group", "climate", "eco collection", "series",
        "sku", "performance fabric", "available colours", "price", "weight", "width", "height", "depth",
        "model name", "model id", "model number", "style code", "sales package", "in the box", "gsm",
        "number of contents in sales package", "coarse class", "pack of", "other features", "video",
    )
)  # fmt: skip
_HIDDEN_WORDS = ("warranty", "battery", "certification", "service")
MAX_FACTS = 8
MAX_VALUE = 28  # characters: longer values are descriptions, not attributes
_NUMBERS = re.compile(r"\d")


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to learn from: pictures of one look, its title, and the facts about it."""

    id: str
    group: str
    title: str
    images: tuple[ImageRef, ...]
    category: tuple[str, ...]
    facts: dict[str, str]  # canonical keys, in the order in which a rationale states them
    source: str = ""
    product: str = ""  # id of the catalogue record: what click logs and mined negatives name; default: `id`
    stated: frozenset[tuple[str, str]] = field(init=False, repr=False, compare=False)
    words: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        levels = {("category", leaf(self.category[:end])) for end in range(1, len(self.category) + 1)}
        object.__setattr__(self, "product", self.product or self.id)
        object.__setattr__(self, "stated", frozenset(self.facts.items()) | levels)
        object.__setattr__(self, "words", frozenset(self.title.lower().split()))

    @property
    def rationale(self) -> str:
        """Body of the rationale; empty if the record says nothing about the product."""
        return write_rationale(self.category, self.facts)

    def same(self, other: Item) -> bool:
        """Whether the two must not be negatives of each other: one group, or equal titles."""
        return self.group == other.group or bool(self.title and self.title == other.title)


@dataclass(frozen=True, slots=True)
class Query:
    """What a shopper asks for: words, a picture of their own, or both; and of which items it is true.

    Words are a phrase that states `facts`, or some `words` of a title. With a picture only the item itself
    answers. A query of a log has the groups of all products that were chosen for it as `answers`, and its
    picture, if it has one, in `image`.
    """

    text: str = ""
    facts: frozenset[tuple[str, str]] = frozenset()
    words: frozenset[str] = frozenset()
    picture: bool = False
    image: ImageRef | None = None
    answers: frozenset[str] = frozenset()

    def holds(self, item: Item) -> bool:
        """Whether an item answers the query as well as the one that it was made from."""
        if item.group in self.answers:
            return True
        if self.picture or not (self.facts or self.words):
            return False
        return self.facts <= item.stated and self.words <= item.words


def leaf(category: tuple[str, ...]) -> str:
    """Last step of a category path, cleaned and folded; empty for an empty path."""
    return clean_text(category[-1]).lower() if category else ""


def facts_of(product: Product) -> dict[str, str]:
    """Visible attributes in the order of the rationale."""
    found = canonical(product.attributes)
    kept = {key: value for key, value in found.items() if _visible(key, value)}
    first = {key: kept[key] for key in ORDER if key in kept}
    return dict(list({**first, **kept}.items())[:MAX_FACTS])


def _visible(key: str, value: str) -> bool:
    if key in HIDDEN or any(word in key for word in _HIDDEN_WORDS):
        return False
    flag = value in ("yes", "no") and key != "packaged"  # `altimeter: no` is a data sheet, not a look
    return not flag and 0 < len(value) <= MAX_VALUE and not _NUMBERS.search(value)


def items_of(product: Product, source: str = "") -> Iterator[Item]:
    """One item a product, or one a colour variant where `extra["variants"]` lists their pictures."""
    facts = facts_of(product)
    group = product.group_id or product.id
    variants = json.loads(product.extra.get("variants", "null") or "null")
    names = json.loads(product.extra.get("image_names", "[]"))
    if isinstance(variants, list) and len(names) == len(product.images):
        places = {name.rsplit("/", 1)[-1]: ref for name, ref in zip(names, product.images, strict=True)}
        for variant in variants:
            colour = str(variant.get("colour", "")).lower()
            pictures = tuple(
                places[name]
                for path in variant.get("image_paths", ())
                if (name := str(path).rsplit("/", 1)[-1]) in places
            )
            if pictures:
                own = canonical({"colour": colour}) | {k: v for k, v in facts.items() if k != "colour"}
                yield Item(
                    f"{product.id}#{colour}", group, product.title, pictures, product.category, own, source,
                    product.id,
                )  # fmt: skip
        return
    yield Item(product.id, group, product.title, product.images, product.category, facts, source)


def named(item: Item) -> Item:
    """The item with its title as the fact `name`: for things that have one name, such as fruit."""
    return replace(item, facts={"name": clean_text(item.title).lower(), **item.facts})


def join_photos(catalogue: Iterable[Item], photos: Iterable[Product]) -> Iterator[Item]:
    """Each catalogue item with every extra photo of its group: the photo first, then its own pictures."""
    by_group = {item.group: item for item in catalogue}
    for photo in photos:
        item = by_group.get(photo.group_id or "")
        if item is not None and photo.images:
            yield Item(
                photo.id, item.group, item.title, (*photo.images, *item.images), item.category, item.facts,
                item.source, item.product,
            )  # fmt: skip


def synthetic_query(item: Item, keys: Iterable[str], level: int | None = None) -> Query:
    """A shopper's short query for an item from some of its facts: adjectives first, `red cotton t-shirts`.

    `keys` may hold `category`, named by its leaf or by the step `level` of its path (0 is the root).
    """
    stated = {key: item.facts[key] for key in keys if key in item.facts}
    words = list(stated.values())
    if "category" in set(keys) and item.category:
        stated["category"] = leaf(item.category if level is None else item.category[: level + 1])
        words.append(stated["category"])
    return Query(text=clean_text(" ".join(words)), facts=frozenset(stated.items()))

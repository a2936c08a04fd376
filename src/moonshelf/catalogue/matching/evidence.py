"""What speaks for and against two records being one article: the one place where records are compared.

`duplicates` decides by rules over `compare`'s verdicts; `match` weighs `features`, the same verdicts and the
words of the titles as numbers, by a fitted model. Identifiers count only where they are some: no
placeholders, right check digits. Values are compared as values (`values`), colours and materials by families.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from moonshelf.attributes import canonical
from moonshelf.catalogue.matching import families, values
from moonshelf.catalogue.matching.values import Amounts
from moonshelf.identifiers import gtin14, is_makerless, is_placeholder
from moonshelf.prompts import clean_text

COLUMNS = ("id", "title", "brand", "gtin", "mpn", "group_id", "attributes", "picture_hash")
MORE = ("description", "price", "currency")  # columns that `features` reads too
VARIANT_KEYS = ("colour", "size", "material", "pattern", "style", "gender", "age group", "capacity", "length")
_CODE = 5  # characters from which a model number is looked for within other letters
_BACKGROUND = 1_000  # records
_DESCRIPTION = 400  # characters of it that are compared

# Name -> what more of it does to the score: 1 raises, -1 lowers, 0 either. Held when the model is fitted.
FEATURES = {
    "cosine": 1, "contained": 1, "jaccard": 1, "rare_unshared": -1, "rarest_unshared": -1, "rare_shared": 1,
    "letters": 1, "letters_contained": 1, "code_shared": 1, "code_rarity": 1, "codes_differ": -1,
    "no_code_shared": -1, "code_prefix": 0, "code_on_one_side": 0, "amounts_agree": 1, "amounts_differ": -1,
    "amounts_on_one_side": 0, "numbers_agree": 1, "numbers_differ": -1, "numbers_on_one_side": 0,
    "brand_same": 1, "brand_differs": -1, "mpn_same": 1, "mpn_differs": -1, "price_ratio": -1,
    "price_known": 0, "description": 1, "size_same": 1, "size_differs": -1, "colour_differs": -1,
    "length_ratio": 0, "short": 0, "first_word": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """What a comparison needs of one record."""

    id: str
    title: str
    read: values.Values  # of the title
    words: frozenset[str]
    codes: frozenset[str]  # of the title, and the part number
    amounts: Amounts  # of the title and the attributes
    sizes: frozenset[str]
    colour: str
    gtin: str | None  # 14 digits
    brand: str | None
    mpn: str | None
    group: str | None
    attributes: dict[str, str]
    description: frozenset[str]
    price: float | None
    currency: str | None
    picture: int | None  # perceptual hash

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Item:
        """From a row with COLUMNS, maybe MORE: of the store, or `rows.metadata_of(product)` and its id."""
        attributes = canonical(json.loads(row["attributes"] or "{}"))
        named, title = attributes.pop("brand", ""), row["title"] or ""
        brand, read = row["brand"] or named, values.read(title)
        mpn = None if is_placeholder(row["mpn"] or "") else folded(row["mpn"])
        size = folded(values.letter_size(attributes.get("size", "")))
        return cls(
            id=row["id"], title=title, read=read, words=frozenset(read.words),
            codes=read.codes | ({mpn} if mpn else set()),
            amounts=_joined(values.read(text).amounts for text in (title, *attributes.values())),
            sizes=frozenset({size}) if size else read.sizes,
            colour=attributes.get("colour") or ", ".join(_COLOURS.findall(" ".join(read.words))),
            gtin=gtin14(row["gtin"]), brand=None if is_makerless(brand) else folded(brand), mpn=mpn,
            group=None if is_placeholder(row["group_id"] or "") else row["group_id"],
            attributes=attributes,
            description=frozenset(values.read((row.get("description") or "")[:_DESCRIPTION]).words),
            price=row.get("price") or None, currency=row.get("currency"), picture=row.get("picture_hash"),
        )  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """Verdicts on a pair; `identifiers` has "same" or "different" for what both sides have."""

    identifiers: dict[str, str]
    agree: list[str]  # attributes
    differ: dict[str, list[str]]  # attribute -> the two values
    title_overlap: float  # Jaccard of words
    picture_bits: int | None  # of 63 that differ
    conflicts: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "identifiers": self.identifiers, "attributes_agree": self.agree, "attributes_differ": self.differ,
            "title_overlap": round(self.title_overlap, 3), "picture_bits": self.picture_bits,
            "conflicts": list(self.conflicts),
        }  # fmt: skip

    @property
    def variant(self) -> dict[str, list[str]]:
        """The attributes that differ and make a variant."""
        return {key: both for key, both in self.differ.items() if key in VARIANT_KEYS}


def compare(a: Item, b: Item) -> Evidence:
    """What two records have in common, and what not."""
    brand = agree(a.brand, b.brand)
    verdicts = {
        "gtin": agree(a.gtin, b.gtin),
        "brand": brand,
        "mpn": agree(a.mpn, b.mpn) if brand == "same" else None,  # a part number without its maker is nothing
        "group_id": agree(a.group, b.group),
        "numbers in title": _numbers(a, b),
    }
    shared = a.attributes.keys() & b.attributes.keys()
    same = sorted(key for key in shared if values.same(a.attributes[key], b.attributes[key]))
    differ = {k: [a.attributes[k], b.attributes[k]] for k in a.attributes if k in shared - {*same}}
    bits = (a.picture ^ b.picture).bit_count() if a.picture is not None and b.picture is not None else None
    return Evidence(
        {name: verdict for name, verdict in verdicts.items() if verdict}, same, differ,
        jaccard(a.words, b.words), bits, tuple(_conflicts(a, b)),
    )  # fmt: skip


def explain(evidence: Mapping[str, Any], codes: Iterable[str] = ()) -> str:
    """`Evidence.as_dict()` in one line, with model numbers that both sides name."""
    said = [f"{verdict} {name}" for name, verdict in evidence["identifiers"].items()]
    said += [f"both name {code}" for code in codes]
    said += evidence["conflicts"]  # early: a terminal cuts the line
    said += [f"{name} {x} / {y}" for name, (x, y) in evidence["attributes_differ"].items()]
    said.append(f"titles share {evidence['title_overlap']:.0%} of their words")
    if evidence["picture_bits"] is not None:
        said.append(f"pictures differ in {evidence['picture_bits']} of 63 bits")
    return "; ".join(said)


def features(a: Item, b: Item, rarity: Callable[[str], float]) -> list[float]:
    """FEATURES of a pair; `rarity` of a word is 0 (everywhere) to 1 (nowhere else), see `Rarity`."""
    both, left, right = a.words & b.words, _mass(a.words, rarity), _mass(b.words, rarity)
    shared = _mass(both, rarity)
    rest = [
        max((rarity(w) for w in one.words - both if len(w) < 3 or w not in other.read.squashed), default=0.0)
        for one, other in ((a, b), (b, a))
    ]
    pieces = _pieces(a.read.squashed), _pieces(b.read.squashed)
    common = len(pieces[0] & pieces[1])
    codes = shared_codes(a, b)
    own = a.codes - codes, b.codes - codes
    dimensions = a.amounts.keys() & b.amounts.keys()
    equal = sum(values.near(a.amounts[name], b.amounts[name]) for name in dimensions)
    numbers = a.read.numbers - b.read.numbers, b.read.numbers - a.read.numbers
    brands = agree(a.brand, b.brand)
    named = (a.brand or "") in b.read.squashed or (b.brand or "") in a.read.squashed
    parts, sizes = agree(a.mpn, b.mpn), bool(a.sizes and b.sizes)
    price = _price_ratio(a, b)
    masses, lengths = left and right, (len(a.words), len(b.words))
    return [
        shared / math.sqrt(left * right) if masses else 0.0, shared / min(left, right) if masses else 0.0,
        jaccard(a.words, b.words), min(rest), max(rest), max(map(rarity, both), default=0.0),
        2 * common / max(1, len(pieces[0]) + len(pieces[1])), common / max(1, min(map(len, pieces))),
        float(max(map(len, codes), default=0)), max(map(rarity, codes), default=0.0),
        float(bool(own[0] and own[1])), float(bool(own[0] and own[1] and not codes)),
        max((_prefix(x, y) for x in own[0] for y in own[1]), default=0.0),
        float(bool(own[0]) != bool(own[1])),
        float(equal), float(len(dimensions) - equal), float(len(a.amounts.keys() ^ b.amounts.keys())),
        float(len(a.read.numbers & b.read.numbers)), float(bool(numbers[0] and numbers[1])),
        float(bool(numbers[0]) != bool(numbers[1])),
        float(brands == "same"), float(brands == "different" and not named),
        float(parts == "same"), float(parts == "different"),
        price or 0.0, float(price is not None),
        len(a.description & b.description) / max(1, min(len(a.description), len(b.description))),
        float(sizes and bool(a.sizes & b.sizes)), float(sizes and not a.sizes & b.sizes),
        float(families.differ("colour", a.colour, b.colour)),
        min(lengths) / max(1, *lengths), float(min(*lengths, 12)),
        float(a.read.words[:1] == b.read.words[:1] != ()),
    ]  # fmt: skip


class Rarity:
    """How rare a word or code is, 0 to 1: ln(1 + n / (1 + records with it)) / ln(1 + n), where n counts the
    records and _BACKGROUND more that do not have it, so that it means the same in a list of ten."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.counts: Counter[str] = Counter()
        self._n = _BACKGROUND
        for self._n, item in enumerate(items, _BACKGROUND + 1):
            self.counts.update(item.words | item.codes)
        self._most = math.log1p(self._n)

    def __call__(self, word: str) -> float:
        return math.log1p(self._n / (1 + self.counts[word])) / self._most


def agree(a: object, b: object) -> str | None:
    return None if a is None or b is None else "same" if a == b else "different"


def folded(value: str) -> str | None:
    """Letters and digits of a brand or a part number."""
    return re.sub(r"[\W_]+", "", clean_text(value).casefold()) or None


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a or b else 0.0


def shared_codes(a: Item, b: Item) -> set[str]:
    """Model numbers of either side that the other has too, in its codes or anywhere within its title."""
    found = set(a.codes & b.codes)
    for one, other in ((a, b), (b, a)):
        found.update(code for code in one.codes - found if len(code) >= _CODE and code in other.read.squashed)
    return found


def _numbers(a: Item, b: Item) -> str | None:
    """Verdict on what titles name in figures: amounts of one dimension, model numbers, other numbers."""
    dimensions = a.read.amounts.keys() & b.read.amounts.keys()
    if any(not values.near(a.read.amounts[name], b.read.amounts[name]) for name in dimensions):
        return "different"
    ours, theirs = a.read.codes | a.read.numbers, b.read.codes | b.read.numbers
    return "different" if ours and theirs and not (ours & theirs or shared_codes(a, b)) else None


def _conflicts(a: Item, b: Item) -> Iterable[str]:
    """What keeps an article with one identifier from being sure, as sentences."""
    if a.gtin and b.gtin and a.gtin != b.gtin and a.gtin[1:13] == b.gtin[1:13]:
        yield "one article in another pack (the first digit of a GTIN-14)"
    for name in sorted(a.amounts.keys() & b.amounts.keys()):
        if not values.near(a.amounts[name], b.amounts[name]):
            first, second = (", ".join(f"{x:g}" for x in sorted(one.amounts[name])) for one in (a, b))
            yield f"{name} {first} and {second}"
    if a.sizes and b.sizes and not a.sizes & b.sizes:
        yield f"size {', '.join(sorted(a.sizes))} and {', '.join(sorted(b.sizes))}"


def _joined(found: Iterable[Amounts]) -> Amounts:
    joined: dict[str, frozenset[float]] = {}
    for amounts in found:
        for name, some in amounts.items():
            joined[name] = joined.get(name, frozenset()) | some
    return joined


def _mass(words: Iterable[str], rarity: Callable[[str], float]) -> float:
    return sum(rarity(word) ** 2 for word in words)


@lru_cache(maxsize=50_000)
def _pieces(squashed: str) -> frozenset[str]:
    """Runs of three letters: what a misspelling leaves."""
    return frozenset(squashed[i : i + 3] for i in range(len(squashed) - 2))


def _prefix(a: str, b: str) -> float:
    """Share of the longer code that both begin with: `dscw150r` and `dscw150b` are colours of one camera."""
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return n / max(len(a), len(b))


def _price_ratio(a: Item, b: Item) -> float | None:
    """|ln| of the prices' ratio, at most 3; None unless both are known and may be in one currency."""
    if not a.price or not b.price or (a.currency and b.currency and a.currency != b.currency):
        return None
    return min(3.0, abs(math.log(a.price / b.price)))


_COLOURS = re.compile(
    rf"\b(?:{'|'.join(sorted(families.IN_TITLES['colour'].split(', '), key=len, reverse=True))})\b"
)

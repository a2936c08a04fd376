"""Products that may be in a catalogue twice: pairs with evidence, groups, and never a merge.

Identifiers and variant attributes outrank looks, because a false duplicate costs a seller a listing:

1. one GTIN, or one brand and part number, makes a pair `duplicate` (a part number names a model, so
   variants that share it stay variants; a GTIN names one article, so a colour that differs is a conflict
   to be mended, and is shown; placeholders such as "N/A" are no identifiers);
2. two valid GTINs that differ are never a duplicate; neither are two rows of one group, or of one brand
   and nearly one title, whose colour, size or other variant attribute differs: `variant`;
3. looks alone make a pair `similar`, and need two witnesses: vectors near each other, and titles or
   pictures that agree (both, where brands or the numbers in the titles differ). A model's cosine by
   itself has no fixed meaning, and thresholds on it drift.

Groups are complete-link: every two members are such a pair themselves, so a chain A–B–C does not bridge A
and C. Pairs that fall between groups are listed as groups of two.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from moonshelf.attributes import canonical
from moonshelf.catalogue import vector_index
from moonshelf.catalogue.store import Store
from moonshelf.identifiers import is_makerless, is_placeholder, is_placeholder_gtin
from moonshelf.images import SAME_PICTURE
from moonshelf.prompts import clean_text

KINDS = ("duplicate", "variant", "similar")
VARIANT_KEYS = ("colour", "size", "material", "pattern", "style", "gender", "age group", "capacity", "length")
MIN_SCORE = 0.9  # cosine
NEIGHBOURS = 10
TITLE_OVERLAP, TITLE_SAME, TITLE_UNLIKE = 0.6, 0.8, 0.15  # Jaccard of words
_FEW = 3  # rows that share one article's identifier without a word
_LARGEST_BUCKET = 100  # rows sharing an identifier beyond which it is a mistake of the feed, not evidence
_COLUMNS = ("id", "title", "brand", "gtin", "mpn", "group_id", "attributes", "picture_hash")


@dataclass(frozen=True)
class Pair:
    """Two products, what they are to each other, and why. `score` is the cosine of their vectors."""

    a: str
    b: str
    kind: str
    score: float
    evidence: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {"a": self.a, "b": self.b, "kind": self.kind, "score": round(self.score, 4), **self.evidence}


@dataclass
class Group:
    """Products of which every two are a pair of `kind`."""

    kind: str
    ids: list[str]
    titles: list[str]
    pairs: list[Pair]

    @property
    def score(self) -> float:
        return min(pair.score for pair in self.pairs)

    def as_dict(self) -> dict[str, Any]:
        members = [{"id": id, "title": title} for id, title in zip(self.ids, self.titles, strict=True)]
        return {"members": members, "score": round(self.score, 4), "pairs": [p.as_dict() for p in self.pairs]}


@dataclass
class DuplicateReport:
    """Groups by kind, most certain first, and notes on identifiers that were not used."""

    groups: list[Group]
    notes: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[Group]:
        return [group for group in self.groups if group.kind == kind]

    def as_dict(self) -> dict[str, Any]:
        return {"notes": self.notes, **{kind: [g.as_dict() for g in self.of(kind)] for kind in KINDS}}


@dataclass(frozen=True)
class _Item:
    """What a comparison needs of one row."""

    id: str
    title: str
    words: frozenset[str]  # of the title
    codes: frozenset[str]  # those with a digit: model numbers, sizes, capacities
    gtin: str | None
    brand: str | None
    mpn: str | None
    group: str | None
    attributes: dict[str, str]
    picture: int | None  # perceptual hash


def find(store: Store, *, min_score: float = MIN_SCORE) -> DuplicateReport:
    """Compare rows that share an identifier, and each row with its nearest NEIGHBOURS.

    `min_score` is the cosine from which looks count as a witness.
    """
    keys, vectors = store.vectors()
    place = {int(key): i for i, key in enumerate(keys)}
    table = store.scan(["key", *_COLUMNS])
    items: list[_Item] = [None] * len(keys)  # type: ignore[list-item]
    rows = table.to_pylist()
    for row in rows:
        items[place[row["key"]]] = _item(row)
    candidates, notes = _shared_identifiers(items)
    notes = _placeholders(rows) + notes
    index = vector_index.load(store)[0] or vector_index.VectorIndex.of(keys, vectors)
    for start in range(0, len(keys), 1024):
        block = vectors[start : start + 1024]
        for i, near in enumerate(index.search(block, NEIGHBOURS + 1), start):
            for key, score in near:
                j = place.get(key, i)
                if j != i and score >= min_score:
                    candidates.add((min(i, j), max(i, j)))
    pairs = []
    for i, j in sorted(candidates):
        pair = compare(items[i], items[j], float(vectors[i] @ vectors[j]), min_score)
        if pair is not None:
            pairs.append(pair)
    titles = {item.id: item.title for item in items}
    groups = [group for kind in KINDS for group in complete_link(kind, pairs, titles)]
    return DuplicateReport(groups, notes)


def compare(a: _Item, b: _Item, score: float, min_score: float = MIN_SCORE) -> Pair | None:
    """What two products are to each other, or None where nothing says that they belong together."""
    if a.id > b.id:
        a, b = b, a
    gtin = _agree(a.gtin, b.gtin)
    brand = _agree(a.brand, b.brand)
    part = _agree(a.mpn, b.mpn) if brand == "same" else None
    group = _agree(a.group, b.group)
    same = {k: v for k, v in a.attributes.items() if b.attributes.get(k) == v}
    differ = {k: [v, b.attributes[k]] for k, v in a.attributes.items() if b.attributes.get(k, v) != v}
    variant = {k: v for k, v in differ.items() if k in VARIANT_KEYS}
    either = a.words | b.words
    overlap = len(a.words & b.words) / len(either) if either else 0.0
    bits = (a.picture ^ b.picture).bit_count() if a.picture is not None and b.picture is not None else None
    witnesses = (overlap >= TITLE_OVERLAP) + (bits is not None and bits <= SAME_PICTURE)
    codes = "different" if a.codes and b.codes and not a.codes & b.codes else None
    looks = score >= min_score and witnesses >= (2 if "different" in (brand, codes) else 1)
    one_title = looks and brand != "different" and overlap >= TITLE_SAME
    conflicts: list[str] = []

    if gtin == "same":
        kind = "duplicate"
        conflicts = [f"one GTIN, but {key} is {x} and {y}" for key, (x, y) in variant.items()]
    elif gtin == "different":
        related = group == "same" or part == "same" or (brand != "different" and overlap >= TITLE_OVERLAP)
        if not related or group == "different":
            return None
        kind = "variant"
    elif part == "same":
        kind = "variant" if variant else "duplicate"
    elif variant and (group == "same" or one_title):
        kind = "variant"
    elif looks:
        kind = "similar"
    else:
        return None
    identifiers = {"gtin": gtin, "brand": brand, "mpn": part, "group_id": group, "numbers in title": codes}
    evidence = {
        "identifiers": {name: verdict for name, verdict in identifiers.items() if verdict},
        "attributes_agree": sorted(same),
        "attributes_differ": differ,
        "title_overlap": round(overlap, 3),
        "picture_bits": bits,
        "conflicts": conflicts,
    }
    return Pair(a.id, b.id, kind, score, evidence)


def complete_link(kind: str, pairs: Iterable[Pair], titles: dict[str, str]) -> list[Group]:
    """Groups in which every two members are a pair of `kind`, grown from the strongest pair down."""
    edges = {frozenset((p.a, p.b)): p for p in pairs if p.kind == kind}
    members: dict[str, list[str]] = {}
    for pair in sorted(edges.values(), key=lambda p: (-_strength(p), p.a, p.b)):
        left, right = members.get(pair.a, [pair.a]), members.get(pair.b, [pair.b])
        if left is right or not all(frozenset((x, y)) in edges for x in left for y in right):
            continue
        joined = left + right
        members.update(dict.fromkeys(joined, joined))
    groups, inside = [], set()
    for joined in {id(m): m for m in members.values()}.values():
        ids = sorted(joined)
        within = [frozenset(two) for two in combinations(ids, 2)]
        inside.update(within)
        groups.append(Group(kind, ids, [titles[x] for x in ids], [edges[two] for two in within]))
    for two, pair in edges.items():
        if two not in inside:
            groups.append(Group(kind, [pair.a, pair.b], [titles[pair.a], titles[pair.b]], [pair]))
    return sorted(groups, key=lambda g: (-g.score, g.ids))


def _strength(pair: Pair) -> float:
    """Pairs with an agreeing identifier first, then by looks."""
    return pair.score + 2 * ("same" in (pair.evidence["identifiers"].get(x) for x in ("gtin", "mpn")))


def _shared_identifiers(items: list[_Item]) -> tuple[set[tuple[int, int]], list[str]]:
    """Pairs of positions that share a GTIN, a brand and part number, or a group.

    An identifier of very many rows, or one article's identifier on rows whose titles have nothing in common,
    is a mistake of the feed: it is erased from `items`.
    """
    buckets: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        if item.gtin:
            buckets["gtin", item.gtin].append(i)
        if item.brand and item.mpn:
            buckets["brand and mpn", item.brand, item.mpn].append(i)
        if item.group:
            buckets["group_id", item.group].append(i)
    candidates: set[tuple[int, int]] = set()
    notes = []
    for (name, *value), places in buckets.items():
        many = len(places) > _LARGEST_BUCKET
        unlike = name != "group_id" and len(places) > _FEW and not many and _unlike(items, places)
        shared = f"{len(places)} products share the {name} {' '.join(value)!r}"
        if many or unlike:
            erased: dict[str, Any] = {name.removeprefix("brand and ").removesuffix("_id"): None}
            for i in places:
                items[i] = replace(items[i], **erased)
            why = "too many to be evidence" if many else "their titles have nothing in common"
            notes.append(f"{shared}: {why}, so it was not used")
            continue
        if name != "group_id" and len(places) > _FEW:
            notes.append(f"{shared}: is it one article?")
        candidates.update(combinations(places, 2))
    return candidates, notes


def _unlike(items: list[_Item], places: list[int]) -> bool:
    """Whether titles of these rows share hardly a word, two by two."""
    words = [items[i].words for i in places if items[i].words]
    overlaps = [len(a & b) / len(a | b) for a, b in combinations(words, 2)]
    return bool(overlaps) and sum(overlaps) / len(overlaps) < TITLE_UNLIKE


def _placeholders(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Notes on values that several rows have where an identifier is missing."""
    columns = ("gtin", "mpn", "group_id")
    found = Counter(
        (name, row[name]) for row in rows for name in columns if row[name] and is_placeholder(row[name])
    )
    return [
        f"{count} products share the {name} {value!r}: it says that there is none, so it was not used"
        for (name, value), count in found.items()
        if count > 1
    ]


def _item(row: dict[str, Any]) -> _Item:
    attributes = canonical(json.loads(row["attributes"] or "{}"))
    words = frozenset(re.findall(r"\w+", clean_text(row["title"] or "").casefold()))
    brand = row["brand"] or attributes.get("brand") or ""
    return _Item(
        id=row["id"],
        title=row["title"] or "",
        words=words,
        codes=frozenset(word for word in words if any(c.isdigit() for c in word)),
        gtin=_gtin(row["gtin"]),
        brand=None if is_makerless(brand) else _folded(brand),
        mpn=None if is_placeholder(row["mpn"] or "") else _folded(row["mpn"]),
        group=None if is_placeholder(row["group_id"] or "") else row["group_id"],
        attributes={key: value for key, value in attributes.items() if key != "brand"},
        picture=row["picture_hash"],
    )


def _gtin(value: str | None) -> str | None:
    """GTIN with leading zeros filled to 14 digits, or None where it is absent or its check digit wrong: a
    wrong one is no evidence in either direction."""
    from stdnum import ean
    from stdnum.exceptions import ValidationError

    if not value:
        return None
    try:
        digits = ean.validate(value)
    except ValidationError:
        return None
    return None if is_placeholder_gtin(digits) else digits.zfill(14)


def _folded(value: str) -> str | None:
    return re.sub(r"[\W_]+", "", value.casefold()) or None


def _agree(a: str | None, b: str | None) -> str | None:
    return None if a is None or b is None else "same" if a == b else "different"

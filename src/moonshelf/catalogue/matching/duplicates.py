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

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from moonshelf.catalogue import vector_index
from moonshelf.catalogue.matching.blocking import by_identifiers, by_vectors, placeholders
from moonshelf.catalogue.matching.evidence import COLUMNS, Item, compare, explain
from moonshelf.catalogue.store import Store
from moonshelf.images import SAME_PICTURE

KINDS = ("duplicate", "variant", "similar")
MIN_SCORE = 0.9  # cosine
NEIGHBOURS = 10
TITLE_OVERLAP, TITLE_SAME = 0.6, 0.8  # Jaccard of words


@dataclass(frozen=True)
class Pair:
    """Two products, what they are to each other, and why. `score` is the cosine of their vectors."""

    a: str
    b: str
    kind: str
    score: float
    evidence: dict[str, Any]

    @property
    def why(self) -> str:
        return explain(self.evidence)

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


def find(store: Store, *, min_score: float = MIN_SCORE) -> DuplicateReport:
    """Compare rows that share an identifier, and each row with its nearest NEIGHBOURS.

    `min_score` is the cosine from which looks count as a witness.
    """
    keys, vectors = store.vectors()
    place = {int(key): i for i, key in enumerate(keys)}
    table = store.scan(["key", *COLUMNS])
    items: list[Item] = [None] * len(keys)  # type: ignore[list-item]
    rows = table.to_pylist()
    for row in rows:
        items[place[row["key"]]] = Item.of(row)
    candidates, notes = by_identifiers(items)
    notes = placeholders(rows) + notes
    index = vector_index.load(store)[0] or vector_index.VectorIndex.of(keys, vectors)
    near = by_vectors(vectors, index, place, NEIGHBOURS + 1, min_score)
    candidates |= {(min(i, j), max(i, j)) for i, j in near if i != j}
    pairs = []
    for i, j in sorted(candidates):
        pair = judge(items[i], items[j], float(vectors[i] @ vectors[j]), min_score)
        if pair is not None:
            pairs.append(pair)
    titles = {item.id: item.title for item in items}
    groups = [group for kind in KINDS for group in complete_link(kind, pairs, titles)]
    return DuplicateReport(groups, notes)


def judge(a: Item, b: Item, score: float, min_score: float = MIN_SCORE) -> Pair | None:
    """What two products are to each other, or None where nothing says that they belong together."""
    if a.id > b.id:
        a, b = b, a
    found = compare(a, b)
    gtin, brand, part, group, codes = (
        found.identifiers.get(name) for name in ("gtin", "brand", "mpn", "group_id", "numbers in title")
    )
    overlap, bits, variant = found.title_overlap, found.picture_bits, found.variant
    witnesses = (overlap >= TITLE_OVERLAP) + (bits is not None and bits <= SAME_PICTURE)
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
    return Pair(a.id, b.id, kind, score, found.as_dict() | {"conflicts": conflicts})


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

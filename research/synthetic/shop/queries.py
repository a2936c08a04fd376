"""Queries with graded relevance, computed from what is true of the products and from nothing else.

A query asks for *facets*: perhaps a leaf category, and some attribute values. Grades of a text query:

- 3: every facet is met;
- 2: exactly one attribute is missed, and at least two facets are met (the category among them if asked);
- 1: the category is met and nothing above applies, or a sibling category with every attribute met;
- 0: else.

An image query is a new photo of one product: 3 that product, 2 the other colours of its group, 1 same leaf
category and same colour, 0 else. A composed query is a photo and a change ("this in blue"): 3 the variant of
the same group in that colour, 2 the same leaf category in that colour, 1 the group's other colours (the
product of the photo included), 0 else. Only grades above 0 are listed in `Query.relevance`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moonshelf.product import ImageRef
from moonshelf.sample import Query, Truth
from research.synthetic.shop.photo import photograph
from research.synthetic.shop.spec import KINDS, Spec
from research.synthetic.shop.words import said


@dataclass(frozen=True)
class DrawnTruth(Truth):
    """What is true of one product, and what it is drawn from."""

    spec: Spec


def grade(truth: Truth, category: tuple[str, ...] | None, asked: Mapping[str, str]) -> int:
    """Grade 0 … 3 of one product for a text query; the rule is in the module's docstring."""
    missed = sum(truth.attributes.get(key) != value for key, value in asked.items())
    in_category = category is None or truth.category == category
    if in_category and missed == 0:
        return 3
    met = len(asked) - missed + (category is not None)
    if in_category and missed == 1 and met >= 2:
        return 2
    if category is not None and (
        truth.category == category or (truth.category[:-1] == category[:-1] and missed == 0 and asked)
    ):
        return 1
    return 0


def make_queries(truths: Sequence[DrawnTruth], seed: int, count: int, size: int) -> list[Query]:
    """About `count` queries: half text, the rest photos and composed ones. Each has a product of grade 3."""
    rng = np.random.default_rng([seed, 77])
    queries: list[Query] = []
    seen: set[str] = set()
    order = [truths[int(i)] for i in rng.permutation(len(truths))]
    for number in range(count // 2):
        text, category, asked = _ask(rng, order[number % len(order)])
        if text in seen:
            continue
        seen.add(text)
        graded = {t.id: grade(t, category, asked) for t in truths}
        queries.append(Query(f"t{len(seen):03}", text, None, {k: v for k, v in graded.items() if v}))
    by_group: dict[str, list[DrawnTruth]] = {}
    for truth in truths:
        by_group.setdefault(truth.group, []).append(truth)
    for number, truth in enumerate(order[: count // 4]):
        image = _photo(truth, seed, number, size)
        graded = {t.id: _image_grade(t, truth) for t in truths}
        queries.append(Query(f"i{number + 1:03}", "", image, {k: v for k, v in graded.items() if v}))
    number = 0
    for truth in order:
        others = [t for t in by_group[truth.group] if t.attributes["colour"] != truth.attributes["colour"]]
        if not others or number >= count - count // 2 - count // 4:
            continue
        wanted = others[int(rng.integers(len(others)))].attributes["colour"]
        phrase = ("this in {}", "same but in {}", "the same one in {}", "in {} please")[int(rng.integers(4))]
        graded = {t.id: _composed_grade(t, truth, wanted) for t in truths}
        image = _photo(truth, seed, 500 + number, size)
        number += 1
        queries.append(
            Query(f"c{number:03}", phrase.format(wanted), image, {k: v for k, v in graded.items() if v})
        )
    return queries


def _ask(rng: np.random.Generator, truth: DrawnTruth) -> tuple[str, tuple[str, ...] | None, dict[str, str]]:
    """A shopper's words for some facets of a product."""
    kind = KINDS[truth.spec.kind]
    sayable = {
        k: v for k, v in truth.attributes.items() if said(v) and k not in ("second colour", "shade colour")
    }
    details = [k for k in sayable if k not in ("colour", "pattern", "material")]
    style = rng.random()
    keys = ["colour"] if style < 0.9 else []
    if "material" in sayable and rng.random() < 0.45:
        keys.append("material")
    if "pattern" in sayable and rng.random() < 0.7:
        keys.append("pattern")
    if details and (rng.random() < 0.6 or len(keys) < 2):
        keys.append(details[int(rng.integers(len(details)))])
    asked = {key: sayable[key] for key in keys}
    with_noun = rng.random() < 0.82 or len(asked) < 2
    noun = kind.nouns[int(rng.integers(len(kind.nouns)))].lower() if with_noun else ""
    lead = [said(asked[key]) for key in ("colour", "pattern", "material") if key in asked]
    rest = [said(value) for key, value in asked.items() if key not in ("colour", "pattern", "material")]
    words = (
        [*lead, *rest, noun]
        if rng.random() < 0.7 or not noun
        else [*lead, noun, "with", *rest]
        if rest
        else [*lead, noun]
    )
    return " ".join(word for word in words if word), kind.category if with_noun else None, asked


def _photo(truth: DrawnTruth, seed: int, number: int, size: int) -> ImageRef:
    """A photo that is not in the catalogue: another light, background and, often, view."""
    return ImageRef(data=photograph(truth.spec, number % 2, (seed, 9001, number), size), role="main")


def _image_grade(truth: Truth, asked: Truth) -> int:
    if truth.id == asked.id:
        return 3
    if truth.group == asked.group:
        return 2
    return int(truth.category == asked.category and truth.attributes["colour"] == asked.attributes["colour"])


def _composed_grade(truth: Truth, asked: Truth, colour: str) -> int:
    right = truth.attributes["colour"] == colour
    if truth.group == asked.group:
        return 3 if right else 1
    return 2 if right and truth.category == asked.category else 0

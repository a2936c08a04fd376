"""One self-contained page about a catalogue whose truth is known: what was written and found.

`Page` holds what the page says, already counted; `render` puts it into `report.html` and `report.css` beside
this file. The page needs no script, no network and no other file: pictures are re-encoded thumbnails inside
it, and its content policy allows nothing else. Catalogue text and what the model wrote are untrusted, so the
template escapes every value. Nothing is picked by hand or by score: products are the first of each category,
searches of each kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moonshelf.attributes import canonical_key
from moonshelf.catalogue.rows import THUMBNAIL_SIDE
from moonshelf.evaluation.contract import Result, Vectors
from moonshelf.evaluation.data.dataset import view
from moonshelf.evaluation.encoders.baselines import ModelEncoder
from moonshelf.evaluation.encoders.cache import EmbeddingCache
from moonshelf.evaluation.report.page import data_uri, template, thumbnail
from moonshelf.evaluation.report.pages import write_pages
from moonshelf.evaluation.runner import evaluate
from moonshelf.evaluation.statistics.significance import bootstrap
from moonshelf.evaluation.tasks import says
from moonshelf.prompts import CATEGORY_SEPARATOR, END_THINK, THINK, read_rationale

if TYPE_CHECKING:
    from pathlib import Path

    from moonshelf.catalogue.matching.duplicates import DuplicateReport
    from moonshelf.catalogue.search import SearchResult
    from moonshelf.model.encoders.base import Reason
    from moonshelf.model.modeling import MoonModel
    from moonshelf.product import Product
    from moonshelf.sample import Query, Shop, Truth

GRADES = {3: "exactly what was asked", 2: "close", 1: "related", 0: "not asked for"}
COLUMNS = (
    "id", "title", "vector", "rationale", "rationale_valid", "weight_image", "weight_text",
    "weight_rationale", "thumbnail",
)  # fmt: skip
OMITTED = "attributes that the title leaves out"
KINDS = {"text": "Words", "image": "Photo", "composed": "Photo and words"}
Rows = Mapping[str, Mapping[str, Any]]  # id -> COLUMNS of the store


@dataclass(frozen=True)
class Chip:
    """One pair of a rationale beside the truth. `mark` is right, wrong, unjudged or missing."""

    key: str
    value: str
    mark: str
    truth: str = ""
    in_title: bool = True  # the title says it too


@dataclass(frozen=True)
class Card:
    """A product with what the model wrote about it; weights are shares of image, text and rationale."""

    id: str
    title: str
    picture: str  # data URI, "" if there is none
    chips: Sequence[Chip]
    weights: tuple[float, float, float]
    in_format: bool = True
    rationale: str = ""  # as written, shown where it did not keep its format

    @property
    def missing(self) -> list[str]:
        return [chip.key for chip in self.chips if chip.mark == "missing"]


class Hit(NamedTuple):
    """A product in a row of results; `grade` 0 … 3 is its relevance, None where nobody knows it."""

    title: str
    picture: str
    grade: int | None = None
    note: str = ""


class Search(NamedTuple):
    """A query and what was found, best first."""

    kind: str  # text, photo, photo and text
    text: str
    picture: str
    hits: Sequence[Hit]


class Job(NamedTuple):
    """A piece of work that was done, as a table of words."""

    id: str
    title: str
    intro: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    said: str  # in one line


class Tile(NamedTuple):
    """One headline figure."""

    result: Result
    label: str
    note: str


Family = tuple[Sequence[Hit], Sequence[str]]  # products that belong together, and why


@dataclass
class Page:
    """Everything on the page."""

    title: str
    lead: str
    tiles: list[Tile] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)
    families: dict[str, list[Family]] = field(default_factory=dict)  # duplicate, similar, variant
    family_counts: dict[str, int] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    steps: list[tuple[str, str, float]] = field(default_factory=list)  # name, what, seconds
    facts: dict[str, str] = field(default_factory=dict)  # command, model, versions …
    next_command: str = ""


def render(page: Page) -> str:
    """The page as HTML."""
    return template("report.html").render(page=page, GRADES=GRADES)


# ---- what it shows -----------------------------------------------------------------------------------


def chips(rationale: str, truth: Truth) -> list[Chip]:
    """The pairs of a rationale, each held against the truth, and then the keys that it left out.

    A key of which the truth says nothing is `unjudged`. A rationale that broke its format has no pairs.
    """
    written: dict[str, str] = {}
    for key, value in (read_rationale(rationale) or {}).items():
        written.setdefault(canonical_key(key), value)
    known = {"category": truth.category[-1], **truth.attributes}
    found = []
    for key, value in written.items():
        if key not in known:
            found.append(Chip(key, value, "unjudged"))
        else:
            mark = "right" if says(rationale, key, known[key]) else "wrong"
            shown = value.split(CATEGORY_SEPARATOR.strip())[-1].strip() if key == "category" else value
            found.append(Chip(key, shown, mark, known[key].lower(), key not in truth.omitted))
    return found + [Chip(key, "", "missing", known[key].lower()) for key in known if key not in written]


def cards(shop: Shop, rows: Rows, limit: int = 24) -> list[Card]:
    """The first product of each category that is in the catalogue, in the order of the feed."""
    first: dict[tuple[str, ...], str] = {}
    for product in shop.products:
        if product.id in rows:
            first.setdefault(shop.truth[product.id].category, product.id)
    found = []
    for id in list(first.values())[:limit]:
        row, valid = rows[id], bool(rows[id]["rationale_valid"])
        written = row["rationale"]
        found.append(
            Card(
                id, row["title"], data_uri(row["thumbnail"]),
                chips(written, shop.truth[id]) if written and valid else [],
                (row["weight_image"], row["weight_text"], row["weight_rationale"]), valid,
                written.removeprefix(THINK).removesuffix(END_THINK),
            )
        )  # fmt: skip
    return found


def searched(query: Query, found: SearchResult, rows: Rows) -> Search:
    """A search as the page shows it; a hit says its place in each of the fused lists."""
    hits = []
    for hit in found.hits:
        places = [
            f"{name} {hit.why[f'{name}_rank']}" for name in ("vector", "text") if f"{name}_rank" in hit.why
        ]
        hits.append(_hit(rows[hit.id], query.relevance.get(hit.id, 0), ", ".join(places)))
    picture = data_uri(thumbnail(query.image, THUMBNAIL_SIDE))
    return Search(KINDS[query.modality], query.text, picture, hits)


def families(found: DuplicateReport, rows: Rows, limit: int = 4) -> dict[str, list[Family]]:
    """The first groups of each kind, at most four members of each, with the evidence of two pairs."""
    return {
        kind: [
            (
                [_hit(rows[id]) for id in group.ids[:4]],
                [f"{pair.a} and {pair.b}: {pair.why}; cosine {pair.score:.2f}" for pair in group.pairs[:2]],
            )
            for group in found.of(kind)[:limit]
        ]
        for kind in ("duplicate", "similar", "variant")
    }


def _hit(row: Mapping[str, Any], grade: int | None = None, note: str = "") -> Hit:
    return Hit(row["title"], data_uri(row["thumbnail"]), grade, note)


# ---- figures -----------------------------------------------------------------------------------------


def score(
    shop: Shop, rows: Rows, model: MoonModel, reason: Reason, cache: Path, out: Path
) -> tuple[list[Tile], list[Result]]:
    """The headline figures and all of them: direct vectors, and those of the catalogue. The evaluation's own
    report is written to `out`, with the worst answers."""
    store, encoder = EmbeddingCache(cache), ModelEncoder(model, reason)
    know(store, encoder, shop.products, rows)
    report = evaluate(
        model, suite="sampleshop", reason=("off", reason), limit=len(shop.products), cache=store, out=out
    )
    write_pages(out)
    results = report.results
    if reason != "off":
        shown = [view(p, text=True, image=True) for p in shop.products]
        found = store.encode(encoder, shown)
        kept = zip(shown, found.rationales, found.valid, strict=True)
        written = {p.id: text if valid else "" for p, text, valid in kept}
        results = read_attributes(shop, written, "image + text", encoder.name) + results
    return _tiles(results, encoder.name), results


def know(store: EmbeddingCache, encoder: ModelEncoder, products: Sequence[Product], rows: Rows) -> None:
    """Let the store take a product that stands in the catalogue just so from there."""
    prompt = encoder.model.prompt
    shown = [(p, view(p, text=True, image=True)) for p in products if p.id in rows]
    known = [same for p, same in shown if prompt.text_of(p) == prompt.text_of(same)]
    mine = [rows[product.id] for product in known]
    if known:
        vectors = np.array([row["vector"] for row in mine], np.float32)
        valid = np.array([row["rationale_valid"] for row in mine], bool)
        rationales = [row["rationale"] for row in mine]
        store.know(encoder, known, Vectors(vectors, rationales=rationales, valid=valid))


def read_attributes(shop: Shop, written: Mapping[str, str], view: str, encoder: str) -> list[Result]:
    """Accuracy over the attributes that the title leaves out, by reading rationales (id -> text, "" for one
    that broke its format)."""
    keys = {key for truth in shop.truth.values() for key in truth.attributes}
    values = {key: len({t.attributes.get(key) for t in shop.truth.values()} - {None}) for key in keys}
    stated = [
        (says(rationale, key, value), 1 / values[key], shop.truth[id].group)
        for id, rationale in written.items()
        for key, value in shop.truth[id].attributes.items()
        if key in shop.truth[id].omitted
    ]
    if not stated:
        return []
    right, chance, groups = zip(*stated, strict=True)
    interval = bootstrap(np.asarray(right, np.float64), groups)
    known = interval.clusters > 1
    return [
        Result(
            "sampleshop", OMITTED, view, "rationale", "accuracy", encoder, interval.value,
            interval.low if known else None, interval.high if known else None, interval.n,
            interval.clusters, chance=float(np.mean(chance)),
        )
    ]  # fmt: skip


def _tiles(results: Sequence[Result], encoder: str) -> list[Tile]:
    """The headline figures, as far as this run has them."""
    wanted = [
        ("text → product", "text", "R@1", "Words: the first of {} results is exactly right", "queries"),
        (
            "photo → product", "image", "R@1", "A new photo: the first of {} results is that product",
            "queries",
        ),
        ("category", "image", "accuracy", "The category, one of {}, from photos alone", "products"),
        (OMITTED, "image + text", "accuracy", "Attributes that the title leaves out", "values"),
    ]  # fmt: skip
    methods = {
        "ranking": "by vectors alone", "rationale": "by reading", "zero-shot classification": "by label",
    }  # fmt: skip
    tiles = []
    for *key, label, noun in wanted:
        for r in sorted(results, key=lambda r: r.method != "rationale"):
            if [r.task, r.view, r.metric, r.encoder] == [*key, encoder] and r.value is not None:
                tiles.append(Tile(r, label.format(r.corpus), f"{r.n:,} {noun}, {methods[r.method]}"))
                break
    return tiles

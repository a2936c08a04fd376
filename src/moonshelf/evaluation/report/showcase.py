"""What the report shows of a catalogue whose truth is known: products, searches, families.

Nothing is picked by hand or by score: products are the first of each category, searches of each kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf.catalogue.rows import THUMBNAIL_SIDE
from moonshelf.catalogue.tables import why
from moonshelf.evaluation.contract import Result, Vectors
from moonshelf.evaluation.data.views import view
from moonshelf.evaluation.encoders.baselines import ModelEncoder
from moonshelf.evaluation.encoders.cache import EmbeddingCache
from moonshelf.evaluation.report.demo_page import Card, Family, Search, Shown, Tile, chips
from moonshelf.evaluation.report.page import data_uri, thumbnail
from moonshelf.evaluation.report.pages import write_pages
from moonshelf.evaluation.runner import evaluate
from moonshelf.evaluation.statistics.significance import bootstrap
from moonshelf.evaluation.tasks import says
from moonshelf.prompts import END_THINK, THINK

if TYPE_CHECKING:
    from pathlib import Path

    from moonshelf.catalogue.matching.duplicates import DuplicateReport
    from moonshelf.catalogue.search import SearchResult
    from moonshelf.model.encoders.base import Reason
    from moonshelf.model.modeling import MoonModel
    from moonshelf.product import ImageRef, Product
    from moonshelf.sample import Query, Shop

COLUMNS = (
    "id", "title", "vector", "rationale", "rationale_valid", "weight_image", "weight_text",
    "weight_rationale", "thumbnail",
)  # fmt: skip
OMITTED = "attributes that the title leaves out"
KINDS = {"text": "Words", "image": "Photo", "composed": "Photo and words"}
Rows = Mapping[str, Mapping[str, Any]]  # id -> COLUMNS of the store


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
        hits.append(_shown(rows[hit.id], grade=query.relevance.get(hit.id, 0), note=", ".join(places)))
    return Search(KINDS[query.modality], query.text, _picture(query.image), hits)


def families(found: DuplicateReport, rows: Rows, limit: int = 4) -> dict[str, list[Family]]:
    """The first groups of each kind, at most four members of each, with the evidence of two pairs."""
    return {
        kind: [
            Family(
                [_shown(rows[id]) for id in group.ids[:4]],
                [f"{pair.a} and {pair.b}: {why(pair)}; cosine {pair.score:.2f}" for pair in group.pairs[:2]],
            )
            for group in found.of(kind)[:limit]
        ]
        for kind in ("duplicate", "similar", "variant")
    }


def _shown(row: Mapping[str, Any], score: str = "", grade: int | None = None, note: str = "") -> Shown:
    return Shown(row["title"], data_uri(row["thumbnail"]), score, grade, note)


def _picture(ref: ImageRef | None) -> str:
    return data_uri(thumbnail(ref, THUMBNAIL_SIDE))


def first_of_each(queries: Sequence[Query], counts: Mapping[str, int]) -> list[Query]:
    """The first queries of each modality."""
    return [q for kind, n in counts.items() for q in [q for q in queries if q.modality == kind][:n]]


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
        ok = np.ones(len(known), bool)
        store.know(encoder, known, Vectors(vectors, ok, [row["rationale"] for row in mine], valid))


def read_attributes(shop: Shop, written: Mapping[str, str], view: str, encoder: str) -> list[Result]:
    """Accuracy over the attributes that the title leaves out, by reading rationales (id -> text, "" for one
    that broke its format)."""
    keys = {key for truth in shop.truth.values() for key in truth.attributes}
    values = {key: len({t.attributes.get(key) for t in shop.truth.values()} - {None}) for key in keys}
    stated = [
        (key in truth.omitted, says(rationale, key, value), 1 / values[key], truth.group)
        for rationale, truth in ((text, shop.truth[id]) for id, text in written.items())
        for key, value in truth.attributes.items()
    ]
    asked = [one for one in stated if one[0]]
    if not asked:
        return []
    _, right, chance, groups = zip(*asked, strict=True)
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

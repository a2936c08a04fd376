"""What the report shows of a catalogue whose truth is known: products, searches, mistakes, families.

Nothing is picked by hand or by score, unless the heading says so: products are the first of each category,
searches the first of each kind, mistakes the worst.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf.catalogue.rows import THUMBNAIL_SIDE
from moonshelf.catalogue.tables import why
from moonshelf.evaluation.contract import Result, Vectors, check_vectors
from moonshelf.evaluation.data.validation import sample_shop
from moonshelf.evaluation.data.views import view
from moonshelf.evaluation.encoders.baselines import ModelEncoder
from moonshelf.evaluation.encoders.cache import EmbeddingCache
from moonshelf.evaluation.predictions import Predictions
from moonshelf.evaluation.report import worst
from moonshelf.evaluation.report.demo_page import (
    Card,
    Chip,
    Family,
    Mistake,
    Page,
    Search,
    Shown,
    Tile,
    chips,
)
from moonshelf.evaluation.report.page import data_uri, thumbnail
from moonshelf.evaluation.statistics import metrics
from moonshelf.evaluation.statistics.scoring import Scored, figures
from moonshelf.evaluation.tasks import Retrieval, says
from moonshelf.prompts import END_THINK, THINK

if TYPE_CHECKING:
    from pathlib import Path

    from moonshelf.catalogue.matching.duplicates import DuplicateReport
    from moonshelf.catalogue.search import SearchResult
    from moonshelf.model.modeling import MoonModel
    from moonshelf.product import ImageRef, Product
    from moonshelf.sample import Query, Shop

COLUMNS = (
    "id", "title", "vector", "rationale", "rationale_valid", "weight_image", "weight_text",
    "weight_rationale", "thumbnail",
)  # fmt: skip
ALL, OMITTED = "all attributes", "attributes that the title leaves out"
VIEWS = ("image", "image + text")
HEADLINES = ("nDCG@10", "R@1", "accuracy")  # the metrics that the page shows
KINDS = {"text": "Words", "image": "Photo", "composed": "Photo and words"}
WORST, FOUND = 2, 5  # queries of each kind, and what is shown of what they found
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


def mistakes(shop: Shop, rows: Rows, limit: int = 12) -> list[Mistake]:
    """One wrong attribute of each of the products that have the most of them, keys in turn."""
    wrong: dict[str, list[Chip]] = {}
    for id, row in rows.items():
        if id in shop.truth and (
            found := [c for c in chips(row["rationale"], shop.truth[id]) if c.mark == "wrong"]
        ):
            wrong[id] = found
    used: Counter[str] = Counter()
    chosen = []
    for id in sorted(wrong, key=lambda id: (-len(wrong[id]), id))[:limit]:
        chip = min(wrong[id], key=lambda c: used[c.key])
        used[chip.key] += 1
        picture = data_uri(rows[id]["thumbnail"])
        chosen.append(Mistake(rows[id]["title"], picture, chip.key, chip.value, chip.truth))
    return chosen


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


def score(page: Page, shop: Shop, rows: Rows, model: MoonModel, reason: str, cache: Path) -> None:
    """Fill the page's figures, tiles and worst searches: direct vectors, and those of the catalogue."""
    store, encoder = EmbeddingCache(cache), ModelEncoder(model, reason)  # type: ignore[arg-type]
    know(store, encoder, shop.products, rows)
    encoders = [encoder] if reason == "off" else [ModelEncoder(model, "off"), encoder]
    page.encoders = [one.name for one in encoders]
    shown = {name: [view(p, text="text" in name, image=True) for p in shop.products] for name in VIEWS}
    for one in encoders:
        check_vectors(one, store.encode(one, shown["image + text"]))
    for task in sample_shop(shop=shop).tasks:
        for one in encoders:
            done = [Scored(x) if isinstance(x, Predictions) else x for x in task.predict(one, store.encode)]
            for r in figures(done):
                if r.metric in HEADLINES and r.method != "rationale":
                    page.figures.append(r)
                elif r.metric in HEADLINES and r.value is not None:
                    page.readings.append(r)
            if isinstance(task, Retrieval) and one is encoder:
                page.worst += [
                    s for x in done if isinstance(x, Scored) for s in _worst(task, x.predictions, rows)
                ]
    if reason != "off":
        whole: list[Result] = []
        for name, products in shown.items():
            out = store.encode(encoder, products)
            kept = zip(products, out.rationales, out.valid, strict=True)
            written = {p.id: text if valid else "" for p, text, valid in kept}
            whole += read_attributes(shop, written, name, encoder.name)
        page.readings = whole + page.readings
        found = [chip for id, row in rows.items() for chip in chips(row["rationale"], shop.truth[id])]
        page.pairs = sum(chip.mark != "missing" for chip in found)
        page.beside = sum(chip.mark == "unjudged" for chip in found)
    page.tiles = _tiles(page, encoder.name)


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


def _worst(task: Retrieval, kept: Predictions, rows: Rows) -> list[Search]:
    """The queries whose nDCG@10 is lowest, with what was wanted and what came first."""
    found = []
    for i in worst.worst_rows(kept, "nDCG@10")[:WORST]:
        query, c = task.queries[i], {name: values[i] for name, values in kept.columns.items()}
        grades = dict(zip(c["relevant"], c["gains"], strict=True))
        hits = [
            _shown(rows[id], f"cosine {score:.2f}", int(grades.get(id, 0)))
            for id, score in list(zip(c["top"], c["top_scores"], strict=True))[:FOUND]
            if id in rows
        ]
        best, place = worst.wanted(kept, i)
        asked = rows.get(c["relevant"][best]) if best is not None else None
        rank = f"place {place:.0f} of {len(task.corpus)}" if place is not None else ""
        picture = _picture(query.images[0] if query.images else None)
        figure = f"nDCG@10 {100 * c['nDCG@10']:.0f} %"
        wanted = _shown(asked, rank) if asked else None
        found.append(Search(KINDS[task.view], query.title, picture, hits, wanted, figure))
    return found


def read_attributes(shop: Shop, written: Mapping[str, str], view: str, encoder: str) -> list[Result]:
    """Accuracy over all attributes by reading rationales (id -> text, "" for one that broke its format):
    once over all, and once over those that the title leaves out."""
    keys = {key for truth in shop.truth.values() for key in truth.attributes}
    values = {key: len({t.attributes.get(key) for t in shop.truth.values()} - {None}) for key in keys}
    stated = [
        (key in truth.omitted, says(rationale, key, value), 1 / values[key], truth.group)
        for rationale, truth in ((text, shop.truth[id]) for id, text in written.items())
        for key, value in truth.attributes.items()
    ]
    results = []
    for task, asked in ((ALL, stated), (OMITTED, [one for one in stated if one[0]])):
        if asked:
            _, right, chance, groups = zip(*asked, strict=True)
            interval = metrics.bootstrap(np.asarray(right, np.float64), groups)
            known = interval.clusters > 1
            results.append(
                Result(
                    "sampleshop", task, view, "rationale", "accuracy", encoder, interval.value,
                    interval.low if known else None, interval.high if known else None, interval.n,
                    interval.clusters, chance=float(np.mean(chance)),
                )
            )  # fmt: skip
    return results


def _tiles(page: Page, encoder: str) -> list[Tile]:
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
        for r in page.readings + page.figures:
            if [r.task, r.view, r.metric, r.encoder] == [*key, encoder] and r.value is not None:
                tiles.append(Tile(r, label.format(r.corpus), f"{r.n:,} {noun}, {methods[r.method]}"))
                break
    return tiles

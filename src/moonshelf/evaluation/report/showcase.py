"""What the report shows of a catalogue whose truth is known: products, searches, mistakes, families.

Nothing is picked by hand or by score, unless the heading says so: products are the first of each category,
searches the first of each kind, mistakes the worst.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf.catalogue.rows import THUMBNAIL_SIDE
from moonshelf.catalogue.tables import why
from moonshelf.evaluation.data.validation import sample_shop
from moonshelf.evaluation.data.views import view
from moonshelf.evaluation.encoders.baselines import MoonshelfEncoder
from moonshelf.evaluation.encoders.cache import EmbeddingCache
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
from moonshelf.evaluation.tasks import Encode, Encoder, Result, Retrieval, Vectors, check_vectors, says
from moonshelf.prompts import END_THINK, THINK

if TYPE_CHECKING:
    from pathlib import Path

    from moonshelf.catalogue.duplicates import DuplicateReport
    from moonshelf.catalogue.search import SearchResult
    from moonshelf.model.modeling import MoonModel
    from moonshelf.product import ImageRef, Product
    from moonshelf.sample import Query, Shop, Truth

COLUMNS = (
    "id", "title", "vector", "rationale", "rationale_valid", "weight_image", "weight_text",
    "weight_rationale", "thumbnail",
)  # fmt: skip
ALL, OMITTED = "all attributes", "attributes that the title leaves out"
VIEWS = ("image", "image + text")
HEADLINES = ("nDCG@10", "R@1", "accuracy")  # the metrics that the page shows
KINDS = {"text": "Words", "image": "Photo", "composed": "Photo and words"}
Rows = Mapping[str, Mapping[str, Any]]  # id -> COLUMNS of the store


def cards(shop: Shop, rows: Rows, limit: int = 24) -> list[Card]:
    """The first product of each category that is in the catalogue, in the order of the feed."""
    first: dict[tuple[str, ...], str] = {}
    for product in shop.products:
        if product.id in rows:
            first.setdefault(shop.truth[product.id].category, product.id)
    return [_card(rows[id], shop.truth[id]) for id in list(first.values())[:limit]]


def _card(row: Mapping[str, Any], truth: Truth) -> Card:
    rationale = row["rationale"]
    return Card(
        id=row["id"],
        title=row["title"],
        picture=data_uri(row["thumbnail"]),
        chips=chips(rationale, truth) if rationale and row["rationale_valid"] else [],
        weights=(row["weight_image"], row["weight_text"], row["weight_rationale"]),
        in_format=bool(row["rationale_valid"]),
        rationale=rationale.removeprefix(THINK).removesuffix(END_THINK),
    )


def searched(query: Query, found: SearchResult, rows: Rows) -> Search:
    """A search as the page shows it; a hit says its place in each of the fused lists."""
    hits = []
    for hit in found.hits:
        places = [
            f"{name} {hit.why[f'{name}_rank']}" for name in ("vector", "text") if f"{name}_rank" in hit.why
        ]
        hits.append(_shown(rows[hit.id], grade=query.relevance.get(hit.id, 0), note=", ".join(places)))
    return Search(KINDS[query.modality], query.text, _picture(query.image), hits)


def worst(
    tasks: Iterable[Retrieval], encoder: Encoder, encode: Encode, rows: Rows, each: int = 2, shown: int = 5
) -> list[Search]:
    """Of each task the `each` queries whose nDCG@10 is lowest, with what was wanted and what came first."""
    found = []
    for task in tasks:
        queries, corpus = encode(encoder, task.queries), encode(encoder, task.corpus)
        scores = metrics.similarity(queries.vectors, corpus.vectors)
        scores[:, ~corpus.ok] = -np.inf
        gains = np.array([[wanted.get(key, 0.0) for key in task.corpus_keys] for wanted in task.relevant])
        quality = metrics.ndcg_at_k(scores, gains, 10)
        for place in [i for i in np.argsort(quality, kind="stable").tolist() if quality[i] < 1][:each]:
            query = task.queries[place]
            order = np.argsort(-scores[place], kind="stable").tolist()
            best = next(i for i in order if gains[place, i] == gains[place].max())
            hits = [
                _shown(rows[task.corpus_keys[i]], f"cosine {scores[place, i]:.2f}", int(gains[place, i]))
                for i in order[:shown]
                if task.corpus_keys[i] in rows
            ]
            rank = f"place {order.index(best) + 1} of {len(order)}"
            wanted = _shown(rows[task.corpus_keys[best]], rank) if task.corpus_keys[best] in rows else None
            picture = _picture(query.images[0] if query.images else None)
            figure = f"nDCG@10 {100 * quality[place]:.0f} %"
            found.append(Search(KINDS[task.view], query.title, picture, hits, wanted, figure))
    return found


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


def read_attributes(shop: Shop, written: Mapping[str, str], view: str, encoder: str) -> list[Result]:
    """Accuracy over all attributes by reading rationales (id -> text, "" for one that broke its format):
    once over all, and once over those that the title leaves out."""
    keys = {key for truth in shop.truth.values() for key in truth.attributes}
    values = {key: len({t.attributes.get(key) for t in shop.truth.values()} - {None}) for key in keys}
    results = []
    for task, only_omitted in ((ALL, False), (OMITTED, True)):
        right, chance, groups = [], [], []
        for id, rationale in written.items():
            truth = shop.truth[id]
            for key, value in truth.attributes.items():
                if only_omitted and key not in truth.omitted:
                    continue
                right.append(says(rationale, key, value))
                chance.append(1 / values[key])
                groups.append(truth.group)
        if right:
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


def _shown(row: Mapping[str, Any], score: str = "", grade: int | None = None, note: str = "") -> Shown:
    return Shown(row["title"], data_uri(row["thumbnail"]), score, grade, note)


def _picture(ref: ImageRef | None) -> str:
    return data_uri(thumbnail(ref, THUMBNAIL_SIDE))


def first_of_each(queries: Sequence[Query], counts: Mapping[str, int]) -> list[Query]:
    """The first queries of each modality."""
    return [q for kind, n in counts.items() for q in [q for q in queries if q.modality == kind][:n]]


# ---- figures -----------------------------------------------------------------------------------------


class CachedEncoder(MoonshelfEncoder):
    """The model, except that a product that stands in the catalogue just so is taken from there."""

    def __init__(self, model: MoonModel, reason: Any, products: Sequence[Product], rows: Rows) -> None:
        super().__init__(model, reason)
        self._known = {self._key(p): rows[p.id] for p in products if p.id in rows}

    def _key(self, product: Product) -> tuple[str, tuple[ImageRef, ...]]:
        return self.model.prompt.text_of(product), product.images

    def encode(self, products: Sequence[Product]) -> Vectors:
        known = [self._known.get(self._key(product)) for product in products]
        missing = [i for i, row in enumerate(known) if row is None]
        new = super().encode([products[i] for i in missing])
        n = len(products)
        vectors, ok, valid = np.zeros((n, self.model.dim), np.float32), np.ones(n, bool), np.ones(n, bool)
        out = Vectors(vectors, ok, [""] * n, valid, new.problems)
        for i, row in enumerate(known):
            if row is not None:
                vectors[i], valid[i], out.rationales[i] = (
                    row["vector"],
                    row["rationale_valid"],
                    row["rationale"],
                )
        for place, i in enumerate(missing):
            vectors[i], ok[i], valid[i] = new.vectors[place], new.ok[place], new.valid[place]
            out.rationales[i] = new.rationales[place]
        return out


def score(page: Page, shop: Shop, rows: Rows, model: MoonModel, reason: str, cache: Path) -> None:
    """Fill the page's figures, tiles and worst searches: direct vectors, and those of the catalogue."""
    dataset, store = sample_shop(shop=shop), EmbeddingCache(cache)
    shelf = CachedEncoder(model, reason, shop.products, rows)
    encoders = [shelf] if reason == "off" else [MoonshelfEncoder(model, "off"), shelf]
    page.encoders = [encoder.name for encoder in encoders]
    shown = {name: [view(p, text="text" in name, image=True) for p in shop.products] for name in VIEWS}
    for encoder in encoders:
        check_vectors(encoder, store.encode(encoder, shown["image + text"]))
    for task in dataset.tasks:
        for encoder in encoders:
            for r in task.run(encoder, store.encode):
                if r.metric not in HEADLINES:
                    continue
                if r.method != "rationale":
                    page.figures.append(r)
                elif r.value is not None:
                    page.readings.append(r)
    if reason != "off":
        whole: list[Result] = []
        for name, products in shown.items():
            out = store.encode(shelf, products)
            kept = zip(products, out.rationales, out.valid, strict=True)
            written = {p.id: text if valid else "" for p, text, valid in kept}
            whole += read_attributes(shop, written, name, shelf.name)
        page.readings = whole + page.readings
        found = [chip for id, row in rows.items() for chip in chips(row["rationale"], shop.truth[id])]
        page.pairs = sum(chip.mark != "missing" for chip in found)
        page.beside = sum(chip.mark == "unjudged" for chip in found)
    page.worst = worst([t for t in dataset.tasks if isinstance(t, Retrieval)], shelf, store.encode, rows)
    page.tiles = _tiles(page, shelf.name)


def _tiles(page: Page, encoder: str) -> list[Tile]:
    """The headline figures, as far as this run has them."""
    wanted = [
        ("text → product", "text", "R@1", "Words: the first of {} results is exactly right", "queries"),
        (
            "photo → product",
            "image",
            "R@1",
            "A new photo: the first of {} results is that product",
            "queries",
        ),
        ("category", "image", "accuracy", "The category, one of {}, from photos alone", "products"),
        (OMITTED, "image + text", "accuracy", "Attributes that the title leaves out", "values"),
    ]
    methods = {
        "ranking": "by vectors alone",
        "rationale": "by reading",
        "zero-shot classification": "by label",
    }
    tiles = []
    for task, shown, metric, label, noun in wanted:
        for r in page.readings + page.figures:
            key = (r.task, r.view, r.metric, r.encoder)
            if key == (task, shown, metric, encoder) and r.value is not None:
                tiles.append(Tile(r, label.format(r.corpus), f"{r.n:,} {noun}, {methods[r.method]}"))
                break
    return tiles

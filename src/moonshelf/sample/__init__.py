"""The sample: a small shop and a few campaigns that were drawn once, so that everything about them is known.

It is what the demos show, what `serve --sample` serves and what `evaluate --suite sampleshop` scores.
Products and campaigns are feeds like any other; the truth and the queries lie beside them.
`research/synthetic` of a checkout draws them (`python -m research.synthetic.render`), and more of their kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moonshelf.errors import UserError
from moonshelf.feeds import read_feed
from moonshelf.product import ImageRef, Product

FOLDER = Path(__file__).parent
PRODUCTS = FOLDER / "products.parquet"
TRUTH = FOLDER / "truth.parquet"
QUERIES = FOLDER / "queries.parquet"
CAMPAIGNS = FOLDER / "campaigns.parquet"
SEED, SIZE = 7, 160  # of the shop that is shipped; the starter was trained on the shop of another seed


@dataclass(frozen=True)
class Truth:
    """What is true of one product, and what its title keeps to itself."""

    id: str
    category: tuple[str, ...]
    attributes: Mapping[str, str]  # all that the main photo shows
    group: str
    omitted: tuple[str, ...]  # keys that the title does not mention


@dataclass(frozen=True)
class Query:
    """A text, a photo, or both, and the grade (1 to 3) of every product that is not irrelevant."""

    id: str
    text: str = ""
    image: ImageRef | None = None
    relevance: Mapping[str, int] = field(default_factory=dict)

    @property
    def modality(self) -> str:
        return "composed" if self.image and self.text else "image" if self.image else "text"


@dataclass(frozen=True)
class Shop:
    """A small shop of which everything is known."""

    products: list[Product]
    truth: Mapping[str, Truth]
    queries: list[Query]
    seed: int = SEED


def shop(limit: int = SIZE) -> Shop:
    """The first `limit` products with their truth, and the queries that one of them answers exactly.

    Raises UserError for a limit that the sample cannot meet.
    """
    if not 1 <= limit <= SIZE:
        raise UserError(f"the sample has {SIZE} products: ask for 1 to {SIZE} of them.")
    products = [row for row in read_feed(PRODUCTS) if isinstance(row, Product)][:limit]
    known = {product.id for product in products}
    truth = {
        row["id"]: Truth(
            row["id"], tuple(row["category"]), dict(row["attributes"]), row["group"], tuple(row["omitted"])
        )
        for row in _rows(TRUTH)
        if row["id"] in known
    }
    queries = []
    for row in _rows(QUERIES):
        relevance = {id: grade for id, grade in row["relevance"] if id in known}
        if 3 in relevance.values():
            image = ImageRef(data=row["image"], role="main") if row["image"] else None
            queries.append(Query(row["id"], row["text"], image, relevance))
    return Shop(products, truth, queries)


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


# ---- to disk -----------------------------------------------------------------------------------------


def write_shop(shop: Shop, folder: str | Path) -> Path:
    """Write `products.jsonl`, `images/`, `queries.jsonl`, `truth.jsonl`; returns the path of the feed.

    Pictures are named by product and number, and the feed refers to them relative to itself.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    _write_lines(folder / "products.jsonl", (_record(product, folder) for product in shop.products))
    queries = []
    for query in shop.queries:
        row: dict[str, Any] = {"id": query.id, "text": query.text, "relevance": dict(query.relevance)}
        if query.image is not None and query.image.data is not None:
            row["image"] = _save(folder, f"query-{query.id}", query.image.data)
        queries.append(row)
    _write_lines(folder / "queries.jsonl", queries)
    _write_lines(folder / "truth.jsonl", map(truth_record, shop.truth.values()))
    return folder / "products.jsonl"


def truth_record(truth: Truth) -> dict[str, Any]:
    """The truth of a product as a row of `truth.jsonl`."""
    return {
        "id": truth.id,
        "category": list(truth.category),
        "attributes": dict(truth.attributes),
        "group": truth.group,
        "omitted": list(truth.omitted),
    }


def _record(product: Product, folder: Path) -> dict[str, Any]:
    row = product.model_dump(mode="json", exclude={"images"}, exclude_defaults=True)
    images = []
    for number, ref in enumerate(product.images):
        assert ref.data is not None
        images.append({"path": _save(folder, f"{product.id}-{number}", ref.data), "role": ref.role})
    return {**row, "images": images}


def _save(folder: Path, name: str, data: bytes) -> str:
    file = f"images/{name}.{'webp' if data[:4] == b'RIFF' else 'jpg'}"
    (folder / file).write_bytes(data)
    return file


def _write_lines(path: Path, rows: Iterable[Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

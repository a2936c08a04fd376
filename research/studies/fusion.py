"""What the measured weight of vectors beside words is worth: search over catalogues with graded queries.

    python -m research.studies.fusion starter --data DATA --out runs/fusion

Three sets: `crowdflower` (all its titles; queries and grades 1 to 4 of the validation split, gains
2^(g-1)-1), `fashion` (titles and photos of validation-clear; queries of two facts, colour or gender and kind,
true of the products whose attributes have both) and the queries in words of the packaged shop. nDCG@10 of
either list, of both fused by equal reciprocal ranks (k = 60), by ranks with the measured weight, and by
`search`, which weighs scores; then the difference between `search` and the better list. Intervals are
bootstrapped over queries. With `--shuffled` each query has another's vector: a model that knows nothing.
Catalogues in OUT are used again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import typer
from rich import print

from moonshelf import sample
from moonshelf.catalogue.fusion import Fusion
from moonshelf.catalogue.search import Catalogue
from moonshelf.evaluation.statistics.significance import bootstrap, paired_means
from moonshelf.feeds import read_feed
from moonshelf.model.encoders.base import asking
from moonshelf.product import Product
from research.script import app_of, start

Queries = dict[str, dict[str, float]]  # gains by id
LISTS = ("vectors", "words", "ranks, equal", "ranks, weighted", "search")
DEPTH, K, SEED = 100, 60, 0


def crowdflower(data: Path) -> tuple[list[Product], Queries]:
    rows = pq.read_table(data / "relevance/crowdflower.parquet").to_pylist()
    ids = {title: f"c{i}" for i, title in enumerate(dict.fromkeys(row["title"] for row in rows))}
    queries: Queries = defaultdict(dict)
    for row in rows:
        if row["split"] == "validation":
            gains, id = queries[row["query"]], ids[row["title"]]
            gains[id] = max(gains.get(id, 0.0), 2.0 ** (row["grade"] - 1) - 1)
    return [Product(id=id, title=title) for title, id in ids.items()], queries


def fashion(data: Path) -> tuple[list[Product], Queries]:
    products: list[Product] = []
    queries: Queries = defaultdict(dict)
    for product in read_feed(data / "fashion_products/validation-clear.parquet"):
        if not isinstance(product, Product):
            continue
        for fact in (product.attributes.get("baseColour"), product.attributes.get("gender")):
            if fact and fact != "Unisex":
                queries[f"{fact} {product.category[-1]}".lower()][product.id] = 1.0
        products.append(
            Product(id=product.id, title=product.title, images=product.images, group_id=product.group_id)
        )
    return products, {text: gains for text, gains in queries.items() if len(gains) > 1}


def shop(data: Path) -> tuple[list[Product], Queries]:
    drawn = sample.shop()
    asked = [query for query in drawn.queries if query.modality == "text"]
    return drawn.products, {q.text: {id: float(grade) for id, grade in q.relevance.items()} for q in asked}


def ndcg(ranked: list[str], gains: dict[str, float]) -> float:
    def gained(values: Iterable[float]) -> float:
        return sum(value / np.log2(place + 2) for place, value in enumerate(list(values)[:10]))

    return gained(gains.get(id, 0.0) for id in ranked) / gained(sorted(gains.values(), reverse=True))


def by_ranks(vectors: list[str], words: list[str], weight: float) -> list[str]:
    scores: dict[str, float] = defaultdict(float)
    for ranked, share in ((vectors, weight), (words, 1 - weight)):
        for rank, id in enumerate(ranked, 1):
            scores[id] += share / (K + rank)
    return sorted(scores, key=lambda id: -scores[id])


class Shuffled:
    """A model that gives each text of a batch the vector of the one before."""

    queries = None

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def encode(self, products: list[Product], **options: Any) -> Any:
        return SimpleNamespace(vectors=np.roll(self.model.encode(products, **options).vectors, 1, axis=0))

    def encode_iter(self, products: Any, **options: Any) -> Iterator[Any]:
        raise NotImplementedError("only queries are shuffled")


def score(catalogue: Catalogue, queries: Queries, weight: float) -> dict[str, list[float]]:
    """nDCG@10 of each query, by list."""
    asked = [Product(id=str(i), title=text) for i, text in enumerate(queries)]
    encoded = np.asarray(asking(catalogue.model).encode(asked, reason="off").vectors, np.float32)
    found: dict[str, list[float]] = {name: [] for name in LISTS}
    for (text, gains), vector in zip(queries.items(), encoded, strict=True):

        def ids(mode: str, k: int, text: str = text, vector: np.ndarray = vector) -> list[str]:
            result = catalogue.search(
                text, mode=mode, k=k, vector=vector, columns=["id"], vector_weight=weight
            )
            return [hit.id for hit in result.hits]

        near, words = ids("vector", DEPTH), ids("text", DEPTH)
        lists = (
            near, words, by_ranks(near, words, 0.5), by_ranks(near, words, weight), ids("hybrid", 10)
        )  # fmt: skip
        for name, ranked in zip(LISTS, lists, strict=True):
            found[name].append(ndcg(ranked, gains))
    return found


def main(
    model: Annotated[str, typer.Argument(help="Name or folder of a model.")] = "starter",
    data: Annotated[Path, typer.Option(help="Folder of the data sets.")] = Path("data"),
    out: Annotated[Path, typer.Option(help="Folder for catalogues and figures.")] = Path("runs/fusion"),
    weight: Annotated[float | None, typer.Option(help="Instead of the measured one.")] = None,
    shuffled: Annotated[bool, typer.Option(help="Give each query another's vector.")] = False,
) -> None:
    """nDCG@10 by vectors, by words and by both, with the weight that `index` measures."""
    figures: dict[str, dict[str, object]] = {}
    for name, read in (("crowdflower", crowdflower), ("fashion", fashion), ("shop", shop)):
        products, queries = read(data)
        catalogue = Catalogue.create(out / name, model)
        if not (out / name / "manifest.json").exists():
            catalogue.embed(products)
        if shuffled:
            shuffled_model: Any = Shuffled(catalogue.model)
            catalogue = Catalogue.open(out / name, shuffled_model)
        measured = Fusion.read(catalogue.index(forget=True).model_dump())
        assert measured is not None
        used = measured.weight if weight is None else weight
        found = score(catalogue, queries, used)
        print(f"{name}: {len(products):,} products, {len(queries)} queries. {measured}")
        figures[name] = {"measured": measured.as_dict(), "used": used, "queries": len(queries)}
        for label, values in found.items():
            one = bootstrap(100 * np.array(values), seed=SEED)
            figures[name][label] = [one.value, one.low, one.high]
            print(f"  {label:16} {one.value:5.1f} ({one.low:.1f} to {one.high:.1f})")
        better = max(("vectors", "words"), key=lambda label: float(np.mean(found[label])))
        gain, _ = paired_means(100 * np.array(found["search"]), 100 * np.array(found[better]), seed=SEED)
        figures[name]["search - better"] = [gain.value, gain.low, gain.high]
        print(f"  search - {better:7} {gain.value:+5.1f} ({gain.low:+.1f} to {gain.high:+.1f})")
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    start(app_of(main))

"""What words, an encoder, both and a reranker find in a catalogue: graded queries, model by model.

    python -m research.studies.encoders starter st:FOLDER --data DATA --out runs/encoders

The queries of the validation split of `relevance/crowdflower`, among the products that were judged for any of
them; a grade g gains 2^(g-1)-1, what was not judged nothing. Every model has a catalogue of its own, made and
searched as `embed`, `index` and `search` do it: words alone (BM25 over title and description), vectors alone,
both fused with the weight that `index` measures without labels, and with `--rerank` the fused list reranked.
nDCG@10 with bootstrapped intervals over queries; the differences are paired. `--titles` leaves descriptions
out. Catalogues in OUT are used again.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import typer
from rich import print

from moonshelf.catalogue.search import Catalogue
from moonshelf.evaluation.statistics.significance import bootstrap, paired_means
from moonshelf.model.encoders import rerankers
from moonshelf.product import Product
from research.script import app_of, start
from research.studies.fusion import Queries, ndcg

WAYS = {"words": "text", "vectors": "vector", "fused": "hybrid"}
PATIENCE = 3600.0  # seconds that a reranker may take for a query: here it is judged by its order


def judged(data: Path, titles: bool) -> tuple[list[Product], Queries]:
    """Products that were judged for a query of the validation split, and the gains of each by id."""
    rows = pq.read_table(data / "relevance/crowdflower.parquet").to_pylist()
    products: dict[tuple[str, str], Product] = {}
    queries: Queries = {}
    for row in (row for row in rows if row["split"] == "validation"):
        key = row["title"], "" if titles else row["description"] or ""
        one = products.setdefault(key, Product(id=f"c{len(products)}", title=key[0], description=key[1]))
        gains = queries.setdefault(row["query"], {})
        gains[one.id] = max(gains.get(one.id, 0.0), 2.0 ** (row["grade"] - 1) - 1)
    return list(products.values()), queries


def score(
    catalogue: Catalogue, queries: Queries, reranker: rerankers.Reranker | None
) -> dict[str, np.ndarray]:
    """nDCG@10 of each query in percent, by way."""
    ways = [(name, mode, None) for name, mode in WAYS.items()]
    found = {}
    for name, mode, again in [*ways, *([("reranked", "hybrid", reranker)] if reranker else [])]:
        lists = [
            catalogue.search(text, mode=mode, columns=["id"], reranker=again, rerank_seconds=PATIENCE).hits
            for text in queries
        ]
        values = [
            ndcg([hit.id for hit in hits], queries[text]) for hits, text in zip(lists, queries, strict=True)
        ]
        found[name] = 100 * np.array(values)
    return found


def main(
    models: Annotated[list[str], typer.Argument(help="Models as `moonshelf embed` takes them.")],
    data: Annotated[Path, typer.Option(help="Folder of the data sets.")] = Path("data"),
    out: Annotated[Path, typer.Option(help="Folder for catalogues and figures.")] = Path("runs/encoders"),
    rerank: Annotated[str | None, typer.Option(help="As --rerank of `moonshelf search`.")] = None,
    titles: Annotated[bool, typer.Option("--titles", help="Leave descriptions out.")] = False,
) -> None:
    """nDCG@10 of words, vectors, both fused, and a reranker, for each model."""
    products, queries = judged(data, titles)
    reranker = rerankers.load(rerank) if rerank else None
    print(f"{len(products):,} products, {len(queries)} queries")
    figures: dict[str, dict[str, list[float]]] = {}
    for model in models:
        name = re.sub(r"\W+", "-", model)[-40:] + ("-titles" if titles else "")
        catalogue = Catalogue.create(out / name, model)
        if not (out / name / "manifest.json").exists():
            catalogue.embed(products, progress=True)
            print(f"{model}: {catalogue.index()}")
        found = score(catalogue, queries, reranker)
        figures[model] = {}
        print(model)
        for way, values in found.items():
            one = bootstrap(values, seed=0)
            more, _ = paired_means(values, found["words"], seed=0)
            figures[model][way] = [one.value, one.low, one.high, more.value, more.low, more.high]
            line = f"  {way:10} {one.value:5.1f} ({one.low:.1f} to {one.high:.1f})"
            print(
                line
                + (
                    f"  to words {more.value:+.1f} ({more.low:+.1f} to {more.high:+.1f})"
                    if way != "words"
                    else ""
                )
            )
            if more.high < 0:
                print(f"  words alone find more than {way}")
    (out / ("figures-titles.json" if titles else "figures.json")).write_text(
        json.dumps(figures, indent=1) + "\n"
    )


if __name__ == "__main__":
    start(app_of(main))

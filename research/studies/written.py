"""Do attributes that one model writes help the vectors of another, without any training?

    python -m research.studies.written st:FOLDER --writer starter --data DATA [--products 800]

The encoder reads each product plain, and with what the writer wrote appended (`encoders.instruct`); queries
are read plain. Paired differences with bootstrapped intervals over queries, on validation splits:

words   queries of `relevance/crowdflower` among the products that were judged for any of them, nDCG@10; the
        writer has read the same title as the encoder.
asked   fashion products by photo and title, asked for by colour and kind ("navy blue shirts"), average
        precision; the writer has seen the photo, the encoder reads words alone.
photos  the same products by their photo alone, searched by their title: recall@10. An encoder of words has
        nothing to read then: plain is chance, drawn at random.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from moonshelf.catalogue.manifest import load_model
from moonshelf.errors import UserError
from moonshelf.evaluation.statistics.significance import bootstrap, paired_means
from moonshelf.feeds import read_feed
from moonshelf.model.encoders.base import asking
from moonshelf.model.encoders.instruct import Reasoned, writer_at
from moonshelf.product import Product
from research.script import app_of, start
from research.studies.encoders import judged

Score = Callable[[np.ndarray, np.ndarray], float]  # similarities (n,), gains (n,) -> a figure of one query


def ndcg(scores: np.ndarray, gains: np.ndarray, k: int = 10) -> float:
    discounts = 1 / np.log2(np.arange(2, k + 2))
    best = np.sort(gains)[::-1][:k]
    return float(
        (gains[np.argsort(-scores, kind="stable")[:k]] * discounts[:k]).sum() / (best * discounts).sum()
    )


def average_precision(scores: np.ndarray, gains: np.ndarray) -> float:
    hits = gains[np.argsort(-scores, kind="stable")] > 0
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def recall(scores: np.ndarray, gains: np.ndarray, k: int = 10) -> float:
    """Of queries with one relevant product, or several that count as one."""
    return float(gains[np.argsort(-scores, kind="stable")[:k]].max() > 0)


def encoded(encoder: Reasoned, products: list[Product], reason: str) -> tuple[np.ndarray, float]:
    """Vectors of all products, zeros where there is nothing to read, and the share of valid rationales."""
    found = encoder.encode(products, reason=reason, on_error="report")  # type: ignore[arg-type]
    vectors = np.zeros((len(products), encoder.dim), np.float32)
    vectors[found.row_index] = found.vectors
    return vectors, found.reasoning_valid_rate


def report(
    name: str, queries: np.ndarray, gains: np.ndarray, plain: np.ndarray, written: np.ndarray, score: Score
) -> dict[str, object]:
    values = [
        np.array([100 * score(q @ side.T, g) for q, g in zip(queries, gains, strict=True)])
        for side in (plain, written)
    ]
    one, two = (bootstrap(value, seed=0) for value in values)
    more, p = paired_means(values[1], values[0], seed=0)
    print(
        f"{name:7} {len(queries):5} queries, {gains.shape[1]:5} products: plain {one.value:5.1f}, "
        f"written {two.value:5.1f}, difference {more.value:+.1f} ({more.low:+.1f} to {more.high:+.1f})",
        flush=True,
    )
    return {"plain": one.value, "written": two.value, "difference": [more.value, more.low, more.high], "p": p}


def fashion(data: Path, most: int) -> list[Product]:
    found = [
        p for p in read_feed(data / "fashion_products/validation-clear.parquet") if isinstance(p, Product)
    ]
    titles = {p.title: p for p in found if p.title and p.images}  # a title has one photo that is right
    return list(titles.values())[:most]


def main(
    encoder: Annotated[str, typer.Argument(help="As --model of `moonshelf embed`.")],
    writer: Annotated[str, typer.Option(help="As --writer.")] = "starter",
    data: Annotated[Path, typer.Option(help="Folder of the data sets.")] = Path("data"),
    products: Annotated[int, typer.Option(help="Products of each set at most.")] = 800,
    out: Annotated[Path | None, typer.Option(help="JSON for the figures.")] = None,
) -> None:
    """Plain vectors against vectors with written attributes, paired."""
    if not (data / "relevance").is_dir():
        raise UserError(f"{data} has no relevance/crowdflower.parquet: name the folder of the data sets.")
    both = Reasoned(load_model(encoder), writer_at(writer))
    asks = asking(both.encoder)

    def read(texts: list[str]) -> np.ndarray:
        vectors: np.ndarray = asks.encode([Product(id=str(i), title=t) for i, t in enumerate(texts)]).vectors
        return vectors

    figures: dict[str, object] = {"encoder": encoder, **both.written_by}
    every, queries = judged(data, titles=True)
    asked = list(queries)[: max(1, products // 10)]
    wanted = {id for query in asked for id in queries[query]}
    shown = [product for product in every if product.id in wanted]
    gains = np.array([[queries[query].get(product.id, 0.0) for product in shown] for query in asked])
    kept = gains.max(1) > 0
    plain, _ = encoded(both, shown, "off")
    written, valid = encoded(both, shown, "on")
    print(f"reasoning_valid_rate {valid:.3f}")
    figures["words"] = report("words", read(asked)[kept], gains[kept], plain, written, ndcg)

    shop = fashion(data, products)
    names = [f"{p.attributes.get('baseColour', '')} {p.category[-1]}".lower() for p in shop]
    kinds = [name for name in sorted(set(names)) if names.count(name) >= 3 and " " in name]
    same = np.array([[float(name == kind) for name in names] for kind in kinds])
    plain, _ = encoded(both, shop, "off")
    written, valid = encoded(both, shop, "on")
    print(f"reasoning_valid_rate {valid:.3f}; {len(kinds)} kinds such as {kinds[:3]}")
    figures["asked"] = report("asked", read(kinds), same, plain, written, average_precision)

    photos = [p.model_copy(update={"title": "", "description": ""}) for p in shop]
    written, valid = encoded(both, photos, "on")
    rng = np.random.default_rng(0)
    nothing = rng.standard_normal(written.shape).astype(np.float32)
    figures["photos"] = report(
        "photos", read([p.title for p in shop]), np.eye(len(shop)), nothing, written, recall
    )
    if out:
        out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    start(app_of(main))

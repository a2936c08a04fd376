"""Draw what the package ships as its sample, into `src/moonshelf/sample/`.

    python -m research.synthetic.render

Photos of products are WebP, a quarter of the size of what `shop.photo` saves, so that all of it stays below
four megabytes. Creatives stay as they are: WebP would blur red letters.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from PIL import Image

from moonshelf import sample
from moonshelf.product import ImageRef, Product
from research.synthetic.campaigns.simulator import simulate
from research.synthetic.feeds import TEXTS, write_creatives, write_products, write_rows
from research.synthetic.shop import make_shop

QUALITY = 80  # of WebP: at 75 the edge of a pattern begins to show blocks
QUERIES_ASKED = 80
CAMPAIGNS, CREATIVES = 12, 4
TRUTH = pa.schema(
    {
        "id": pa.string(), "category": pa.list_(pa.string()), "attributes": TEXTS, "group": pa.string(),
        "omitted": pa.list_(pa.string()),
    }
)  # fmt: skip
GRADES = pa.map_(pa.string(), pa.int8())
QUERIES = pa.schema({"id": pa.string(), "text": pa.string(), "image": pa.binary(), "relevance": GRADES})


def webp(data: bytes) -> bytes:
    """The same picture as WebP."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(data)) as picture:  # noqa: TID251  (our own drawing, and not a stranger's file)
        picture.save(file, "WEBP", quality=QUALITY, method=6)
    return file.getvalue()


def shop(folder: Path, products: int = sample.SIZE) -> None:
    """Write the shop: products, truth and queries."""
    drawn = make_shop(products, sample.SEED, n_queries=QUERIES_ASKED)
    write_products(folder / sample.PRODUCTS.name, _small(drawn.products))
    write_rows(folder / sample.TRUTH.name, map(sample.truth_record, drawn.truth.values()), TRUTH)
    asked = (
        {
            "id": query.id,
            "text": query.text,
            "image": webp(query.image.data) if query.image and query.image.data else None,
            "relevance": query.relevance,
        }
        for query in drawn.queries
    )
    write_rows(folder / sample.QUERIES.name, asked, QUERIES)


def _small(products: list[Product]) -> Iterator[Product]:
    for product in products:
        refs = tuple(ImageRef(data=webp(ref.data or b""), role=ref.role) for ref in product.images)
        yield product.model_copy(update={"images": refs})


def campaigns(folder: Path, count: int = CAMPAIGNS) -> None:
    """Write campaigns of the test split, whose products no selector has seen."""
    drawn = simulate(count, creatives=CREATIVES, seed=sample.SEED, split="test", per_product=1)
    write_creatives(folder / sample.CAMPAIGNS.name, drawn)


def main() -> None:
    shop(sample.FOLDER)
    campaigns(sample.FOLDER)
    for file in sorted(sample.FOLDER.glob("*.parquet")):
        print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

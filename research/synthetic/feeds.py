"""Drawn rows to Parquet, in the form that the readers of the package take.

Products are an ordinary feed, a row each. A row of creatives is a campaign or a pair: its record as JSON, as
`moonshelf.creatives.io.readers.write_campaigns` writes it, and the images of its creatives in their order.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moonshelf.creatives.schema import Campaign, Pair
from moonshelf.product import Product

TEXTS = pa.map_(pa.string(), pa.string())
IMAGE = pa.struct({"bytes": pa.binary(), "role": pa.string()})
PRODUCTS = pa.schema(
    {
        "id": pa.string(), "title": pa.string(), "description": pa.string(),
        "category": pa.list_(pa.string()), "attributes": TEXTS, "brand": pa.string(), "price": pa.float64(),
        "currency": pa.string(), "language": pa.string(), "group_id": pa.string(),
        "availability": pa.string(), "images": pa.list_(IMAGE),
    }
)  # fmt: skip
CREATIVES = pa.schema({"id": pa.string(), "record": pa.string(), "images": pa.list_(pa.binary())})
ROWS = 256  # held at once, and of a row group


def write_rows(path: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> int:
    """Write rows one group after another; returns their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, left = 0, iter(rows)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while some := list(itertools.islice(left, ROWS)):
            writer.write_table(pa.Table.from_pylist(some, schema))
            count += len(some)
    return count


def write_products(path: Path, products: Iterable[Product]) -> int:
    """Write a feed of products whose pictures are in memory; returns their number."""

    def row(product: Product) -> dict[str, Any]:
        images = [{"bytes": ref.data, "role": ref.role} for ref in product.images]
        return product.model_dump(exclude={"images"}) | {"images": images}

    return write_rows(path, map(row, products), PRODUCTS)


def write_creatives(path: Path, rows: Iterable[Campaign | Pair]) -> int:
    """Write campaigns or pairs whose images are in memory; returns their number."""

    def row(one: Campaign | Pair) -> dict[str, Any]:
        creatives = one.creatives if isinstance(one, Campaign) else (one.a, one.b)
        record = one.model_dump(mode="json", exclude_defaults=True, exclude={"creatives", "a", "b"})
        said = [each.model_dump(exclude_defaults=True, exclude={"image"}) for each in creatives]
        record |= {"creatives": said} if isinstance(one, Campaign) else {"a": said[0], "b": said[1]}
        return {"id": one.id, "record": json.dumps(record), "images": [each.image.data for each in creatives]}

    return write_rows(path, map(row, rows), CREATIVES)

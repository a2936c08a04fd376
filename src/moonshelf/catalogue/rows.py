"""What a stored row holds besides the vector: the record's columns, the search text, the thumbnail."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from moonshelf.attributes import canonical
from moonshelf.images import perceptual_hash
from moonshelf.product import Product
from moonshelf.prompts import CATEGORY_SEPARATOR, clean_text

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL_SIDE = 192
_MAX_TEXT = 20_000  # characters of a row that full-text search reads


def metadata_of(product: Product) -> dict[str, Any]:
    """Columns of a row that come from the record and not from the model."""
    attributes = canonical(product.attributes)
    return {
        "title": product.title,
        "description": product.description,
        "brand": product.brand,
        "price": product.price,
        "currency": product.currency,
        "category": CATEGORY_SEPARATOR.join(product.category),
        "category_leaf": product.category[-1] if product.category else None,
        "attributes": to_json(product.attributes),
        **{name: attributes.get(name) for name in ("colour", "material", "pattern", "gender", "size")},
        "group_id": product.group_id,
        "gtin": product.gtin,
        "mpn": product.mpn,
        "link": product.link,
        "availability": product.availability,
        "language": product.language,
    }


def full_text(row: dict[str, Any], rationale: str) -> str:
    """What full-text search reads: names before descriptions, tags and markup gone."""
    values = " ".join(str(value) for value in json.loads(row["attributes"]).values())
    parts = [row["title"], row["brand"], row["category"], values, rationale, row["description"]]
    return "\n".join(clean_text(part) for part in parts if part)[:_MAX_TEXT]


def to_json(pairs: dict[str, str]) -> str:
    return json.dumps(pairs, ensure_ascii=False, sort_keys=True)


def picture_columns(picture: Image | None) -> dict[str, Any]:
    """Thumbnail (re-encoded JPEG without metadata) and perceptual hash of a product's first picture."""
    if picture is None:
        return {"thumbnail": None, "picture_hash": None}
    picture.info.clear()  # comments and profiles of the original would be saved along
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=82)
    return {"thumbnail": file.getvalue(), "picture_hash": perceptual_hash(picture)}

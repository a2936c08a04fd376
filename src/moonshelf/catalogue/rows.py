"""What a stored row holds besides the vector: the record's columns, the text fields, the thumbnail.

Words are searched in three fields: `text` is the record, `written` what the model wrote about it, and `codes`
the identifiers, each without separators and leading zeros, so that they are found however they are typed.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from moonshelf.attributes import canonical, fold
from moonshelf.identifiers import is_placeholder
from moonshelf.images import perceptual_hash
from moonshelf.product import Product
from moonshelf.prompts import CATEGORY_SEPARATOR, END_THINK, THINK, clean_text, read_rationale

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL_SIDE = 192
WRITTEN = ("category", "colour", "material", "pattern", "gender")  # with a column of their own, for filters
_MAX_TEXT = 20_000  # characters of a row that full-text search reads
_CODES = frozenset((  # names under which feeds give identifiers beside those of a Product, folded
    "sku", "variant sku", "asin", "ean", "upc", "isbn", "gtin", "barcode", "variant barcode", "mpn", "code",
    "item code", "product code", "style code", "article number", "part number", "model number", "item number",
))  # fmt: skip
_SEPARATORS = re.compile(r"[\W_]+")
_WORDS_OF_A_CODE = 4  # "AB 12 34 56" is looked for as one


def schema(dim: int) -> pa.Schema:
    text = pa.string()
    return pa.schema(
        [
            pa.field("id", text, nullable=False),
            pa.field("key", pa.int64(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
            pa.field("content_hash", text, nullable=False),
            pa.field("record_hash", text, nullable=False),
            ("reason", text),
            ("rationale", text),
            ("rationale_valid", pa.bool_()),
            ("reasoned_attributes", text),  # JSON of the rationale's pairs, canonical keys
            ("weight_image", pa.float32()),
            ("weight_text", pa.float32()),
            ("weight_rationale", pa.float32()),
            ("tokens", pa.int32()),
            ("title", text),
            ("description", text),
            ("brand", text),
            ("price", pa.float64()),
            ("currency", text),
            ("category", text),  # path joined with " > "
            ("category_leaf", text),
            ("attributes", text),  # JSON as in the feed
            ("colour", text),  # canonical values of the attributes that people filter by
            ("material", text),
            ("pattern", text),
            ("gender", text),
            ("size", text),
            ("group_id", text),
            ("gtin", text),
            ("mpn", text),
            ("link", text),
            ("availability", text),
            ("language", text),
            ("pictures", pa.int32()),  # pictures that the model read
            ("thumbnail", pa.binary()),  # JPEG, re-encoded, no metadata
            ("picture_hash", pa.int64()),  # perceptual hash of the first picture
            ("text", text),  # what full-text search reads of the record
            ("written", text),  # … and of the rationale
            ("codes", text),  # identifiers as `rows.code` has them
            *((f"written_{name}", text) for name in WRITTEN),  # the rationale's, for filters
        ]
    )


def metadata_of(product: Product) -> dict[str, Any]:
    """Columns of a row that come from the record and not from the model."""
    attributes = canonical(product.attributes)
    more = [*_variants(product.extra), *product.attributes.items(), *product.extra.items()]
    named = [product.gtin, product.mpn, *(value for name, value in more if fold(name) in _CODES)]
    return {
        "codes": codes_text([product.id, *(v for v in named if v and not is_placeholder(v))]),
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


def _variants(extra: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names and values of the variants that a reader has joined to one product (see `feeds.shopify`)."""
    try:
        for cells in json.loads(extra.get("variants", "[]")):
            yield from ((str(name), str(value)) for name, value in cells.items())
    except (ValueError, TypeError, AttributeError, RecursionError):
        return


def full_text(row: Mapping[str, Any]) -> str:
    """What full-text search reads of the record: names before descriptions, tags and markup gone."""
    values = " ".join(str(value) for value in json.loads(row["attributes"]).values())
    parts = [row["title"], row["brand"], row["category"], values, row["description"]]
    return "\n".join(clean_text(part) for part in parts if part)[:_MAX_TEXT]


def written_columns(rationale: str) -> dict[str, Any]:
    """Columns of a row that hold what the model wrote, in the form in which attributes are kept."""
    pairs = read_rationale(rationale) if rationale else None
    body = rationale.removeprefix(THINK).removesuffix(END_THINK)
    plain = body if pairs is None else "\n".join(pairs.values())
    found = canonical(pairs or {})
    return {
        "reasoned_attributes": to_json(found),
        "written": clean_text(plain)[:_MAX_TEXT],
        **{f"written_{name}": found.get(name) for name in WRITTEN},
    }


def code(text: str) -> str:
    """An identifier as it is compared: case, separators and leading zeros gone."""
    bare = _SEPARATORS.sub("", text.casefold())
    return bare.lstrip("0") or bare[:1]


def codes_text(values: Iterable[str | None]) -> str:
    return " ".join(sorted({found for value in values if value and (found := code(value))}))


def codes_in(words: str) -> list[str]:
    """Identifiers that a query may name: the whole of it, and words or a few together that look like one.

    Within other words a number needs six digits and anything else four characters with a digit among them,
    since "2 seater" does not ask for the product 2.
    """
    found = dict.fromkeys([code(words)])
    parts = words.split()[:64]
    for start in range(len(parts)):
        for end in range(start + 1, min(start + _WORDS_OF_A_CODE, len(parts)) + 1):
            one = code("".join(parts[start:end]))
            if len(one) >= (6 if one.isdigit() else 4) and any(c.isdigit() for c in one):
                found[one] = None
    return [one for one in found if one]


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

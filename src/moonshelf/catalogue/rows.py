"""The rows of the store: their columns, and how they are made of products and of what the model gave.

Two hashes decide. `content_hash` covers what the model reads: the prompt's text, the bytes of the pictures,
the reasoning mode; if it changes the row is embedded again. `record_hash` covers the whole record; if only
that changes (a price, an availability) the row is updated and the model is not called.

Words are searched in three fields: `text` is the record, `written` what the model wrote about it, and `codes`
the identifiers, each without separators and leading zeros, so that they are found however they are typed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from moonshelf import images
from moonshelf.attributes import canonical, fold
from moonshelf.identifiers import is_placeholder
from moonshelf.product import ImageRef, Product
from moonshelf.prompts import CATEGORY_SEPARATOR, END_THINK, THINK, PromptSpec, clean_text, read_rationale

if TYPE_CHECKING:
    from PIL.Image import Image

Hashes = tuple[str, str]  # (content hash, record hash)

THUMBNAIL_SIDE = 192
WRITTEN = ("category", "colour", "material", "pattern", "gender")  # with a column of their own, for filters
_MAX_TEXT = 20_000  # characters of a row that full-text search reads
_CODES = frozenset((  # names under which feeds give identifiers beside those of a Product, folded
    "sku", "variant sku", "asin", "ean", "upc", "isbn", "gtin", "barcode", "variant barcode", "mpn", "code",
    "item code", "product code", "style code", "article number", "part number", "model number", "item number",
))  # fmt: skip
_SEPARATORS = re.compile(r"[\W_]+")
_WORDS_OF_A_CODE = 4  # "AB 12 34 56" is looked for as one


def key_of(id: str) -> int:
    """Stable non-negative 63-bit key of a product id."""
    data = id.encode(errors="surrogatepass")  # an id of no valid Unicode is not stored, but may be asked for
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1


# What people filter by, as `attributes.canonical` has it; FIELDS are those that they click, EXACT are
# compared as they stand, PAIRS are JSON objects: of the feed, and of the rationale with canonical keys.
ATTRIBUTES = ("colour", "material", "pattern", "gender", "size")
FIELDS = ("brand", "category", *ATTRIBUTES, "availability", "language")
EXACT = ("id", "currency", "group_id", "gtin", "mpn")
PAIRS = ("attributes", "reasoned_attributes")
TYPES = {  # of the columns that are no text
    "key": pa.int64(), "rationale_valid": pa.bool_(), "price": pa.float64(), "tokens": pa.int32(),
    "weight_image": pa.float32(), "weight_text": pa.float32(), "weight_rationale": pa.float32(),
    "pictures": pa.int32(),  # that the model was given
    "thumbnail": pa.binary(),  # JPEG, re-encoded, no metadata
    "picture_hash": pa.int64(),  # perceptual hash of the first picture
}  # fmt: skip
NAMES = (  # in the order of the table; `category` is a path joined with " > "
    "id", "key", "vector", "content_hash", "record_hash", "reason", "rationale", "rationale_valid",
    "reasoned_attributes", "weight_image", "weight_text", "weight_rationale", "tokens", "title",
    "description", "brand", "price", "currency", "category", "category_leaf", "attributes", *ATTRIBUTES,
    "group_id", "gtin", "mpn", "link", "availability", "language", "pictures", "thumbnail", "picture_hash",
    # what full-text search reads of the record and of the rationale; identifiers as `code` has them
    "text", "written", "codes", *(f"written_{name}" for name in WRITTEN),
)  # fmt: skip
_INTERNAL = {"vector", "content_hash", "record_hash", "reason", "link", "text", "written", "codes", *TYPES}
# What a condition may name, in the order in which messages list it.
_NAMED = (name for name in NAMES if name not in _INTERNAL - {"price", "rationale_valid"})
COLUMNS = tuple(dict.fromkeys(("id", "title", "brand", "price", *_NAMED)))


def schema(dim: int) -> pa.Schema:
    types = {**TYPES, "vector": pa.list_(pa.float32(), dim)}
    return pa.schema(
        [pa.field(name, types.get(name, pa.string()), nullable=i >= 5) for i, name in enumerate(NAMES)]
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
        **{name: attributes.get(name) for name in ATTRIBUTES},
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
    return {"thumbnail": file.getvalue(), "picture_hash": images.perceptual_hash(picture)}


# ---- from a product to a row -----------------------------------------------------------------------


class RowRejected(Exception):
    """A product that cannot be stored. `field` and `reason` are those of a `Problem`."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field, self.reason = field, reason


@dataclass(frozen=True)
class PreparedRow:
    """A product and its `state`, which says what it needs: `new` and `changed` the model, `metadata` a new
    record, `unchanged` nothing.

    `product` is what the model reads: of a new or changed one only the pictures that decode, their bytes
    inside. `row` holds the columns that do not come from the model, of an unchanged one only its hashes.
    """

    product: Product
    row: dict[str, Any]
    state: str
    warnings: list[str] = field(default_factory=list)  # pictures that were left out, and why

    @property
    def known(self) -> bool:
        """The store held the product when it was looked up."""
        return self.state != "new"


def prepare_row(
    product: Product,
    prompt: PromptSpec,
    reason: str,
    known: Hashes | None,
    *,
    fetcher: images.Fetcher | None = None,
    root: str | Path | None = None,
    allow_text_only: bool = False,
) -> PreparedRow:
    """What to do with a product whose stored hashes are `known` (None: the store does not hold it).

    Pictures are read once, and the bytes that are hashed are the bytes that the model gets. A path outside
    `root` is refused. Raises RowRejected for a product that cannot be stored: no picture of it decodes
    (unless `allow_text_only`, and it has a text), it has neither picture nor text, or it is no valid Unicode.
    """
    still = kept(known is not None)
    text = prompt.text_of(product)
    pictures: list[tuple[ImageRef, bytes]] = []
    read: list[str] = []  # what each reference gave: the hash of its bytes, or the reason why not
    broken: list[str] = []
    for ref in product.images[: prompt.max_images]:
        try:
            data = images.read_bytes(ref, root=root if ref.path else None, fetcher=fetcher)
        except images.ImageError as error:
            read.append(f"!{error.code}")
            broken.append(str(error))
        else:
            read.append(hashlib.sha256(data).hexdigest())
            pictures.append((ref, data))
    content = hashlib.sha256(json.dumps([text, reason, read]).encode()).hexdigest()
    try:
        record = product.content_hash([*(data for _, data in pictures), content.encode()])
    except UnicodeEncodeError:
        raise RowRejected("row", "it holds text that is not valid Unicode" + still) from None
    row: dict[str, Any] = {"id": product.id, "content_hash": content, "record_hash": record}
    if known == (content, record):  # most rows of most runs: no column is made of them
        return PreparedRow(product, row, "unchanged")
    row |= metadata_of(product)
    if known is not None and known[0] == content:
        return PreparedRow(product, row, "metadata")
    usable, columns = _decodable(pictures, broken)
    if product.images and not usable and not (allow_text_only and text):
        raise RowRejected("images", f"no picture can be used: {broken[0]}{still}")
    if not usable and not text:
        raise RowRejected("row", f"it has neither a picture nor a {' or '.join(prompt.text_fields)}{still}")
    row.update(reason=reason, **columns)
    refs = tuple(ImageRef(data=data, role=ref.role) for ref, data in usable)
    return PreparedRow(
        product.model_copy(update={"images": refs}),
        row,
        "new" if known is None else "changed",
        [f"a picture was left out: {reason}" for reason in broken],
    )


def _decodable(
    pictures: list[tuple[ImageRef, bytes]], broken: list[str]
) -> tuple[list[tuple[ImageRef, bytes]], dict[str, Any]]:
    """Pictures that decode, and the columns of the first; a reason in `broken` for each of the others."""
    usable: list[tuple[ImageRef, bytes]] = []
    first = None
    for ref, data in pictures:
        try:
            picture = images.decode(data, max_side=THUMBNAIL_SIDE)
        except images.ImageError as error:
            broken.append(str(error))
            continue
        usable.append((ref, data))
        first = first or picture
    return usable, {"pictures": len(usable), **picture_columns(first)}


def build_row(
    prepared: PreparedRow,
    vector: np.ndarray,
    weights: Sequence[float],
    rationale: str,
    valid: bool,
    tokens: int,
) -> dict[str, Any]:
    """The whole row: what was prepared and what the model gave for it.

    `vector` (dim,) is of unit length, else RowRejected; `weights` are the shares of picture, text and
    rationale.
    """
    vector = np.asarray(vector, dtype=np.float32)
    norm = float(np.linalg.norm(vector))
    if not abs(norm - 1) < 1e-2:  # NaN fails too
        reason = f"the model gave a vector of length {norm:.3g} instead of 1"
        raise RowRejected("vector", reason + kept(prepared.known))
    image, text, reasoning = (float(weight) for weight in weights)
    return {
        **prepared.row,
        "key": key_of(prepared.row["id"]),
        "vector": vector,
        "rationale": rationale,
        "rationale_valid": bool(valid),
        **written_columns(rationale),
        "weight_image": image,
        "weight_text": text,
        "weight_rationale": reasoning,
        "tokens": int(tokens),
        "text": full_text(prepared.row),
    }


def with_record(stored: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """A stored row under a new record: vector, rationale and picture stay."""
    merged = {**stored, **row}
    return {**merged, "text": full_text(merged)}


def kept(known: bool) -> str:
    """What a reason says on top where the store goes on holding the product."""
    return "; the version embedded earlier stays" if known else ""

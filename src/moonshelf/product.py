"""The one product record, and the reference to one of its pictures.

A `Product` is what every reader yields and everything else takes: the model, the catalogue, the
benchmark. It holds references to pictures, never decoded pixels, so a list of a million products stays
small; `moonshelf.images` turns a reference into pixels. Unknown columns of a feed go to `extra` and are
never dropped.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MAX_ID = 256  # characters; longer identifiers are refused, they are nearly always a mapping mistake


class ImageRef(BaseModel):
    """Where the bytes of one picture are: exactly one of `data`, `path`, `url`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: bytes | None = Field(default=None, repr=False)
    path: str | None = None
    url: str | None = None
    role: str | None = None  # main, alternate, back, variant …, as the feed calls it

    @model_validator(mode="after")
    def _one_source(self) -> ImageRef:
        if sum(source is not None for source in (self.data, self.path, self.url)) != 1:
            raise ValueError("an image needs exactly one of data, path, url")
        return self

    @property
    def name(self) -> str:
        """Short name for messages; never the bytes."""
        return self.path or self.url or f"{len(self.data or b'')} bytes in the feed"


def clean_id(value: str) -> str:
    value = value.strip()
    if not value:
        raise ValueError("the id is empty")
    if len(value) > MAX_ID:
        raise ValueError(f"the id has {len(value)} characters, at most {MAX_ID} are taken")
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise ValueError("the id holds control characters")
    return value


def _clean_price(value: float | None) -> float | None:
    if value is not None and (not math.isfinite(value) or value < 0):
        raise ValueError("the price is negative or not a number")
    return value


class Product(BaseModel):
    """One catalogue record. Only `id` is required; a product needs a text or a picture to be embedded."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, AfterValidator(clean_id)]
    title: str = ""
    description: str = ""
    images: tuple[ImageRef, ...] = ()
    category: tuple[str, ...] = ()  # path from the root to the leaf
    attributes: dict[str, str] = Field(default_factory=dict)  # colour, material, size …
    brand: str | None = None
    price: Annotated[float | None, AfterValidator(_clean_price)] = None
    currency: str | None = None  # ISO 4217, upper case
    language: str | None = None  # BCP 47
    group_id: str | None = None  # variants of one product share it
    gtin: str | None = None
    mpn: str | None = None
    link: str | None = None
    availability: str | None = None
    extra: dict[str, str] = Field(default_factory=dict)

    def content_hash(self, image_bytes: list[bytes] | None = None) -> str:
        """SHA-256 (hex) of everything in the record, with the pictures by their bytes where given.

        Two records with the same hash need not be embedded twice. `image_bytes` replaces the references:
        a picture that moved to another address but did not change keeps the product's hash.
        """
        record: dict[str, Any] = self.model_dump(exclude={"images"})
        digest = hashlib.sha256(json.dumps(record, sort_keys=True, ensure_ascii=False).encode())
        if image_bytes is None:
            pictures = [ref.data or ref.name.encode() for ref in self.images]
        else:
            pictures = image_bytes
        for picture in pictures:
            digest.update(hashlib.sha256(picture).digest())
        return digest.hexdigest()

"""Embedding classes for LangChain, LlamaIndex and Haystack, each in a module of its own, behind an extra.

They turn texts and pictures into the vectors that a catalogue of the same model holds, so a vector store that
one of these frameworks keeps and a Moonshelf catalogue answer alike. What they share is here.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from io import BytesIO
from pathlib import Path

from moonshelf.catalogue.manifest import load_model, name_of
from moonshelf.model.encoders.base import Encoder, asking
from moonshelf.product import ImageRef, Product

Picture = str | Path | bytes | BytesIO  # a file by its path, or its bytes; nothing is fetched


class Vectors:
    """Texts, pictures and products to unit vectors as lists; the model is loaded when it is first needed.

    A text or a picture that cannot be embedded raises `model.encoders.base.EncodingError`, a ValueError
    that says which one and why.

    Examples:
        >>> vectors = Vectors("starter")
        >>> one, other = vectors.texts(["red running shoes", "a blue mug"])
        >>> len(one), round(sum(x * x for x in one), 3)
        (256, 1.0)
    """

    def __init__(self, model: Encoder | str = "starter") -> None:
        self.given, self.name = model, name_of(model)

    @cached_property
    def encoder(self) -> Encoder:
        return load_model(self.given) if isinstance(self.given, str) else self.given

    def texts(self, texts: Iterable[str], query: bool = False) -> list[list[float]]:
        return self.products([Product(id=str(i), title=text) for i, text in enumerate(texts)], query)

    def pictures(self, pictures: Iterable[Picture]) -> list[list[float]]:
        refs = [picture_of(picture) for picture in pictures]
        return self.products([Product(id=str(i), images=(ref,)) for i, ref in enumerate(refs)])

    def products(self, products: list[Product], query: bool = False) -> list[list[float]]:
        """Products with a title, pictures or both, in their order; `query`: they are searched for."""
        encoder = asking(self.encoder) if query else self.encoder
        numbers: list[list[float]] = encoder.encode(products).vectors.tolist()
        return numbers


def picture_of(picture: Picture) -> ImageRef:
    """A reference to a picture as the frameworks hand it over."""
    if isinstance(picture, BytesIO):
        picture = picture.getvalue()
    return ImageRef(data=picture) if isinstance(picture, bytes) else ImageRef(path=str(picture))

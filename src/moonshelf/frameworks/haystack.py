"""Haystack: `MoonshelfTextEmbedder` for queries, `MoonshelfDocumentEmbedder` for documents with a text, a
picture or both. Needs moonshelf[haystack]."""

from __future__ import annotations

import mimetypes
from dataclasses import replace
from typing import Any

from haystack import Document, component, default_to_dict

from moonshelf.frameworks import Vectors, picture_of
from moonshelf.product import Product


@component
class MoonshelfTextEmbedder:
    """A text (a query) to its `embedding`, (dim,) floats of unit length.

    Examples:
        >>> len(MoonshelfTextEmbedder("starter").run(text="red running shoes")["embedding"])
        256
    """

    def __init__(self, model: str = "starter") -> None:
        self.model, self._vectors = model, Vectors(model)

    def to_dict(self) -> dict[str, Any]:
        return default_to_dict(self, model=self.model)

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        return {"embedding": self._vectors.texts([text], query=True)[0]}


@component
class MoonshelfDocumentEmbedder:
    """Documents with their `embedding`: of the content, and of the picture that `blob` holds or that
    `meta["file_path"]` names, in one vector."""

    def __init__(self, model: str = "starter") -> None:
        self.model, self._vectors = model, Vectors(model)

    def to_dict(self) -> dict[str, Any]:
        return default_to_dict(self, model=self.model)

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        vectors = self._vectors.products([_product(i, one) for i, one in enumerate(documents)])
        return {"documents": [replace(d, embedding=v) for d, v in zip(documents, vectors, strict=True)]}


def _product(place: int, document: Document) -> Product:
    path, blob = str(document.meta.get("file_path") or ""), document.blob
    pictures: list[Any] = [blob.data] if blob and (blob.mime_type or "image/").startswith("image/") else []
    if not pictures and (mimetypes.guess_type(path)[0] or "").startswith("image/"):  # else a text's own file
        pictures = [path]
    return Product(id=str(place), title=document.content or "", images=tuple(map(picture_of, pictures)))

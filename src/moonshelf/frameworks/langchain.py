"""LangChain: `MoonshelfEmbeddings`, for any store that takes an `Embeddings`. Needs moonshelf[langchain]."""

from __future__ import annotations

from collections.abc import Iterable

from langchain_core.embeddings import Embeddings

from moonshelf.frameworks import Picture, Vectors
from moonshelf.model.encoders.base import Encoder
from moonshelf.product import Product


class MoonshelfEmbeddings(Embeddings):
    """Texts, pictures and products in one space, (dim,) floats of unit length each.

    `embed_image` is the name by which stores with pictures, such as Chroma, look for the picture side.

    Examples:
        >>> from langchain_core.vectorstores import InMemoryVectorStore
        >>> store = InMemoryVectorStore(MoonshelfEmbeddings("starter"))
        >>> _ = store.add_texts(["leather handbag", "running shoes", "wrist watch"])
        >>> store.similarity_search("handbag", k=1)[0].page_content
        'leather handbag'
    """

    def __init__(self, model: Encoder | str = "starter") -> None:
        self.vectors = Vectors(model)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.vectors.texts(texts)

    def embed_query(self, text: str) -> list[float]:
        return self.vectors.texts([text], query=True)[0]

    def embed_image(self, uris: Iterable[Picture]) -> list[list[float]]:
        """Pictures by their paths (or bytes)."""
        return self.vectors.pictures(uris)

    def embed_products(self, products: list[Product]) -> list[list[float]]:
        """Products with a title and pictures: one vector for both."""
        return self.vectors.products(products)

"""LlamaIndex: `MoonshelfEmbedding`, for `Settings.embed_model` and for the picture side of
`MultiModalVectorStoreIndex`. Needs moonshelf[llama-index]."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import ImageType
from pydantic import PrivateAttr

from moonshelf.frameworks import Vectors
from moonshelf.model.encoders.base import Encoder


class MoonshelfEmbedding(MultiModalEmbedding):
    """Texts and pictures in one space, (dim,) floats of unit length each; `options` are the base class's.

    Examples:
        >>> model = MoonshelfEmbedding("starter")
        >>> bool(model.similarity(model.get_query_embedding("bag"), model.get_text_embedding("a bag")) > 0.5)
        True
    """

    _vectors: Vectors = PrivateAttr()

    def __init__(self, model: Encoder | str = "starter", **options: Any) -> None:
        vectors = Vectors(model)
        super().__init__(**{"model_name": vectors.name, **options})
        self._vectors = vectors

    @classmethod
    def class_name(cls) -> str:
        return "MoonshelfEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._vectors.texts([query], query=True)[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._vectors.texts([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._vectors.texts(texts)

    def _get_image_embedding(self, img_file_path: ImageType) -> list[float]:
        return self._vectors.pictures([img_file_path])[0]

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[list[float]]:
        return self._vectors.pictures(img_file_paths)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_image_embedding(self, img_file_path: ImageType) -> list[float]:
        return await asyncio.to_thread(self._get_image_embedding, img_file_path)

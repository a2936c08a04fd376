"""A collection as an index of OpenSearch or Elasticsearch: a mapping, and bulk requests by their own clients.

Both clients are tested against a stub that answers as the documented protocol does, not against a server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moonshelf.catalogue.rows import FIELDS
from moonshelf.errors import UserError

_PROPERTIES: dict[str, Any] = {
    "id": {"type": "keyword"}, "title": {"type": "text"}, "price": {"type": "double"},
    "hash": {"type": "keyword", "index": False}, **{name: {"type": "keyword"} for name in FIELDS},
}  # fmt: skip


class OpenSearch:
    """An index of its own; a document's `_id` is the key."""

    def __init__(self, url: str, collection: str, dim: int) -> None:
        self._name = collection
        self._client, self._helpers = self.client(url)
        if not self._client.indices.exists(index=collection):
            self.create(dim)
        mapping = self._client.indices.get_mapping(index=collection)[collection]["mappings"]
        vector = mapping.get("properties", {}).get("vector", {})
        self.dim = int(vector.get("dimension", vector.get("dims", 0)))

    def client(self, url: str) -> tuple[Any, Any]:
        """The client and its helpers."""
        import opensearchpy

        user = os.environ.get("OPENSEARCH_USER")
        auth = (user, os.environ.get("OPENSEARCH_PASSWORD", "")) if user else None
        return opensearchpy.OpenSearch(url, http_auth=auth, timeout=60), opensearchpy.helpers

    def create(self, dim: int) -> None:
        method = {"name": "hnsw", "space_type": "innerproduct", "engine": "faiss"}
        vector = {"type": "knn_vector", "dimension": dim, "method": method}
        body = {"settings": {"index": {"knn": True}}, "mappings": _mapping(vector)}
        self._client.indices.create(index=self._name, body=body)

    def upsert(self, ids: np.ndarray, vectors: np.ndarray, metadata: Sequence[Mapping[str, Any]]) -> None:
        self._bulk(
            {"_op_type": "index", "_id": str(key), "_source": {"vector": vector, **one}}
            for key, vector, one in zip(ids.tolist(), vectors.tolist(), metadata, strict=True)
        )

    def delete(self, ids: np.ndarray) -> None:
        self._bulk({"_op_type": "delete", "_id": str(key)} for key in ids.tolist())

    def _bulk(self, actions: Iterator[dict[str, Any]]) -> None:
        """One request, after which readers see it. Raises UserError with the first row that was refused."""
        named = ({"_index": self._name, **action} for action in actions)
        _, errors = self._helpers.bulk(self._client, named, raise_on_error=False, refresh=True)
        for error in errors:
            ((what, result),) = error.items()
            if not (what == "delete" and result.get("status") == 404):
                raise UserError(f"{self._name} refused the row {result.get('_id')}: {_reason(result)}.")

    def count(self) -> int:
        return int(self._client.count(index=self._name)["count"])

    def hashes(self) -> dict[int, str]:
        query = {"query": {"match_all": {}}, "_source": ["hash"]}
        found = self._helpers.scan(self._client, query=query, index=self._name, size=10_000)
        return {int(one["_id"]): one.get("_source", {}).get("hash", "") for one in found}


class Elasticsearch(OpenSearch):
    """The same for Elasticsearch 8 and later, whose vectors and client differ."""

    def client(self, url: str) -> tuple[Any, Any]:
        import elasticsearch
        from elasticsearch import helpers

        key = os.environ.get("ELASTIC_API_KEY")
        return elasticsearch.Elasticsearch(url, api_key=key, request_timeout=60), helpers

    def create(self, dim: int) -> None:
        # Vectors are of unit length, up to rounding: max_inner_product asks for no exact length.
        vector = {"type": "dense_vector", "dims": dim, "index": True, "similarity": "max_inner_product"}
        self._client.indices.create(index=self._name, mappings=_mapping(vector))


def _mapping(vector: Mapping[str, Any]) -> dict[str, Any]:
    return {"dynamic": "strict", "properties": {"vector": vector, **_PROPERTIES}}


def _reason(result: Mapping[str, Any]) -> str:
    error = result.get("error", {})
    return str(error.get("reason", error) if isinstance(error, Mapping) else error)[:200]

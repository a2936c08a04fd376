"""A catalogue's vectors in a vector database: Qdrant or Milvus, behind one small interface.

The store stays the truth; `push` makes a collection a copy of it, to be searched by whoever needs a cluster.
Of a row go the key, the vector, the id, the price, and what `rows.FIELDS` filters by, each field as a list
of strings: a category as its path and all paths above it, so that asking for one finds what lies below it.

Both adapters were run against their clients' local modes only (`:memory:` or a folder, a `.db` file), never
against a server. Credentials come from the environment: QDRANT_API_KEY, MILVUS_TOKEN.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from moonshelf.catalogue.filters import stored_values
from moonshelf.catalogue.rows import FIELDS
from moonshelf.errors import UserError
from moonshelf.prompts import CATEGORY_SEPARATOR

if TYPE_CHECKING:
    from moonshelf.catalogue.store import Store

BACKENDS = ("qdrant", "milvus")
_BATCH = 500  # rows a request; with 256 dimensions about 1 MB
_PAGE = 10_000  # keys a request

Hits = list[list[tuple[int, float]]]


@dataclass(frozen=True)
class Filters:
    """Rows that have, in each field of `any_of` that names values, one of them, and a price within bounds
    that count as inside; a row without a price passes no bound. As `filters.to_condition`."""

    any_of: Mapping[str, Sequence[str]] = field(default_factory=dict)
    price_min: float | None = None
    price_max: float | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.any_of) - set(FIELDS)):
            raise UserError(f"there is no filter {unknown[0]!r}: use one of {', '.join(FIELDS)}.")
        for bound in (self.price_min, self.price_max):
            if bound is not None and not math.isfinite(bound):
                raise UserError("a price in a filter must be a finite number.")

    def values(self) -> dict[str, list[str]]:
        """Field -> values in the form in which they are stored; fields that name none are left out."""
        return {name: stored_values(name, some) for name, some in self.any_of.items() if some}


class RemoteIndex(Protocol):
    """Vectors by key. Each call has taken effect, for every reader, once it returns."""

    def upsert(self, ids: np.ndarray, vectors: np.ndarray, metadata: Sequence[Mapping[str, Any]]) -> None:
        """Put rows in, over those of the same key: ids (n,) int64 ≥ 0, vectors (n, dim) float32."""

    def delete(self, ids: np.ndarray) -> None:
        """Take rows out; unknown keys do no harm."""

    def search(self, vectors: np.ndarray, k: int, filters: Filters | None = None) -> Hits:
        """(key, inner product) of the k nearest for each of (m, dim) vectors, best first."""

    def count(self) -> int: ...

    def ids(self) -> np.ndarray:
        """All keys, (n,) int64, sorted."""


def metadata_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What an adapter keeps of a row of the store beside its vector."""
    found: dict[str, Any] = {name: [row[name]] if row.get(name) else [] for name in FIELDS}
    steps = row["category"].split(CATEGORY_SEPARATOR) if row.get("category") else []
    found["category"] = [CATEGORY_SEPARATOR.join(steps[: n + 1]) for n in range(len(steps))]
    return {"id": row["id"], "price": row.get("price"), **found}


@dataclass(frozen=True)
class Pushed:
    """What `push` did."""

    written: int
    deleted: int
    rows: int

    def as_dict(self) -> dict[str, int]:
        return {"written": self.written, "deleted": self.deleted, "rows": self.rows}


def push(store: Store, remote: RemoteIndex, say: Callable[[str], None] = lambda text: None) -> Pushed:
    """Make a collection a copy of the store. What is written is of one version of the store; a run that was
    stopped is simply run again."""
    names = ["key", "vector", "id", "price", *FIELDS]
    total, keys = len(store), []
    written = 0
    for batch in store.batches(names, _BATCH):
        ids = batch["key"].to_numpy()
        vectors = batch["vector"].flatten().to_numpy(zero_copy_only=False).reshape(len(ids), -1)
        rows = batch.drop_columns(["key", "vector"]).to_pylist()
        remote.upsert(ids, vectors, [metadata_of(row) for row in rows])
        keys.append(ids)
        written += len(ids)
        if written // 10_000 > (written - len(ids)) // 10_000:
            say(f"{written:,} of {total:,} products")
    gone = np.setdiff1d(remote.ids(), np.concatenate(keys) if keys else np.empty(0, np.int64))
    for start in range(0, len(gone), _PAGE):
        remote.delete(gone[start : start + _PAGE])
    return Pushed(written, len(gone), remote.count())


def connect(backend: str, url: str, collection: str, dim: int) -> RemoteIndex:
    """The collection, made if it is not there. Raises UserError for an unknown backend, one that is not
    installed, an address that does not answer, and a collection of another dimension."""
    makers: dict[str, Callable[[str, str, int], RemoteIndex]] = {"qdrant": Qdrant, "milvus": Milvus}
    if backend not in makers:
        raise UserError(f"there is no backend {backend!r}: use one of {', '.join(BACKENDS)}.")
    try:
        return makers[backend](url, collection, dim)
    except ImportError as error:
        raise UserError(f"{backend} needs {error.name}: install moonshelf[{backend}].") from None
    except UserError:
        raise
    except Exception as error:  # of either client, gRPC or HTTP underneath
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{backend} at {url} cannot be used: {reason}.") from None


class Qdrant:
    """A collection of Qdrant, over HTTP, or in memory or a folder in this process."""

    def __init__(self, url: str, collection: str, dim: int) -> None:
        from qdrant_client import QdrantClient, models

        self._m, self._name = models, collection
        if url.startswith(("http://", "https://")):
            self._client = QdrantClient(url=url, api_key=os.environ.get("QDRANT_API_KEY"))
        elif url == ":memory:":
            self._client = QdrantClient(":memory:")
        else:
            self._client = QdrantClient(path=url)
        if not self._client.collection_exists(collection):
            form = models.VectorParams(size=dim, distance=models.Distance.DOT)
            self._client.create_collection(collection, vectors_config=form)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the local mode has none, and says so
                for name in FIELDS:
                    self._client.create_payload_index(collection, name, models.PayloadSchemaType.KEYWORD)
                self._client.create_payload_index(collection, "price", models.PayloadSchemaType.FLOAT)
        held = self._client.get_collection(collection).config.params.vectors
        _check_dim(collection, getattr(held, "size", None), dim)

    def upsert(self, ids: np.ndarray, vectors: np.ndarray, metadata: Sequence[Mapping[str, Any]]) -> None:
        if len(ids):
            rows = self._m.Batch(
                ids=ids.tolist(), vectors=vectors.tolist(), payloads=[dict(one) for one in metadata]
            )
            self._client.upsert(self._name, rows, wait=True)

    def delete(self, ids: np.ndarray) -> None:
        if len(ids):
            self._client.delete(self._name, self._m.PointIdsList(points=ids.tolist()), wait=True)

    def search(self, vectors: np.ndarray, k: int, filters: Filters | None = None) -> Hits:
        condition = self._condition(filters) if filters is not None else None
        requests = [
            self._m.QueryRequest(query=vector.tolist(), filter=condition, limit=k) for vector in vectors
        ]
        replies = self._client.query_batch_points(self._name, requests)
        return [_sorted((int(point.id), point.score) for point in reply.points) for reply in replies]

    def _condition(self, filters: Filters) -> Any:
        m = self._m
        terms = [m.FieldCondition(key=n, match=m.MatchAny(any=v)) for n, v in filters.values().items()]
        if filters.price_min is not None or filters.price_max is not None:
            bounds = m.Range(gte=filters.price_min, lte=filters.price_max)
            terms.append(m.FieldCondition(key="price", range=bounds))
        return m.Filter(must=terms)

    def count(self) -> int:
        return int(self._client.count(self._name, exact=True).count)

    def ids(self) -> np.ndarray:
        def pages() -> Iterator[int]:
            start = None
            while True:
                points, start = self._client.scroll(
                    self._name, limit=_PAGE, offset=start, with_payload=False, with_vectors=False
                )
                yield from (int(point.id) for point in points)
                if start is None:
                    return

        return np.array(sorted(pages()), np.int64)


class Milvus:
    """A collection of Milvus, over gRPC, or in a `.db` file in this process (Milvus Lite)."""

    def __init__(self, url: str, collection: str, dim: int) -> None:
        from pymilvus import DataType, MilvusClient

        self._client, self._name = MilvusClient(url, token=os.environ.get("MILVUS_TOKEN", "")), collection
        if not self._client.has_collection(collection):
            schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("key", DataType.INT64, is_primary=True)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
            schema.add_field("metadata", DataType.JSON)
            how = self._client.prepare_index_params()
            how.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
            self._client.create_collection(
                collection, schema=schema, index_params=how, consistency_level="Strong"
            )
        fields = self._client.describe_collection(collection)["fields"]
        held: dict[str, Any] = next((one for one in fields if one["name"] == "vector"), {})
        _check_dim(collection, held.get("params", {}).get("dim"), dim)
        self._client.load_collection(collection)

    def upsert(self, ids: np.ndarray, vectors: np.ndarray, metadata: Sequence[Mapping[str, Any]]) -> None:
        rows = [
            {"key": key, "vector": vector, "metadata": dict(one)}
            for key, vector, one in zip(ids.tolist(), vectors.tolist(), metadata, strict=True)
        ]
        if rows:
            self._client.upsert(self._name, rows)

    def delete(self, ids: np.ndarray) -> None:
        if len(ids):
            self._client.delete(self._name, ids=ids.tolist())

    def search(self, vectors: np.ndarray, k: int, filters: Filters | None = None) -> Hits:
        replies = self._client.search(
            self._name, data=np.asarray(vectors, np.float32).tolist(), limit=k, output_fields=["key"],
            filter=_expression(filters) if filters is not None else "",
        )  # fmt: skip
        return [_sorted((int(hit["key"]), float(hit["distance"])) for hit in reply) for reply in replies]

    def count(self) -> int:
        (row,) = self._client.query(self._name, filter="", output_fields=["count(*)"])
        return int(row["count(*)"])

    def ids(self) -> np.ndarray:
        pages = self._client.query_iterator(self._name, batch_size=_PAGE, output_fields=["key"])
        found: list[int] = []
        while page := pages.next():
            found += [int(row["key"]) for row in page]
        pages.close()
        return np.array(sorted(found), np.int64)


def _expression(filters: Filters) -> str:
    """The filter in Milvus's language; JSON's escapes of strings are those that it reads."""
    terms = [
        f'json_contains_any(metadata["{name}"], {json.dumps(values, ensure_ascii=False)})'
        for name, values in filters.values().items()
    ]
    for bound, sign in ((filters.price_min, ">="), (filters.price_max, "<=")):
        if bound is not None:
            terms.append(f'metadata["price"] {sign} {float(bound)!r}')
    return " and ".join(terms)


def _sorted(hits: Iterator[tuple[int, float]]) -> list[tuple[int, float]]:
    return sorted(hits, key=lambda hit: (-hit[1], hit[0]))


def _check_dim(collection: str, held: Any, dim: int) -> None:
    if held is None or int(held) != dim:
        raise UserError(
            f"the collection {collection} holds vectors of {held or 'another form'} and not of {dim} "
            "dimensions: name another one."
        )

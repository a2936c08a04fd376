"""A catalogue's vectors in a database that a shop already runs: `push` makes a collection its copy.

The store stays the truth. Of a row go the key, the vector, the id, the title, the price, and what
`rows.FIELDS` filters by, each field as a list of strings: a category as its path and all paths above it,
so that asking for one finds what lies below it. Beside them goes a hash of what the row was made of. A push
reads the hashes that are there and writes only what differs: one that was stopped goes on, the next is short.

Tested: PostgreSQL with pgvector on a real server, Qdrant in its client's local mode, OpenSearch and
Elasticsearch with their clients against a stub of the protocol. Credentials come from the environment:
PGPASSWORD, OPENSEARCH_USER and OPENSEARCH_PASSWORD, ELASTIC_API_KEY, QDRANT_API_KEY.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from moonshelf.catalogue.rows import FIELDS
from moonshelf.errors import UserError
from moonshelf.prompts import CATEGORY_SEPARATOR

if TYPE_CHECKING:
    from moonshelf.catalogue.store import Store

_BATCH = 500  # rows a request; with 256 dimensions about 1 MB
_PAGE = 10_000  # keys a request
_CLIENTS = ("qdrant_client", "grpc", "psycopg", "opensearchpy", "elastic", "httpx", "urllib3")
_COLUMNS = ("key", "vector", "id", "title", "price", "content_hash", "record_hash", *FIELDS)


class RemoteIndex(Protocol):
    """Vectors by key. Each call has taken effect, for every reader, once it returns."""

    dim: int  # of the vectors that it holds, 0 where that cannot be told

    def upsert(self, ids: np.ndarray, vectors: np.ndarray, metadata: Sequence[Mapping[str, Any]]) -> None:
        """Put rows in, over those of the same key: ids (n,) int64 ≥ 0, vectors (n, dim) float32."""

    def delete(self, ids: np.ndarray) -> None:
        """Take rows out; unknown keys do no harm."""

    def count(self) -> int: ...

    def hashes(self) -> dict[int, str]:
        """Key -> hash of all rows; "" of a row that has none."""


def metadata_of(row: Mapping[str, Any], made_of: str = "") -> dict[str, Any]:
    """What an adapter keeps of a row of the store beside its vector."""
    found: dict[str, Any] = {name: [row[name]] if row.get(name) else [] for name in FIELDS}
    steps = row["category"].split(CATEGORY_SEPARATOR) if row.get("category") else []
    found["category"] = [CATEGORY_SEPARATOR.join(steps[: n + 1]) for n in range(len(steps))]
    return {"id": row["id"], "title": row.get("title"), "price": row.get("price"), "hash": made_of, **found}


class Pushed(NamedTuple):
    """What `push` did; `unchanged` rows were there already."""

    written: int
    unchanged: int
    deleted: int
    rows: int


def push(
    store: Store,
    remote: RemoteIndex,
    progress: Callable[[int, float | None], None] = lambda rows, share: None,
) -> Pushed:
    """Make a collection a copy of one version of the store. Raises UserError where the database goes away or
    holds another number of rows in the end; what was written stays, and the next run goes on from it."""
    seen, written, total = 0, 0, len(store)
    advice = ": what was written stays; run the same command again to go on from there."
    with _said(lambda: f"the database failed after {seen:,} of {total:,} products", advice, _CLIENTS):
        there, keys = remote.hashes(), set[int]()
        for batch in store.batches(_COLUMNS, _BATCH):
            rows = batch.drop_columns(["vector"]).to_pylist()
            hashes = [_hash(store.manifest.fingerprint, row) for row in rows]
            new = [i for i, row in enumerate(rows) if there.get(row["key"]) != hashes[i]]
            vectors = batch["vector"].flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)
            if new:
                remote.upsert(
                    np.array([rows[i]["key"] for i in new], np.int64), vectors[new],
                    [metadata_of(rows[i], hashes[i]) for i in new],
                )  # fmt: skip
            keys.update(row["key"] for row in rows)
            seen, written = seen + len(rows), written + len(new)
            progress(seen, seen / max(1, total))
        gone = np.array(sorted(there.keys() - keys), np.int64)
        for start in range(0, len(gone), _PAGE):
            remote.delete(gone[start : start + _PAGE])
        held = remote.count()
    if held != seen:
        raise UserError(
            f"the catalogue has {seen:,} products and the collection holds {held:,}: does something else "
            "write to it? Give the catalogue a collection of its own, and push again."
        )
    return Pushed(written, seen - written, len(gone), held)


def _hash(fingerprint: str, row: Mapping[str, Any]) -> str:
    """Names what a row was made of: model, what it read, record."""
    made_of = f"{fingerprint} {row['content_hash']} {row['record_hash']}"
    return hashlib.sha256(made_of.encode()).hexdigest()[:16]


@contextmanager
def _said(what: Callable[[], str], advice: str, clients: tuple[str, ...] = ("",)) -> Iterator[None]:
    """Errors of a client as one sentence: each has its own, gRPC, HTTP or libpq underneath."""
    try:
        yield
    except (UserError, ImportError):
        raise
    except Exception as error:
        if not type(error).__module__.startswith(clients) and not isinstance(error, OSError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{what()} ({reason}){advice}") from error


def connect(backend: str, url: str, collection: str, dim: int) -> RemoteIndex:
    """The collection, made if it is not there. Raises UserError for an unknown backend, one that is not
    installed, an address that does not answer, and a collection of another dimension."""
    from moonshelf.scale.postgres import Postgres
    from moonshelf.scale.search_engines import Elasticsearch, OpenSearch

    makers: dict[str, Callable[[str, str, int], RemoteIndex]] = {
        "postgres": Postgres, "opensearch": OpenSearch, "elasticsearch": Elasticsearch, "qdrant": Qdrant,
    }  # fmt: skip
    if backend not in makers:
        raise UserError(f"there is no backend {backend!r}: use one of {', '.join(makers)}.")
    place = re.sub(r"(://[^/@:]*):[^@]*@", r"\1:…@", url)  # without the password that may stand in it
    try:
        with _said(lambda: f"{backend} at {place} cannot be used", "."):
            remote = makers[backend](url, collection, dim)
    except ImportError as error:
        raise UserError(f"{backend} needs {error.name}: install moonshelf[{backend}].") from None
    if remote.dim != dim:
        raise UserError(
            f"the collection {collection} holds vectors of {remote.dim or 'another form'} and not of {dim} "
            "dimensions: name another one."
        )
    return remote


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
        self.dim = int(getattr(held, "size", 0))

    def upsert(self, ids: np.ndarray, vectors: np.ndarray, metadata: Sequence[Mapping[str, Any]]) -> None:
        if len(ids):
            rows = self._m.Batch(
                ids=ids.tolist(), vectors=vectors.tolist(), payloads=[dict(one) for one in metadata]
            )
            self._client.upsert(self._name, rows, wait=True)

    def delete(self, ids: np.ndarray) -> None:
        if len(ids):
            self._client.delete(self._name, self._m.PointIdsList(points=ids.tolist()), wait=True)

    def count(self) -> int:
        return int(self._client.count(self._name, exact=True).count)

    def hashes(self) -> dict[int, str]:
        found, start = dict[int, str](), None
        while True:
            points, start = self._client.scroll(
                self._name, limit=_PAGE, offset=start, with_payload=["hash"], with_vectors=False
            )
            found.update((int(point.id), (point.payload or {}).get("hash", "")) for point in points)
            if start is None:
                return found

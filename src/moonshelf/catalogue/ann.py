"""The vector index: a FAISS file built from the store, a cache that can always be built again.

Up to 50,000 rows it is flat, hence exact: scanning 50,000 × 256 takes 4 ms on one core and there is
nothing to build, where HNSW takes about 30 s on one core for the first 20,000. Above, HNSW with 24 links
(measured elsewhere in the project: 0.1 ms at recall .99 on 100,000 rows). Filters become an id selector;
where few rows pass, walking a graph would miss them, so they are compared exactly.

The index file has a name of its own and `index.json`, replaced atomically, says which file counts: a
reader sees one whole index or the other. Labels are the store's stable keys, never positions.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from moonshelf.catalogue.manifest import replace_durably, sync_folder, write_json, writing
from moonshelf.catalogue.store import Store
from moonshelf.errors import UserError

faiss: Any = import_module("faiss")  # its stubs lag behind the library

FORMAT = 1
FLAT_ROWS = 50_000
LINKS, EF_BUILD, EF_SEARCH = 24, 100, 128
_EXACT_SHARE = 0.05  # of the rows: a filter that passes fewer is answered exactly


@dataclass(frozen=True)
class IndexInfo:
    """What `index/index.json` records."""

    kind: str  # flat or hnsw
    rows: int
    dim: int
    metric: str
    fingerprint: str
    preprocessing: str
    store_version: int
    vector_state: str  # `Store.vector_state` at the time of building
    file: str
    sha256: str
    built: str
    seconds: float
    format: int = FORMAT

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class AnnIndex:
    """A loaded index: `search` gives (key, cosine) pairs, best first."""

    def __init__(self, index: Any, kind: str) -> None:
        self.inner, self.kind = index, kind

    @classmethod
    def of(cls, keys: np.ndarray, vectors: np.ndarray, flat_rows: int = FLAT_ROWS) -> AnnIndex:
        """Index of keys (n,) int64 and unit vectors (n, dim) float32."""
        if len(np.unique(keys)) != len(keys):
            raise RuntimeError("two products share a key: the store is inconsistent")
        dim = vectors.shape[1]
        inner: Any
        if len(keys) <= flat_rows:
            inner, kind = faiss.IndexFlatIP(dim), "flat"
        else:
            inner, kind = faiss.IndexHNSWFlat(dim, LINKS, faiss.METRIC_INNER_PRODUCT), "hnsw"
            inner.hnsw.efConstruction = EF_BUILD
        index = faiss.IndexIDMap2(inner)
        if len(keys):
            index.add_with_ids(np.ascontiguousarray(vectors), np.ascontiguousarray(keys))
        return cls(index, kind)

    def __len__(self) -> int:
        return int(self.inner.ntotal)

    def search(
        self, vectors: np.ndarray, k: int, keys: np.ndarray | None = None
    ) -> list[list[tuple[int, float]]]:
        """k nearest for each of (m, dim) float32 vectors, among `keys` only where given."""
        k = min(k, len(self))
        if not k or (keys is not None and not len(keys)):
            return [[] for _ in vectors]
        selector = faiss.IDSelectorBatch(np.ascontiguousarray(keys)) if keys is not None else None
        if self.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(EF_SEARCH, 2 * k))
        else:
            parameters = faiss.SearchParameters(sel=selector)
        scores, labels = self.inner.search(np.ascontiguousarray(vectors, np.float32), k, params=parameters)
        return [
            [(int(key), float(score)) for key, score in zip(row, values, strict=True) if key >= 0]
            for row, values in zip(labels, scores, strict=True)
        ]

    def can_filter(self, passing: int) -> bool:
        """Whether a filter with so many passing rows is answered well here rather than by exact search."""
        return self.kind == "flat" or passing >= _EXACT_SHARE * len(self)


def build(folder: str | Path, *, flat_rows: int = FLAT_ROWS) -> IndexInfo:
    """Build both indexes of a catalogue, full text in the store and vectors beside it, and swap them in."""
    started = time.perf_counter()
    folder = Path(folder)
    Store.open(folder)  # says what is wrong before a lock file appears in somebody's folder
    with writing(folder):
        store = Store.open(folder)
        if not len(store):
            raise UserError(f"{folder} holds no products: embed a feed into it first.")
        store.index_text()
        store.compact()
        state, version = store.vector_state(), store.version
        keys, vectors = store.vectors()
        index = AnnIndex.of(keys, vectors, flat_rows)
        home = folder / "index"
        home.mkdir(exist_ok=True)
        name = f"vectors-{uuid.uuid4().hex[:12]}.faiss"
        faiss.write_index(index.inner, str(home / f".{name}.tmp"))
        replace_durably(home / f".{name}.tmp", home / name)
        info = IndexInfo(
            kind=index.kind,
            rows=len(keys),
            dim=store.manifest.dim,
            metric="inner product of unit vectors",
            fingerprint=store.manifest.fingerprint,
            preprocessing=store.manifest.preprocessing,
            store_version=version,
            vector_state=state,
            file=name,
            sha256=_sha256(home / name),
            built=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - started, 3),
        )
        write_json(home / "index.json", info.as_dict())
        for old in home.iterdir():  # the swap is done: the former index and leftovers of killed builds
            if old.name not in (name, "index.json"):
                old.unlink(missing_ok=True)
        sync_folder(home)
    return info


def load(store: Store) -> tuple[AnnIndex | None, str]:
    """The index of a store, or None and one sentence that says why exact search is used instead.

    Raises UserError if the index was made with another model, dimension or preprocessing.
    """
    home = store.folder / "index"
    advice = f"searching the store exactly, which is slower; run `moonshelf index {store.folder}`"
    for _ in range(2):  # a second time if a swap removed the file between the two reads
        try:
            info = IndexInfo(**json.loads((home / "index.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None, f"no index yet: {advice}"
        except (ValueError, TypeError):
            return None, f"the index cannot be read: {advice}"
        ours = store.manifest
        theirs = (info.fingerprint, info.dim, info.preprocessing)
        if theirs != (ours.fingerprint, ours.dim, ours.preprocessing):
            raise UserError(
                f"the index in {home} was built for another model, dimension or preprocessing than the "
                f"store: run `moonshelf index {store.folder}`."
            )
        if info.format != FORMAT:
            return None, f"the index has format {info.format}, not {FORMAT}: {advice}"
        if info.store_version != store.version and info.vector_state != store.vector_state():
            return None, f"products have changed since the index was built: {advice}"
        try:
            if _sha256(home / Path(info.file).name) != info.sha256:
                return None, f"the index file is damaged: {advice}"
        except FileNotFoundError:
            continue
        return AnnIndex(faiss.read_index(str(home / Path(info.file).name)), info.kind), ""
    return None, f"the index file is missing: {advice}"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

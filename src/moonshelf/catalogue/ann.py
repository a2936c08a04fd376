"""The vector index: a FAISS file built from the store, a cache that can always be built again.

Up to 50,000 rows it is flat, hence exact: scanning 50,000 × 256 takes 4 ms on one core and there is
nothing to build, where HNSW takes about 30 s on one core for the first 20,000. Above, HNSW with 24 links
(measured elsewhere in the project: 0.1 ms at recall .99 on 100,000 rows). A filter becomes an id selector of
the flat index; from a graph more is fetched than wanted. Where few rows pass, walking a graph would miss
them, so they are compared exactly.

The index file has a name of its own and `index.json`, replaced atomically, says which file counts: a
reader sees one whole index or the other. Labels are the store's stable keys, never positions.

Where the store has moved on since, the index catches up. Beside it lies what it was built of, key and hash of
each row; rows that are gone or changed are left out, new and changed ones are added. A flat index takes both
in; from HNSW nothing can be removed, so answers that no longer count are dropped, and what came later is
searched exactly in a small flat index beside it.
"""

from __future__ import annotations

import hashlib
import json
import math
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
_SPARE = 1.5  # fetched from a graph beyond what is wanted, by the share of rows that count
_CHANGED_SHARE = 0.2  # of the rows: where more have changed, the user is advised to build anew


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
    rows_file: str = ""  # `Store.contents` at the time of building; older indexes have none
    rows_sha256: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class AnnIndex:
    """A loaded index: `search` gives (key, cosine) pairs, best first. It never changes once it is made."""

    def __init__(
        self,
        index: Any,
        kind: str,
        *,
        without: np.ndarray | None = None,
        side: AnnIndex | None = None,
        built: int | None = None,
        changes: int = 0,
    ) -> None:
        """`without` are keys of an hnsw `index` that do not count, `side` a flat index that does."""
        self.inner, self.kind = index, kind
        self.without = without if without is not None else np.empty(0, np.int64)
        self.side = side
        self.built = int(index.ntotal) if built is None else built  # rows of the index that was built
        self.changes = changes  # rows that were added, redone or removed since, by and by
        self._sorted: tuple[np.ndarray, np.ndarray] | None = None  # see `_labels`

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
        return int(self.inner.ntotal) - len(self.without) + (len(self.side) if self.side is not None else 0)

    def search(
        self, vectors: np.ndarray, k: int, keys: np.ndarray | None = None
    ) -> list[list[tuple[int, float]]]:
        """k nearest for each of (m, dim) float32 vectors, among `keys` only where given."""
        found = self._search(vectors, k, keys)
        if self.side is None or not len(self.side):
            return found
        later = self.side.search(vectors, k, keys)
        return [
            sorted(a + b, key=lambda hit: (-hit[1], hit[0]))[:k] for a, b in zip(found, later, strict=True)
        ]

    def _search(self, vectors: np.ndarray, k: int, keys: np.ndarray | None) -> list[list[tuple[int, float]]]:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if self.kind == "hnsw":
            return self._walk(vectors, k, keys)
        k = min(k, int(self.inner.ntotal))
        if not k or (keys is not None and not len(keys)):
            return [[] for _ in vectors]
        selector = faiss.IDSelectorBatch(np.ascontiguousarray(keys)) if keys is not None else None
        found = self.inner.search(vectors, k, params=faiss.SearchParameters(sel=selector))
        return [_hits(*row) for row in zip(*found, strict=True)]

    def _walk(self, vectors: np.ndarray, k: int, keys: np.ndarray | None) -> list[list[tuple[int, float]]]:
        """Search in the graph. Rows that do not count are met on the way and dropped: more are fetched than
        wanted; where too many of a query's neighbours are such rows (a whole category was removed), four
        times as many, and in the end all rows are compared."""
        rows = int(self.inner.ntotal)
        passing = rows - len(self.without) if keys is None else min(rows, len(keys))
        k = min(k, passing)
        found: list[list[tuple[int, float]]] = [[] for _ in vectors]
        if not k:
            return found
        fetch = k if passing == rows else math.ceil(_SPARE * k * rows / passing)
        left = np.arange(len(vectors))
        while len(left) and fetch <= max(EF_SEARCH, _EXACT_SHARE * rows):
            wide = faiss.SearchParametersHNSW(efSearch=max(EF_SEARCH, 2 * fetch))
            scores, labels = self.inner.search(vectors[left], fetch, params=wide)
            counts = self._counts(labels, keys)
            for place, row in enumerate(left):
                found[row] = _hits(scores[place, counts[place]][:k], labels[place, counts[place]][:k])
            left, fetch = left[counts.sum(1) < k], 4 * fetch
        if len(left):
            for row, hits in zip(left, self._compare(vectors[left], k, keys), strict=True):
                found[row] = hits
        return found

    def _counts(self, labels: np.ndarray, keys: np.ndarray | None) -> np.ndarray:
        """Which of the labels that the graph gave are rows that count."""
        met = np.unique(labels)
        good = (met >= 0) & ~_inside(met, self.without)
        if keys is not None:
            good &= _inside(met, np.sort(keys[_inside(keys, met)]))
        counts: np.ndarray = good[np.searchsorted(met, labels)]
        return counts

    def _compare(self, vectors: np.ndarray, k: int, keys: np.ndarray | None) -> list[list[tuple[int, float]]]:
        """Exact search in the vectors that the graph stores."""
        labels, places = self._labels()
        wanted = labels if keys is None else np.unique(keys[_inside(keys, labels)])
        wanted = wanted[~_inside(wanted, self.without)]
        if not len(wanted):
            return [[] for _ in vectors]
        selector = faiss.IDSelectorBatch(places[np.searchsorted(labels, wanted)])
        storage = faiss.downcast_index(faiss.downcast_index(self.inner.index).storage)
        exact = faiss.SearchParameters(sel=selector)
        scores, found = storage.search(vectors, min(k, len(wanted)), params=exact)
        ids = faiss.vector_to_array(self.inner.id_map)
        return [_hits(*row) for row in zip(scores, ids[found], strict=True)]

    def _labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys of the graph, sorted, and the place of each in it."""
        if self._sorted is None:
            ids = faiss.vector_to_array(self.inner.id_map)
            order = np.argsort(ids)
            self._sorted = ids[order], order
        return self._sorted

    def can_filter(self, passing: int) -> bool:
        """Whether a filter with so many passing rows is answered well here rather than by exact search."""
        return self.kind == "flat" or passing >= _EXACT_SHARE * len(self)

    def catch_up(self, added: np.ndarray, vectors: np.ndarray, removed: np.ndarray) -> AnnIndex:
        """A new index that holds what this one will after a commit; this one stays as it is for its readers.

        `added` (n,) int64 are the keys of new and of redone rows, with unit vectors (n, dim) float32;
        `removed` are keys that are gone. Keys in `removed` that the index does not hold do no harm.
        """
        leaving = np.union1d(added, removed).astype(np.int64)
        changes = self.changes + len(leaving)
        if self.kind == "flat":  # at most 50,000 rows: a copy takes milliseconds
            index = faiss.clone_index(self.inner)
            index.remove_ids(leaving)
            if len(added):
                index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.ascontiguousarray(added))
            return AnnIndex(index, "flat", built=self.built, changes=changes)
        held = leaving[_inside(leaving, self._labels()[0])]
        side = self.side or AnnIndex.of(added[:0], np.empty((0, self.inner.d), np.float32))
        later = AnnIndex(
            self.inner,
            self.kind,
            without=np.union1d(self.without, held),
            side=side.catch_up(added, vectors, removed),
            built=self.built,
            changes=changes,
        )
        later._sorted = self._sorted
        return later

    def advice(self, folder: str | Path) -> str:
        """A sentence for the user where so much has changed that building anew pays, else empty."""
        if self.changes <= _CHANGED_SHARE * self.built:
            return ""
        return (
            f"{self.changes:,} products have changed since the index was built of {self.built:,}: "
            f"search grows slower, run `moonshelf index {folder}`"
        )


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
        rows_name = name.replace("vectors", "rows").replace(".faiss", ".npy")
        with open(home / f".{rows_name}.tmp", "wb") as file:
            np.save(file, store.contents(), allow_pickle=False)
        replace_durably(home / f".{rows_name}.tmp", home / rows_name)
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
            rows_file=rows_name,
            rows_sha256=_sha256(home / rows_name),
        )
        write_json(home / "index.json", info.as_dict())
        for old in home.iterdir():  # the swap is done: the former index and leftovers of killed builds
            if old.name not in (name, rows_name, "index.json"):
                old.unlink(missing_ok=True)
        sync_folder(home)
    return info


def read_info(folder: Path) -> dict[str, Any] | None:
    """What `index/index.json` of a catalogue says, unchecked; None without one that can be read."""
    try:
        record = json.loads((folder / "index" / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def load(store: Store) -> tuple[AnnIndex | None, str]:
    """The index of a store, caught up with it, and a note for the user or "".

    None where exact search is used instead; the note then says why. Raises UserError if the index was made
    with another model, dimension or preprocessing.
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
        moved = info.store_version != store.version
        rows = _rows(home, info) if moved else None
        if moved and rows is None and info.vector_state != store.vector_state():
            return None, f"products have changed since the index was built: {advice}"
        try:
            if _sha256(home / Path(info.file).name) != info.sha256:
                return None, f"the index file is damaged: {advice}"
            index = AnnIndex(faiss.read_index(str(home / Path(info.file).name)), info.kind)
        except FileNotFoundError:
            continue
        if rows is not None:
            index = _caught_up(index, rows, store)
        return index, index.advice(store.folder)
    return None, f"the index file is missing: {advice}"


def _rows(home: Path, info: IndexInfo) -> np.ndarray | None:
    """`Store.contents` as the index was built of it, or None without a sound file."""
    path = home / Path(info.rows_file).name
    if not info.rows_file or not path.is_file() or _sha256(path) != info.rows_sha256:
        return None
    rows: np.ndarray = np.load(path, allow_pickle=False)
    return rows


def _caught_up(index: AnnIndex, then: np.ndarray, store: Store) -> AnnIndex:
    now = store.contents()
    same = _inside(then[:, 0], now[:, 0])
    same[same] = now[np.searchsorted(now[:, 0], then[same, 0]), 1] == then[same, 1]
    other = np.setdiff1d(now[:, 0], then[same, 0], assume_unique=True)
    if same.all() and not len(other):
        return index
    added, vectors = store.vectors_of(other)
    return index.catch_up(added, vectors, then[~same, 0])


def _hits(scores: np.ndarray, labels: np.ndarray) -> list[tuple[int, float]]:
    return [(int(key), float(score)) for key, score in zip(labels, scores, strict=True) if key >= 0]


def _inside(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Which of `values` are in a sorted array; unlike `np.isin` it does not sort that array again."""
    place = np.searchsorted(ordered, values)
    found: np.ndarray = place < len(ordered)
    found[found] = ordered[place[found]] == values[found]
    return found


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

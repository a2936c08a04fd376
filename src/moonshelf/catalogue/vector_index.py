"""The vector index of a catalogue folder: a FAISS file made of the store, which can always be made again.

Up to 50,000 rows it is flat, hence exact: scanning 50,000 × 256 takes 4 ms on one core. Above it is HNSW with
24 links; LanceDB's own graph was measured against it and is slower with a filter (docs/experiments.md).

`index.json`, replaced atomically, says which files count: a reader sees one whole index or the other. Beside
the vectors lies what they were made of, key and hash of each row. Where the store has moved on, the index
catches up: rows that are gone or redone no longer count, new ones are compared one by one beside a graph.

Filters. Up to 10,240 rows that pass are compared with the query, through a matrix of their own that is kept
for the next time. From a graph more is fetched than wanted, and what does not pass is dropped; where too
little is left (a lamp is wanted among shoes), or too much had to be fetched, all that passes is compared.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from moonshelf.catalogue.manifest import check_place, writing
from moonshelf.catalogue.store import Store
from moonshelf.errors import UserError
from moonshelf.files import read_json, read_settings, replace_durably, sync_folder, write_json

faiss: Any = import_module("faiss")  # its stubs lag behind the library

FORMAT = 2  # 1 kept keys inside the FAISS file
FLAT_ROWS = 50_000  # rows up to which an index is exact
LINKS, EF_BUILD, EF_SEARCH = 24, 100, 128
_DENSE_ROWS = 10_240  # of a filter, kept as a matrix: 10 MB at 256 dimensions
_SPARE = 1.5  # fetched from a graph beyond what is wanted, by the share of rows that count
_WALK_SHARE = 0.005  # of the rows: where more would have to be fetched, comparing is faster
_CHANGED_SHARE = 0.2  # of the rows: where more have changed, the user is advised to build anew
_TABLES = 256 << 20  # bytes that FAISS may derive from a file

Hits = list[list[tuple[int, float]]]


class VectorIndex:
    """An index in memory: `search` gives (key, cosine) pairs, best first. It never changes once it is made.

    A row's label in FAISS is its place; `keys` (n,) int64 holds the store's key of each place, ascending.
    """

    def __init__(
        self,
        keys: np.ndarray,
        first: Any,
        *,
        gone: np.ndarray | None = None,
        later: VectorIndex | None = None,
        built: int | None = None,
        changes: int = 0,
    ) -> None:
        self.keys, self.first = keys, first  # `first` is FAISS's
        self.gone, self.later = gone, later  # (n,) bool: rows that no longer count; flat, of later ones
        self.kind = "hnsw" if isinstance(first, faiss.IndexHNSW) else "flat"
        self.flat = faiss.downcast_index(first.storage) if self.kind == "hnsw" else first
        self.built = len(keys) if built is None else built  # rows of the index that was built
        self.changes = changes  # rows that were added, redone or removed since, by and by
        self._live = Passing(self, keys[:0], np.flatnonzero(~gone)) if gone is not None else None

    @classmethod
    def of(cls, keys: np.ndarray, vectors: np.ndarray, flat_rows: int | None = None) -> VectorIndex:
        """Of keys (n,) int64 and unit vectors (n, dim) float32, a graph above FLAT_ROWS or `flat_rows`."""
        if len(np.unique(keys)) != len(keys):
            raise RuntimeError("two products share a key: the store is inconsistent")
        if (keys[1:] < keys[:-1]).any():
            order = np.argsort(keys)
            keys, vectors = keys[order], vectors[order]
        flat = len(keys) <= (FLAT_ROWS if flat_rows is None else flat_rows)
        index = _empty("flat" if flat else "hnsw", vectors.shape[1])
        index.add(np.ascontiguousarray(vectors, np.float32))
        return cls(keys, index)

    @property
    def dim(self) -> int:
        return int(self.first.d)

    @cached_property
    def vectors(self) -> np.ndarray:
        """(n, dim) float32, seen in FAISS's memory and not copied."""
        seen: np.ndarray = faiss.rev_swig_ptr(self.flat.get_xb(), self.flat.ntotal * self.dim)
        return seen.reshape(-1, self.dim)

    def __len__(self) -> int:
        rows = len(self.keys) if self._live is None else len(self._live.places)
        return rows + (len(self.later) if self.later is not None else 0)

    def search(self, vectors: np.ndarray, k: int, keys: np.ndarray | Passing | None = None) -> Hits:
        """The k nearest to each of (m, dim) float32 vectors, among `keys` only where they are given."""
        vectors = np.ascontiguousarray(vectors, np.float32)
        passing = Passing(self, keys) if isinstance(keys, np.ndarray) else keys
        found = self._search(vectors, k, self._live if passing is None else passing)
        if self.later is None:
            return found
        later = self.later.search(vectors, k, passing.later if passing is not None else None)
        return [
            sorted(a + b, key=lambda hit: (-hit[1], hit[0]))[:k] for a, b in zip(found, later, strict=True)
        ]

    def _search(self, vectors: np.ndarray, k: int, passing: Passing | None) -> Hits:
        rows = len(self.keys)
        count = rows if passing is None else len(passing.places)
        if not (k := min(k, count)):
            return [[] for _ in vectors]
        if passing is not None and count <= _DENSE_ROWS:
            return [self._hits(passing.places, passing.matrix @ vector, k) for vector in vectors]
        fetch = k if passing is None else math.ceil(_SPARE * k * rows / count)
        if self.kind == "flat" or (passing is not None and fetch > max(4 * EF_SEARCH, _WALK_SHARE * rows)):
            return self._compare(vectors, k, passing)
        wide = faiss.SearchParametersHNSW(efSearch=max(EF_SEARCH, math.ceil(1.2 * fetch)))
        found: Hits = []
        for vector, scores, places in zip(
            vectors, *self.first.search(vectors, fetch, params=wide), strict=True
        ):
            good = places >= 0 if passing is None else passing.mask[places] & (places >= 0)
            if good.sum() >= k:
                found.append(self._hits(places[good], scores[good], k))
            else:  # too few of this query's neighbours pass
                found += self._compare(vector[None], k, passing)
        return found

    def _compare(self, vectors: np.ndarray, k: int, passing: Passing | None) -> Hits:
        params = faiss.SearchParameters(sel=passing.selector) if passing is not None else None
        lines = self.flat.search(vectors, k, params=params)
        return [self._hits(places, scores, k) for scores, places in zip(*lines, strict=True)]

    def _hits(self, places: np.ndarray, scores: np.ndarray, k: int) -> list[tuple[int, float]]:
        if len(scores) > k:
            top = np.argpartition(scores, len(scores) - k)[len(scores) - k :]
            places, scores = places[top], scores[top]
        keys = self.keys[places]
        order = np.lexsort((keys, -scores))
        return list(zip(keys[order].tolist(), scores[order].tolist(), strict=True))

    def catch_up(self, added: np.ndarray, vectors: np.ndarray, removed: np.ndarray) -> VectorIndex:
        """A new index that holds what this one will after a commit: `added` (n,) int64 are the keys of new
        and of redone rows, with unit vectors (n, dim) float32, `removed` keys that are gone, held or not."""
        leaving = np.union1d(added, removed).astype(np.int64)
        changes = self.changes + len(leaving)
        vectors = np.asarray(vectors, np.float32).reshape(len(added), self.dim)
        gone = inside(self.keys, leaving)
        if self.kind == "flat":  # a copy takes milliseconds
            keys = np.concatenate([self.keys[~gone], added])
            whole = VectorIndex.of(keys, np.concatenate([self.vectors[~gone], vectors]), len(keys))
            return VectorIndex(whole.keys, whole.first, built=self.built, changes=changes)
        if self.gone is not None:
            gone |= self.gone
        later = self.later or VectorIndex(added[:0], _empty("flat", self.dim))
        return VectorIndex(
            self.keys, self.first, gone=gone if gone.any() else None,
            later=later.catch_up(added, vectors, removed), built=self.built, changes=changes,
        )  # fmt: skip


class Passing:
    """Rows of one index that pass a filter, for several calls of `search`: keys (m,) int64 in any order;
    those that the index does not hold are left out. What later calls need is made when it is first used."""

    def __init__(self, index: VectorIndex, keys: np.ndarray, places: np.ndarray | None = None) -> None:
        self.index, self.later = index, Passing(index.later, keys) if index.later is not None else None
        if places is None:
            held = np.unique(keys)
            places = np.searchsorted(index.keys, held[inside(held, index.keys)])
            places = places if index.gone is None else places[~index.gone[places]]
        self.places = places

    @cached_property
    def mask(self) -> np.ndarray:
        """(n,) bool over the places of the index."""
        mask = np.zeros(len(self.index.keys), bool)
        mask[self.places] = True
        return mask

    @cached_property
    def matrix(self) -> np.ndarray:
        """(rows that pass, dim) float32."""
        return self.index.vectors[self.places]

    @cached_property
    def selector(self) -> Any:
        return faiss.IDSelectorBitmap(np.packbits(self.mask, bitorder="little"))


def _empty(kind: str, dim: int) -> Any:
    """The FAISS index of a kind before it is filled."""
    if kind == "flat":
        return faiss.IndexFlatIP(dim)
    index = faiss.IndexHNSWFlat(dim, LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EF_BUILD
    return index


def inside(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Which of `values` are in a sorted array; unlike `np.isin` it does not sort that array again."""
    place = np.searchsorted(ordered, values)
    found: np.ndarray = place < len(ordered)
    found[found] = ordered[place[found]] == values[found]
    return found


# ---- files -----------------------------------------------------------------------------------------


class IndexInfo(BaseModel):
    """What `index/index.json` records."""

    kind: str
    rows: int
    dim: int
    metric: str = "inner product of unit vectors"
    fingerprint: str
    preprocessing: str
    store_version: int
    built: str
    seconds: float
    file: str
    sha256: str
    rows_file: str  # `Store.contents` at the time of building
    rows_sha256: str
    fusion: dict[str, Any] | None = None  # fields of `fusion.Fusion`
    format: int = FORMAT


def build(
    folder: str | Path, *, weigh: Callable[[Store, VectorIndex], dict[str, Any]] | None = None
) -> IndexInfo:
    """Build both indexes of a catalogue, full text in the store and vectors beside it, and swap them in.

    `weigh` says how much the vectors count in search. Raises UserError for an empty catalogue.
    """
    started = time.perf_counter()
    folder = Path(folder)
    Store.open(folder)  # says what is wrong before a lock file appears in somebody's folder
    check_place(folder)
    with writing(folder):
        store = Store.open(folder)
        if not len(store):
            raise UserError(f"{folder} holds no products: embed a feed into it first.")
        store.upgrade()
        store.index_text()
        store.compact()
        version = store.version
        index = VectorIndex.of(*store.vectors())
        fusion = weigh(store, index) if weigh is not None else None
        home = folder / "index"
        home.mkdir(exist_ok=True)
        tag = uuid.uuid4().hex[:12]
        names = f"vectors-{tag}.faiss", f"rows-{tag}.npy"
        faiss.write_index(index.first, str(home / f".{names[0]}.tmp"))
        with open(home / f".{names[1]}.tmp", "wb") as file:
            np.save(file, store.contents(), allow_pickle=False)
        for name in names:
            replace_durably(home / f".{name}.tmp", home / name)
        info = IndexInfo(
            kind=index.kind, rows=len(index), dim=index.dim,
            fingerprint=store.manifest.fingerprint, preprocessing=store.manifest.preprocessing,
            store_version=version, built=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - started, 3), fusion=fusion,
            file=names[0], sha256=_sha256(home / names[0]),
            rows_file=names[1], rows_sha256=_sha256(home / names[1]),
        )  # fmt: skip
        write_json(home / "index.json", info.model_dump())
        for old in home.iterdir():  # the swap is done: the former index and leftovers of killed builds
            if old.name not in (*names, "index.json"):
                old.unlink(missing_ok=True)
        sync_folder(home)
    return info


def read_info(folder: Path) -> dict[str, Any]:
    """What `index/index.json` of a catalogue says, unchecked; empty without one that can be read."""
    with suppress(UserError):
        record = read_json(folder / "index" / "index.json")
        return record if isinstance(record, dict) else {}
    return {}


def load(store: Store) -> tuple[VectorIndex | None, str]:
    """The index of a store, caught up with it, and a note for the user or "".

    None where exact search is used instead; the note then says why. Raises UserError if the index was made
    with another model, dimension or preprocessing.
    """
    home = store.folder / "index"
    advice = f"searching the store exactly, which is slower; run `moonshelf index {store.folder}`"
    for _ in range(2):  # a second time if a swap removed a file between the two reads
        if not (home / "index.json").exists():
            return None, f"no index yet: {advice}"
        if (written := read_info(store.folder).get("format", FORMAT)) != FORMAT:
            return None, f"the index has format {written}, not {FORMAT}: {advice}"
        try:
            info = read_settings(IndexInfo, home / "index.json")
        except UserError:
            return None, f"the index cannot be read: {advice}"
        if info.kind not in ("flat", "hnsw"):  # of an earlier version
            return None, f"the index is of the kind {info.kind[:20]}, which is no longer read: {advice}"
        ours = store.manifest
        theirs = (info.fingerprint, info.dim, info.preprocessing)
        if theirs != (ours.fingerprint, ours.dim, ours.preprocessing):
            raise UserError(
                f"the index in {home} was built for another model, dimension or preprocessing than the "
                f"store: run `moonshelf index {store.folder}`."
            )
        file, rows_file = home / Path(info.file).name, home / Path(info.rows_file).name
        try:
            if (_sha256(file), _sha256(rows_file)) != (info.sha256, info.rows_sha256):
                return None, f"the index file is damaged: {advice}"
            # Mapped, and bounded, so that a header cannot ask for more than the file has.
            then = np.array(np.load(rows_file, mmap_mode="r", allow_pickle=False))
            faiss.set_deserialization_vector_byte_limit(2 * os.path.getsize(file) + _TABLES)
            first = faiss.read_index(str(file))
        except (FileNotFoundError, IsADirectoryError):
            continue
        except Exception:  # NumPy and FAISS have no one class for a broken file
            return None, f"the index file is damaged: {advice}"
        if not _consistent(info, first, then):
            return None, f"the index does not fit its own index.json: {advice}"
        index = VectorIndex(np.ascontiguousarray(then[:, 0]), first)
        if info.store_version != store.version:
            index = _caught_up(index, then, store)
        if index.changes <= _CHANGED_SHARE * index.built:
            return index, ""
        return index, (
            f"{index.changes:,} products have changed since the index was built of {index.built:,}: search "
            f"grows slower, run `moonshelf index {store.folder}`"
        )
    return None, f"the index file is missing: {advice}"


def _consistent(info: IndexInfo, first: Any, then: np.ndarray) -> bool:
    """Whether both parts are of the same rows, in order of their keys, and of the kind that was recorded."""
    found = (type(first), first.ntotal, first.d, first.metric_type, then.shape, then.dtype)
    metric = faiss.METRIC_INNER_PRODUCT
    right = (type(_empty(info.kind, 1)), info.rows, info.dim, metric, (info.rows, 2), np.int64)
    return found == right and bool((np.diff(then[:, 0]) > 0).all())


def _caught_up(index: VectorIndex, then: np.ndarray, store: Store) -> VectorIndex:
    now = store.contents()  # as `then` (n, 2) int64, keys and hashes
    same = inside(then[:, 0], now[:, 0])
    same[same] = now[np.searchsorted(now[:, 0], then[same, 0]), 1] == then[same, 1]
    other = np.setdiff1d(now[:, 0], then[same, 0], assume_unique=True)
    if same.all() and not len(other):
        return index
    return index.catch_up(*store.vectors(other), then[~same, 0])


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

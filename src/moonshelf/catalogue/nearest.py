"""The vector index in memory: nearest rows to a vector, among all or among those that pass a filter.

A row's label is its place; `ids` holds the store's stable key of each place, sorted. What `index_spec` calls
a first pass proposes rows, an exact comparison orders them.

Filters. Where fewer than a twentieth of the rows pass, they are compared exactly: a graph would walk past
them. A filter that comes again gets a matrix of its own rows, or, where these are many, a sketch of them:
their signs or single bytes propose a shortlist, as long as sample queries need it (*ours*). Where more pass,
a scan and the cells of an IVF skip the others; from a graph more is fetched than wanted. Where the rows that
pass lie far from a query, too few of what was fetched do: four times as many are fetched, and after that the
filter's own rows are compared, through their sketch from then on.

An index never changes once it is made. After a commit `catch_up` makes another of it: a flat index takes
rows in and out; of any other kind, rows that are gone or redone no longer count, and what came later is
searched exactly in a small flat index beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moonshelf.catalogue.index_spec import Spec, faiss

FLAT_ROWS = 50_000
_EXACT_SHARE = 0.05  # of the rows: a filter that passes fewer is answered exactly
_SKETCH_SHARE = 0.08  # of the rows: one that passes fewer, and comes again, is answered by its sketch
_SPARE = 1.5  # fetched from a graph beyond what is wanted, by the share of rows that count
_WIDER = 4  # times as many, once, where too few of what was fetched pass
_WALK_SHARE = 0.005  # of the rows: where more would have to be fetched, comparing is faster
_CHANGED_SHARE = 0.2  # of the rows: where more have changed, the user is advised to build anew
_DENSE_ROWS = 10_240  # of a filter that comes again: kept as a matrix, 10 MB at 256 dimensions
_BLOCK = 8_192  # rows that are compared at once
# Candidates for each row wanted, doubled for safety, of what is kept of a filter's rows.
_SKETCHES = {"binary": (5, 10, 20, 40), "sq8": (2, 10, 40)}
_SAMPLE, _SAMPLE_K, _SAMPLE_RECALL = 64, 10, 0.98

Hits = list[list[tuple[int, float]]]


class AnnIndex:
    """A loaded index: `search` gives (key, cosine) pairs, best first. It never changes once it is made."""

    def __init__(
        self,
        first: object,
        ids: np.ndarray,
        spec: Spec,
        kept: np.ndarray | None = None,
        *,
        gone: np.ndarray | None = None,
        side: AnnIndex | None = None,
        built: int | None = None,
        changes: int = 0,
    ) -> None:
        """`first` is a FAISS index, `ids` (n,) int64 its keys in ascending order, `kept` (n, dim) what rows
        are compared by, by default the vectors that `first` stores; `gone` (n,) bool marks rows that do not
        count, `side` is a flat index of rows that do."""
        self.first, self.ids, self.spec = first, ids, spec
        self.kept = kept if kept is not None else _stored(first, spec)
        self.gone, self.side = gone, side
        self.built = len(ids) if built is None else built  # rows of the index that was built
        self.changes = changes  # rows that were added, redone or removed since, by and by
        self._live = None if gone is None else Passing(self, ids)

    @classmethod
    def of(
        cls, keys: np.ndarray, vectors: np.ndarray, flat_rows: int = FLAT_ROWS, spec: Spec | None = None
    ) -> AnnIndex:
        """Index of keys (n,) int64 and unit vectors (n, dim) float32: `spec`, or flat up to `flat_rows`."""
        if len(np.unique(keys)) != len(keys):
            raise RuntimeError("two products share a key: the store is inconsistent")
        if (keys[1:] < keys[:-1]).any():
            order = np.argsort(keys)
            keys, vectors = keys[order], vectors[order]
        vectors = np.ascontiguousarray(vectors, np.float32)
        spec = spec or Spec.default(len(keys), flat_rows)
        kept = vectors.astype(np.float16) if spec.rescored else None
        return cls(spec.build(vectors), keys, spec, kept)

    @property
    def kind(self) -> str:
        return self.spec.kind

    @property
    def dim(self) -> int:
        return int(self.kept.shape[1])

    def __len__(self) -> int:
        main = len(self.ids) if self._live is None else len(self._live)
        return main + (len(self.side) if self.side is not None else 0)

    def passing(self, keys: np.ndarray) -> Passing:
        """Rows that pass a filter, for several calls of `search`."""
        return Passing(self, keys)

    def search(self, vectors: np.ndarray, k: int, keys: np.ndarray | Passing | None = None) -> Hits:
        """k nearest for each of (m, dim) float32 vectors, among `keys` only where given."""
        vectors = np.ascontiguousarray(vectors, np.float32)
        allowed = Passing(self, keys) if isinstance(keys, np.ndarray) else keys
        found = self._search(vectors, k, self._live if allowed is None else allowed)
        if self.side is None or not len(self.side):
            return found
        later = self.side.search(vectors, k, allowed.side if allowed is not None else None)
        return [
            sorted(a + b, key=lambda hit: (-hit[1], hit[0]))[:k] for a, b in zip(found, later, strict=True)
        ]

    def _search(self, vectors: np.ndarray, k: int, allowed: Passing | None) -> Hits:
        rows = len(self.ids)
        passing = rows if allowed is None else len(allowed)
        k = min(k, passing)
        if not k:
            return [[] for _ in vectors]
        if allowed is not None:
            allowed.uses += 1
            if self._by_sketch(allowed):
                return self._shortlisted(vectors, k, allowed)
            if passing < _EXACT_SHARE * rows or (allowed.uses > 1 and passing <= _DENSE_ROWS):
                return self._compare(vectors, k, allowed)
        want = min(passing, max(1, self.spec.shortlist) * k)
        if self.spec.links:
            scores, places = self._walk(vectors, want, k, allowed)
        else:
            scores, places = self._scan(vectors, want, allowed)
        found: Hits = []
        for row, (vector, some, best) in enumerate(zip(vectors, places, scores, strict=True)):
            some = some[some >= 0]
            if len(some) < k:  # too few of this query's neighbours pass
                found += self._far(vectors[row : row + 1], k, allowed)
            elif self.spec.rescored:
                found.append(self._hits(some, self._scores(vector, some), k))
            else:
                found.append(self._hits(some, best[: len(some)], k))
        return found

    def _by_sketch(self, allowed: Passing) -> bool:
        """Whether a filter is answered by its sketch: it comes again and passes few, or a walk failed."""
        if self.kind == "flat" or len(allowed) <= _DENSE_ROWS:
            return False
        again = allowed.uses > 1 and len(allowed) < _SKETCH_SHARE * len(self.ids)
        return (allowed.sketched or again) and bool(allowed.sketch.shortlist)

    def _far(self, vectors: np.ndarray, k: int, allowed: Passing | None) -> Hits:
        """Queries that the first pass found too little for."""
        if (
            allowed is None
            or self.kind == "flat"
            or len(allowed) <= _DENSE_ROWS
            or not allowed.sketch.shortlist
        ):
            return self._compare(vectors, k, allowed)
        return self._shortlisted(vectors, k, allowed)

    def _scan(self, vectors: np.ndarray, want: int, allowed: Passing | None) -> tuple[np.ndarray, np.ndarray]:
        """(scores, places) of the first pass, (m, want) each, -1 where there are fewer."""
        selector = allowed.selector if allowed is not None else None
        if self.spec.lists:
            # What passes is thinner in each cell: more cells hold as many, and the other rows cost little.
            share = 1.0 if allowed is None else len(allowed) / len(self.ids)
            probes = min(self.spec.lists, math.ceil(self.spec.effort / share))
            params = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
        else:
            params = faiss.SearchParameters(sel=selector)
        return self.first.search(self.spec.prepared(vectors), want, params=params)  # type: ignore[attr-defined]

    def _walk(
        self, vectors: np.ndarray, want: int, k: int, allowed: Passing | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same in a graph. Rows that do not count are met on the way and dropped: more are fetched than
        wanted; where too many of a query's neighbours are such rows (a whole category was removed), four
        times as many."""
        rows = len(self.ids)
        scores = np.full((len(vectors), want), -np.inf, np.float32)
        places = np.full((len(vectors), want), -1, np.int64)
        fetch = want if allowed is None else math.ceil(_SPARE * want * rows / len(allowed))
        left = np.arange(len(vectors))
        most = max(want, min(_WIDER * fetch, max(4 * self.spec.effort, _WALK_SHARE * rows)))
        while len(left) and fetch <= most:
            wide = faiss.SearchParametersHNSW(efSearch=max(self.spec.effort, math.ceil(1.2 * fetch)))
            near, found = self.first.search(vectors[left], fetch, params=wide)  # type: ignore[attr-defined]
            good = (found >= 0) if allowed is None else allowed.mask[found] & (found >= 0)
            for row, line, close, counts in zip(left, found, near, good, strict=True):
                n = min(want, int(counts.sum()))
                places[row, :n], scores[row, :n] = line[counts][:n], close[counts][:n]
                places[row, n:] = -1
            left, fetch = left[good.sum(1) < k], _WIDER * fetch
        return scores, places

    def _shortlisted(self, vectors: np.ndarray, k: int, allowed: Passing) -> Hits:
        """Exactly compared: those that the sketch proposes."""
        found = allowed.sketch.places(vectors, k)
        return [self._hits(some, self._scores(v, some), k) for v, some in zip(vectors, found, strict=True)]

    def _compare(self, vectors: np.ndarray, k: int, allowed: Passing | None) -> Hits:
        """Exact search, in blocks; few rows of a filter that comes again are kept as a matrix."""
        if allowed is not None and allowed.uses > 1 and len(allowed) <= _DENSE_ROWS:
            return [self._hits(allowed.places, allowed.matrix @ vector, k) for vector in vectors]
        places = np.arange(len(self.ids)) if allowed is None else allowed.places
        best = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(vectors)
        for start in range(0, len(places), _BLOCK):
            some = places[start : start + _BLOCK]
            scores = vectors @ self._rows(some).T
            for row, line in enumerate(scores):
                both = np.concatenate([best[row][0], some]), np.concatenate([best[row][1], line])
                top = _top(both[1], k)
                best[row] = both[0][top], both[1][top]
        return [self._hits(some, scores, k) for some, scores in best]

    def _rows(self, places: np.ndarray) -> np.ndarray:
        return np.asarray(self.kept[places], np.float32)

    def _scores(self, vector: np.ndarray, places: np.ndarray) -> np.ndarray:
        scores: np.ndarray = self._rows(places) @ vector
        return scores

    def _hits(self, places: np.ndarray, scores: np.ndarray, k: int) -> list[tuple[int, float]]:
        top = _top(scores, k)
        keys, best = self.ids[places[top]], scores[top]
        order = np.lexsort((keys, -best))
        return list(zip(keys[order].tolist(), best[order].tolist(), strict=True))

    # ------------------------------------------------------------------------------------ changes

    def catch_up(self, added: np.ndarray, vectors: np.ndarray, removed: np.ndarray) -> AnnIndex:
        """A new index that holds what this one will after a commit; this one stays as it is for its readers.

        `added` (n,) int64 are the keys of new and of redone rows, with unit vectors (n, dim) float32;
        `removed` are keys that are gone. Keys in `removed` that the index does not hold do no harm.
        """
        leaving = np.union1d(added, removed).astype(np.int64)
        changes = self.changes + len(leaving)
        vectors = np.asarray(vectors, np.float32).reshape(len(added), self.dim)
        if self.kind == "flat":  # at most 50,000 rows, unless it was tuned so: a copy takes milliseconds
            stay = ~inside(self.ids, leaving)
            later = AnnIndex.of(
                np.concatenate([self.ids[stay], added]),
                np.concatenate([self.kept[stay], vectors]),
                0,
                self.spec,
            )
            later.built, later.changes = self.built, changes
            return later
        gone = inside(self.ids, leaving)
        if self.gone is not None:
            gone |= self.gone
        empty = AnnIndex.of(added[:0], np.empty((0, self.dim), np.float32))
        side = (self.side or empty).catch_up(added, vectors, removed)
        return AnnIndex(
            self.first, self.ids, self.spec, self.kept,
            gone=gone if gone.any() else None, side=side, built=self.built, changes=changes,
        )  # fmt: skip

    def advice(self, folder: str | Path) -> str:
        """A sentence for the user where so much has changed that building anew pays, else empty."""
        if self.changes <= _CHANGED_SHARE * self.built:
            return ""
        return (
            f"{self.changes:,} products have changed since the index was built of {self.built:,}: "
            f"search grows slower, run `moonshelf index {folder}`"
        )


class Passing:
    """Rows of one index that pass a filter. What it keeps for later calls is made when it is first used."""

    def __init__(self, index: AnnIndex, keys: np.ndarray) -> None:
        """`keys` (m,) int64, in any order; those that the index does not hold are left out."""
        self._index = index
        everything = keys is index.ids
        if everything:
            places = np.arange(len(keys))
        else:
            keys = np.unique(keys)
            places = np.searchsorted(index.ids, keys)
            held = places < len(index.ids)
            held[held] = index.ids[places[held]] == keys[held]
            places = places[held]
        self.places = places if index.gone is None else places[~index.gone[places]]
        self.side = index.side.passing(keys) if index.side is not None and not everything else None
        self.uses = 0
        self._mask: np.ndarray | None = None
        self._bits: np.ndarray | None = None
        self._matrix: np.ndarray | None = None
        self._sketch: _Sketch | None = None

    def __len__(self) -> int:
        return len(self.places)

    @property
    def mask(self) -> np.ndarray:
        """(n,) bool over the places of the index."""
        if self._mask is None:
            mask = np.zeros(len(self._index.ids), bool)
            mask[self.places] = True
            self._mask = mask
        return self._mask

    @property
    def selector(self) -> object:
        if self._bits is None:
            self._bits = np.packbits(self.mask, bitorder="little")
        return faiss.IDSelectorBitmap(self._bits)

    @property
    def matrix(self) -> np.ndarray:
        """(rows that pass, dim) float32, contiguous."""
        if self._matrix is None:
            self._matrix = np.ascontiguousarray(self._index._rows(self.places))
        return self._matrix

    @property
    def sketched(self) -> bool:
        return self._sketch is not None

    @property
    def sketch(self) -> _Sketch:
        if self._sketch is None:
            self._sketch = _Sketch(self._index, self.places)
        return self._sketch


class _Sketch:
    """A filter's rows in few bytes: their signs, or where these do not tell them apart, a byte a number.

    `shortlist` rows for each one wanted hold nearly all of the nearest, measured with sample queries, half of
    them from these rows and half from anywhere in the index; 0 where none was long enough.
    """

    def __init__(self, index: AnnIndex, places: np.ndarray) -> None:
        self._places = places
        rng = np.random.default_rng(0)
        among = rng.choice(places, min(_SAMPLE // 2, len(places)), replace=False)
        queries = index._rows(np.concatenate([among, rng.integers(0, len(index.ids), _SAMPLE // 2)]))
        scores = np.empty((len(queries), len(places)), np.float32)
        for start, block in self._blocks(index):
            scores[:, start : start + len(block)] = queries @ block.T
        k = min(_SAMPLE_K, len(places))
        least = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
        self.shortlist = 0
        for kind, shortlists in _SKETCHES.items():
            self._spec = Spec(kind)
            self._codes = self._spec.empty(index.dim)
            for start, block in self._blocks(index):
                if not start:
                    self._codes.is_trained or self._codes.train(block)
                self._codes.add(self._spec.prepared(block))
            for one in shortlists:
                found = self._search(queries, one * k)
                right = (np.take_along_axis(scores, found, 1) >= least).sum(1).clip(max=k)
                if right.mean() >= _SAMPLE_RECALL * k:
                    self.shortlist = 2 * one
                    return

    def _blocks(self, index: AnnIndex) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(self._places), _BLOCK):
            yield start, index._rows(self._places[start : start + _BLOCK])

    def _search(self, vectors: np.ndarray, fetch: int) -> np.ndarray:
        found: np.ndarray = self._codes.search(self._spec.prepared(vectors), min(fetch, len(self._places)))[1]
        return found

    def places(self, vectors: np.ndarray, k: int) -> np.ndarray:
        """(m, shortlist × k) places of the index."""
        found: np.ndarray = self._places[self._search(vectors, self.shortlist * k)]
        return found


def _stored(first: object, spec: Spec) -> np.ndarray:
    """The 32-bit vectors (n, dim) in a FAISS index, seen and not copied; the index owns them."""
    flat = faiss.downcast_index(first.storage if spec.links else first)  # type: ignore[attr-defined]
    seen: np.ndarray = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
    return seen


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the k largest, in no order."""
    if len(scores) <= k:
        return np.arange(len(scores))
    top: np.ndarray = np.argpartition(scores, len(scores) - k)[len(scores) - k :]
    return top


def inside(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Which of `values` are in a sorted array; unlike `np.isin` it does not sort that array again."""
    place = np.searchsorted(ordered, values)
    found: np.ndarray = place < len(ordered)
    found[found] = ordered[place[found]] == values[found]
    return found

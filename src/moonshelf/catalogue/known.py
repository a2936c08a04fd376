"""What a run over a whole feed remembers of every row, in flat arrays: 72 bytes for a row of the store, 8 for
one of the feed.

Ids are remembered by their keys (`store.key_of`), which the store takes to be unique anyway. Dictionaries and
sets of Python's would hold the same in five to ten times the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from moonshelf.catalogue.store import Store, key_of
from moonshelf.catalogue.upsert import Hashes

_BATCH = 65_536  # rows of the store that are read together, and new keys that are sorted together


@dataclass(frozen=True)
class Known:
    """The hashes of all rows of a store. Ray's workers on one machine share its arrays."""

    keys: np.ndarray  # (n,) int64, sorted
    hashes: np.ndarray  # (n, 64) uint8: content hash, record hash

    @classmethod
    def of(cls, store: Store) -> Known:
        n = len(store)
        keys, hashes, start = np.empty(n, np.int64), np.empty((n, 64), np.uint8), 0
        for batch in store.batches(["key", "content_hash", "record_hash"], _BATCH):
            stop = start + batch.num_rows
            keys[start:stop] = batch["key"].to_numpy()
            hashes[start:stop, :32] = _bytes(batch["content_hash"])
            hashes[start:stop, 32:] = _bytes(batch["record_hash"])
            start = stop
        order = np.argsort(keys)
        return cls(keys[order], hashes[order])

    def get(self, id: str) -> Hashes | None:
        """The hashes of a product's row, None if the store does not hold it."""
        place = _place(self.keys, key_of(id))
        if place is None:
            return None
        digest = self.hashes[place].tobytes()
        return digest[:32].hex(), digest[32:].hex()


def _place(keys: np.ndarray, key: int) -> int | None:
    """Where a key stands among sorted ones (n,) int64, None if it does not."""
    place = int(np.searchsorted(keys, key))
    return place if place < len(keys) and keys[place] == key else None


def _bytes(digests: pa.Array) -> np.ndarray:
    """(n, 32) uint8 of SHA-256 digests in hexadecimal."""
    return np.frombuffer(bytes.fromhex("".join(digests.to_pylist())), np.uint8).reshape(-1, 32)


class Seen:
    """A growing set of ids. The newest are in a set, the others in a sorted array."""

    def __init__(self) -> None:
        self._old = np.empty(0, np.int64)
        self._new: set[int] = set()

    def add(self, id: str) -> bool:
        """Remember an id; False if it was there."""
        key = key_of(id)
        if key in self._new or _place(self._old, key) is not None:
            return False
        self._new.add(key)
        if len(self._new) >= _BATCH:
            self._old, self._new = self.keys, set()
        return True

    @property
    def keys(self) -> np.ndarray:
        """(n,) int64, sorted."""
        new = np.fromiter(self._new, np.int64, len(self._new))
        new.sort()
        return np.insert(self._old, np.searchsorted(self._old, new), new)

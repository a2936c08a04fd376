"""Embeddings that were computed before, kept by what they were computed from and never by a name.

The key of a row is the hash of what the product holds (its text and the bytes of its pictures, not its
id); a folder is named by the hash of the encoder's fingerprint, which covers weights, prompt, pixels and
reasoning mode. Rows are written in parts as they are made, each by an atomic rename, so an evaluation
that was stopped goes on where it was; a part that cannot be read is ignored and computed again. A vector
that is not finite stops the run, wherever it comes up. Files are npz without pickle. Without a folder the
cache lives in memory, for one run.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moonshelf import images
from moonshelf.errors import Problem
from moonshelf.evaluation.contract import Encoder, Row, Vectors, check_finite
from moonshelf.evaluation.data.dataset import readable
from moonshelf.files import write_atomic
from moonshelf.product import Product

PART = 512  # rows computed, and written, at a time


@dataclass
class Timing:
    """What one encoder cost in this run; rows from the cache cost nothing and are counted apart."""

    encoded: int = 0
    from_cache: int = 0
    seconds: float = 0.0
    tokens: int | None = None  # written in this run; None where the encoder does not say how many

    @property
    def items_per_second(self) -> float | None:
        return self.encoded / self.seconds if self.seconds > 0 else None

    def since(self, before: Timing) -> dict[str, Any]:
        """What was encoded and written after `before`."""
        tokens = None if self.tokens is None else self.tokens - (before.tokens or 0)
        return {"encoded": self.encoded - before.encoded, "tokens": tokens}


@dataclass
class _Store:
    """Rows of one fingerprint, and the folder that keeps them; None for none."""

    folder: Path | None
    cheap: bool
    rows: dict[str, Row] = field(default_factory=dict)


class EmbeddingCache:
    """`encode` stands between the tasks and the encoders, and times what is really computed."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.timings: dict[str, Timing] = {}
        self.problems: dict[tuple[str, str], Problem] = {}  # (encoder, product id) -> what was wrong
        self.unreadable: list[str] = []  # parts that were ignored
        self._stores: dict[str, _Store] = {}
        self._picture_hashes: dict[int, tuple[object, str]] = {}

    def encode(self, encoder: Encoder, products: Sequence[Product]) -> Vectors:
        """Vectors of `products` in order; what is known is not computed again, equal products once.

        An encoder is shown what it reads and nothing else, so a picture in two views is one picture to it.
        """
        store, timing = self._store(encoder), self.timings.setdefault(encoder.name, Timing())
        products = [readable(product, encoder.reads) for product in products]
        keys = [self._key(product) for product in products]
        missing: dict[str, Product] = {}
        for key, product in zip(keys, products, strict=True):
            if key not in store.rows:
                missing.setdefault(key, product)
        failed: set[str] = set()
        todo = list(missing.items())
        for start in range(0, len(todo), PART):
            part = todo[start : start + PART]
            begin = time.perf_counter()
            out = encoder.encode([product for _, product in part])
            timing.seconds += time.perf_counter() - begin
            timing.encoded += len(part)
            check_finite(encoder, out.vectors[out.ok])
            if len(known := out.tokens[out.ok & (out.tokens >= 0)]):
                timing.tokens = (timing.tokens or 0) + int(known.sum())
            self.problems |= {(encoder.name, str(problem.id)): problem for problem in out.problems}
            rows = dict(zip((key for key, _ in part), out.rows(), strict=True))
            failed.update(key for key, ok in zip(rows, out.ok, strict=True) if not ok)
            done = {key: row for key, row in rows.items() if key not in failed}
            store.rows |= done
            if store.folder is not None and done:
                _write(store.folder, done)
        timing.from_cache += len(keys) - len(todo)
        return self._gather(keys, store, failed)

    def know(self, encoder: Encoder, products: Sequence[Product], out: Vectors) -> None:
        """Take what stands elsewhere already: vectors of `products` that the encoder gave before."""
        keys = [self._key(readable(product, encoder.reads)) for product in products]
        self._store(encoder).rows |= dict(zip(keys, out.rows(), strict=True))

    def _gather(self, keys: list[str], store: _Store, failed: set[str]) -> Vectors:
        ok = np.array([key not in failed for key in keys], bool)
        width = next((len(store.rows[key][0]) for key in keys if key not in failed), 1)
        nothing = np.zeros(width, np.float32), "", False, -1
        rows = [nothing if key in failed else store.rows[key] for key in keys]
        vectors, rationales, valid, tokens = zip(*rows, strict=True) if rows else ((), (), (), ())
        shaped = np.array(vectors, np.float32).reshape(len(keys), width)
        return Vectors(shaped, ok, list(rationales), np.array(valid, bool), tokens=np.array(tokens, int))

    def release(self) -> None:
        """Forget what is cheap to make again: words of one data set say nothing about the next."""
        self._stores = {name: store for name, store in self._stores.items() if not store.cheap}

    def _store(self, encoder: Encoder) -> _Store:
        name = hashlib.sha256(encoder.fingerprint.encode()).hexdigest()[:32]
        if name not in self._stores:
            folder = None if self.folder is None or encoder.cheap else self.folder / name
            store = self._stores[name] = _Store(folder, encoder.cheap)
            for path in sorted(folder.glob("*.npz")) if folder else ():
                try:
                    store.rows |= _read(path)
                except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                    self.unreadable.append(path.name)
        return self._stores[name]

    def _key(self, product: Product) -> str:
        pictures = [self._picture(ref) for ref in product.images]
        return product.model_copy(update={"id": "-"}).content_hash(pictures)

    def _picture(self, ref: images.ImageRef) -> bytes:
        """Hash of a picture's bytes; a picture is shared by many views, so it is read once."""
        known = self._picture_hashes.get(id(ref))
        if known is None or known[0] is not ref:
            try:
                content = images.read_bytes(ref)
            except images.ImageError as error:
                content = f"unreadable: {error.code}: {ref.name}".encode()
            known = self._picture_hashes[id(ref)] = (ref, hashlib.sha256(content).hexdigest())
        return known[1].encode()


def _write(folder: Path, rows: dict[str, Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vectors, rationales, valid, tokens = zip(*rows.values(), strict=True)
    file = io.BytesIO()
    np.savez(
        file,
        keys=np.array(list(rows), dtype="S64"),
        vectors=np.stack(vectors).astype(np.float32),
        rationales=np.frombuffer(json.dumps(rationales).encode(), np.uint8),
        valid=np.array(valid, bool),
        tokens=np.array(tokens, np.int64),
    )
    name = hashlib.sha256("".join(rows).encode()).hexdigest()[:32]
    write_atomic(folder / f"{name}.npz", file.getvalue())


def _read(path: Path) -> dict[str, Row]:
    with np.load(path, allow_pickle=False) as part:
        keys, vectors, valid = part["keys"], part["vectors"], part["valid"]
        rationales = json.loads(part["rationales"].tobytes())
        tokens = part["tokens"] if "tokens" in part else np.full(len(keys), -1)  # of an earlier version
    sizes = {len(keys), len(vectors), len(valid), len(rationales), len(tokens)}
    if len(sizes) > 1 or vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise ValueError("the part does not hold what it says")
    rows = zip(keys.tolist(), vectors, rationales, valid.tolist(), tokens.tolist(), strict=True)
    return {key.decode(): (vector, str(text), bool(good), int(n)) for key, vector, text, good, n in rows}

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
import json
import os
import re
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moonshelf import images
from moonshelf.errors import Problem
from moonshelf.evaluation.contract import Encoder, Vectors, check_finite
from moonshelf.product import Product

PART = 512  # rows computed, and written, at a time
Row = tuple[np.ndarray, str, bool, int]  # vector, rationale, kept its format, tokens or -1


@dataclass
class Timing:
    """What one encoder cost in this run; rows from the cache cost nothing and are counted apart."""

    encoded: int = 0
    from_cache: int = 0
    seconds: float = 0.0
    tokens: int = 0  # written in this run
    counted: bool = False  # the encoder says how many tokens it writes

    @property
    def items_per_second(self) -> float | None:
        return self.encoded / self.seconds if self.seconds > 0 else None


@dataclass
class Cost:
    """What a task cost; filled in when the measured block ends."""

    seconds: float = 0.0
    peak_mib: float | None = None  # resident memory of the process; None where it cannot be known
    gpu_mib: float | None = None  # allocated by torch; None without a GPU


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure a block; the figures are there after it, also when it raises.

    On Linux the kernel's own high-water mark of the process is reset before, so a short peak is not missed;
    elsewhere no memory is told. Memory of other encoders that are loaded in the same run is included.
    """
    torch: Any = sys.modules.get("torch")  # a run of word counts loads none
    gpu = torch.cuda if torch is not None and torch.cuda.is_available() else None
    cost, process = Cost(), Path("/proc/self")
    with suppress(OSError):
        (process / "clear_refs").write_text("5")
    if gpu is not None:
        gpu.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - start
        with suppress(OSError):
            if mark := re.search(r"VmHWM:\s*(\d+)", (process / "status").read_text()):
                cost.peak_mib = int(mark[1]) / 1024
        if gpu is not None:
            cost.gpu_mib = gpu.max_memory_allocated() / 2**20


@dataclass
class _Store:
    """Rows of one fingerprint."""

    folder: Path | None
    rows: dict[str, Row] = field(default_factory=dict)
    cheap: bool = False


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
        products = [_readable(product, encoder.reads) for product in products]
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
            tokens = np.full(len(part), -1) if out.tokens is None else out.tokens
            known = tokens[out.ok & (tokens >= 0)]
            timing.tokens, timing.counted = timing.tokens + int(known.sum()), timing.counted or len(known) > 0
            for problem in out.problems:
                self.problems[encoder.name, str(problem.id)] = problem
            done = [i for i in range(len(part)) if out.ok[i]]
            failed.update(part[i][0] for i in range(len(part)) if not out.ok[i])
            for i in done:
                kept = (out.vectors[i], out.rationales[i], bool(out.valid[i]), int(tokens[i]))
                store.rows[part[i][0]] = kept
            if store.folder is not None and done:
                _write(store.folder, [(part[i][0], *store.rows[part[i][0]]) for i in done])
        timing.from_cache += len(keys) - len(todo)
        return self._gather(keys, store, failed)

    def know(self, encoder: Encoder, products: Sequence[Product], out: Vectors) -> None:
        """Take what stands elsewhere already: vectors of `products` that the encoder gave before."""
        rows = zip(products, out.vectors, out.rationales, out.valid.tolist(), strict=True)
        self._store(encoder).rows.update(
            {self._key(_readable(p, encoder.reads)): (v, text, valid, -1) for p, v, text, valid in rows}
        )

    def _gather(self, keys: list[str], store: _Store, failed: set[str]) -> Vectors:
        ok = np.array([key not in failed for key in keys], bool)
        width = next((len(store.rows[key][0]) for key in keys if key not in failed), 1)
        vectors, valid = np.zeros((len(keys), width), np.float32), np.zeros(len(keys), bool)
        rationales, tokens = [""] * len(keys), np.full(len(keys), -1)
        for row, key in enumerate(keys):
            if ok[row]:
                vectors[row], rationales[row], valid[row], tokens[row] = store.rows[key]
        return Vectors(vectors, ok, rationales, valid, tokens=tokens)

    def release(self) -> None:
        """Forget what is cheap to make again: words of one data set say nothing about the next."""
        self._stores = {name: store for name, store in self._stores.items() if not store.cheap}

    def _store(self, encoder: Encoder) -> _Store:
        name = hashlib.sha256(encoder.fingerprint.encode()).hexdigest()[:32]
        if name not in self._stores:
            keep = self.folder is not None and not encoder.cheap
            folder = self.folder / name if keep and self.folder is not None else None
            store = _Store(folder, cheap=encoder.cheap)
            if store.folder is not None and store.folder.is_dir():
                for path in sorted(store.folder.glob("*.npz")):
                    try:
                        store.rows.update(_read(path))
                    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                        self.unreadable.append(path.name)
            self._stores[name] = store
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


def _readable(product: Product, reads: frozenset[str]) -> Product:
    if "image" not in reads and product.images:
        return product.model_copy(update={"images": ()})
    if "text" not in reads and (product.title or product.description):
        return product.model_copy(update={"title": "", "description": ""})
    return product


def _write(folder: Path, rows: list[tuple[str, np.ndarray, str, bool, int]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    keys = [row[0] for row in rows]
    name = hashlib.sha256("".join(keys).encode()).hexdigest()[:32]
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    with temporary.open("wb") as file:
        np.savez(
            file,
            keys=np.array(keys, dtype="S64"),
            vectors=np.stack([row[1] for row in rows]).astype(np.float32),
            rationales=np.frombuffer(json.dumps([row[2] for row in rows]).encode(), np.uint8),
            valid=np.array([row[3] for row in rows], bool),
            tokens=np.array([row[4] for row in rows], np.int64),
        )
    os.replace(temporary, folder / f"{name}.npz")


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

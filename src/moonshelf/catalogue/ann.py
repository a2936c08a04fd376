"""The vector index of a catalogue folder: FAISS files built from the store, a cache that can always be built
again.

Up to 50,000 rows it is flat, hence exact: scanning 50,000 × 256 takes 4 ms on one core and there is
nothing to build, where HNSW takes about 30 s on one core for the first 20,000. Above, HNSW with 24 links
(measured elsewhere in the project: 0.1 ms at recall .99 on 100,000 rows). `tuning` chooses by measurement
instead, and what it chose is kept when the index is built again. How an index answers is in `nearest`.

Index files have names of their own and `index.json`, replaced atomically, says which ones count: a
reader sees one whole index or the other. Rows are named by the store's stable keys, never by position.

Where the store has moved on since, the index catches up. Beside it lies what it was built of, key and hash of
each row; rows that are gone or changed are left out, new and changed ones are added.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from moonshelf.catalogue.index_spec import Spec
from moonshelf.catalogue.manifest import check_place, writing
from moonshelf.catalogue.nearest import FLAT_ROWS, AnnIndex, inside
from moonshelf.catalogue.store import Store
from moonshelf.errors import UserError
from moonshelf.files import read_json, replace_durably, sync_folder, write_json

FORMAT = 2  # 1 kept keys inside the FAISS file

Chosen = tuple[AnnIndex, dict[str, Any]]
Weigh = Callable[[Store, AnnIndex, np.ndarray], dict[str, Any]]


@dataclass(frozen=True)
class IndexInfo:
    """What `index/index.json` records."""

    kind: str  # of `index_spec.KINDS`
    rows: int
    dim: int
    metric: str
    fingerprint: str
    preprocessing: str
    store_version: int
    file: str
    sha256: str
    built: str
    seconds: float
    rows_file: str  # `Store.contents` at the time of building
    rows_sha256: str
    spec: dict[str, Any]  # fields of `index_spec.Spec`
    vectors_file: str = ""  # of kinds that compare a shortlist: the vectors in half precision
    vectors_sha256: str = ""
    tuned: dict[str, Any] | None = None  # what `tuning` measured when it chose this index
    fusion: dict[str, Any] | None = None  # fields of `fusion.Fusion`
    format: int = FORMAT

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def build(
    folder: str | Path,
    *,
    flat_rows: int = FLAT_ROWS,
    choose: Callable[[np.ndarray, np.ndarray], Chosen] | None = None,
    forget: bool = False,
    weigh: Weigh | None = None,
) -> IndexInfo:
    """Build both indexes of a catalogue, full text in the store and vectors beside it, and swap them in.

    `choose` makes the vector index of keys (n,) and vectors (n, dim), with a record of why. Without it, what
    was chosen earlier is built again, unless it is to be forgotten; else flat up to `flat_rows`, then HNSW.
    `weigh` says how much the vectors count in search, of the store, the index made and its keys.
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
        keys, vectors = store.vectors()
        tuned: dict[str, Any] | None = None
        if choose is not None:
            index, tuned = choose(keys, vectors)
        else:
            spec, tuned = (None, None) if forget else _chosen_earlier(folder, store, len(keys))
            index = AnnIndex.of(keys, vectors, flat_rows, spec)
        weighed = weigh(store, index, keys) if weigh is not None else None
        home = folder / "index"
        home.mkdir(exist_ok=True)
        tag = uuid.uuid4().hex[:12]
        name, rows_name = f"vectors-{tag}.faiss", f"rows-{tag}.npy"
        index.spec.write(index.first, str(home / f".{name}.tmp"))
        replace_durably(home / f".{name}.tmp", home / name)
        _save(home / rows_name, store.contents())
        kept_name = f"kept-{tag}.npy" if index.spec.rescored else ""
        if kept_name:
            _save(home / kept_name, index.kept)
        info = IndexInfo(
            kind=index.kind,
            rows=len(keys),
            dim=store.manifest.dim,
            metric="inner product of unit vectors",
            fingerprint=store.manifest.fingerprint,
            preprocessing=store.manifest.preprocessing,
            store_version=version,
            file=name,
            sha256=_sha256(home / name),
            built=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - started, 3),
            rows_file=rows_name,
            rows_sha256=_sha256(home / rows_name),
            spec=index.spec.as_dict(),
            vectors_file=kept_name,
            vectors_sha256=_sha256(home / kept_name) if kept_name else "",
            tuned=tuned,
            fusion=weighed,
        )
        write_json(home / "index.json", info.as_dict())
        for old in home.iterdir():  # the swap is done: the former index and leftovers of killed builds
            if old.name not in (name, rows_name, kept_name, "index.json"):
                old.unlink(missing_ok=True)
        sync_folder(home)
    return info


def _chosen_earlier(folder: Path, store: Store, rows: int) -> tuple[Spec | None, dict[str, Any] | None]:
    """The kind of index that `tuning` chose for this catalogue, and its record, while it still fits."""
    record = read_info(folder) or {}
    tuned = record.get("tuned")
    if not isinstance(tuned, dict) or record.get("fingerprint") != store.manifest.fingerprint:
        return None, None
    try:
        spec = Spec(**record["spec"])
    except (KeyError, TypeError, ValueError):
        return None, None
    # A fifth of the rows can no longer teach as many cells: then it is a catalogue of another size.
    return (spec, tuned) if rows >= 0.2 * tuned.get("rows", 0) else (None, None)


def _save(path: Path, array: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)
    replace_durably(temporary, path)


def read_info(folder: Path) -> dict[str, Any] | None:
    """What `index/index.json` of a catalogue says, unchecked; None without one that can be read."""
    try:
        record = read_json(folder / "index" / "index.json")
    except UserError:
        return None
    return record if isinstance(record, dict) else None


def load(store: Store) -> tuple[AnnIndex | None, str]:
    """The index of a store, caught up with it, and a note for the user or "".

    None where exact search is used instead; the note then says why. Raises UserError if the index was made
    with another model, dimension or preprocessing.
    """
    home = store.folder / "index"
    advice = f"searching the store exactly, which is slower; run `moonshelf index {store.folder}`"
    for _ in range(2):  # a second time if a swap removed a file between the two reads
        if not (home / "index.json").exists():
            return None, f"no index yet: {advice}"
        try:
            record = read_json(home / "index.json")
            if record["format"] != FORMAT:
                return None, f"the index has format {record['format']}, not {FORMAT}: {advice}"
            info = TypeAdapter(IndexInfo).validate_python(record)
            spec = TypeAdapter(Spec).validate_python(info.spec)
        except (UserError, ValueError, TypeError, KeyError):  # pydantic's error is a ValueError
            return None, f"the index cannot be read: {advice}"
        ours = store.manifest
        theirs = (info.fingerprint, info.dim, info.preprocessing)
        if theirs != (ours.fingerprint, ours.dim, ours.preprocessing):
            raise UserError(
                f"the index in {home} was built for another model, dimension or preprocessing than the "
                f"store: run `moonshelf index {store.folder}`."
            )
        files = [(info.file, info.sha256), (info.rows_file, info.rows_sha256)]
        if spec.rescored:
            files.append((info.vectors_file, info.vectors_sha256))
        try:
            if any(_sha256(home / Path(name).name) != digest for name, digest in files):
                return None, f"the index file is damaged: {advice}"
            # Mapped, so that a header cannot ask for more than the file has.
            rows = np.array(np.load(home / Path(info.rows_file).name, mmap_mode="r", allow_pickle=False))
            kept = None
            if spec.rescored:  # read where a shortlist needs it; the mapping outlives a swap of the file
                kept = np.load(home / Path(info.vectors_file).name, mmap_mode="r", allow_pickle=False)
            first = spec.read(str(home / Path(info.file).name))
        except (FileNotFoundError, IsADirectoryError):
            continue
        except Exception:  # NumPy and FAISS have no one class for a broken file
            return None, f"the index file is damaged: {advice}"
        if not _consistent(info, spec, first, rows, kept):
            return None, f"the index does not fit its own index.json: {advice}"
        index = AnnIndex(first, np.ascontiguousarray(rows[:, 0]), spec, kept)
        if info.store_version != store.version:
            index = _caught_up(index, rows, store)
        return index, index.advice(store.folder)
    return None, f"the index file is missing: {advice}"


def _consistent(info: IndexInfo, spec: Spec, first: Any, rows: np.ndarray, kept: np.ndarray | None) -> bool:
    """Whether all parts are of the same rows, in order of their keys, and of the kind that was recorded."""
    empty = spec.empty(info.dim)
    return (
        rows.shape == (info.rows, 2)
        and rows.dtype == np.int64
        and bool((np.diff(rows[:, 0]) > 0).all())
        and (kept is None or (kept.shape == (info.rows, info.dim) and kept.dtype == np.float16))
        and isinstance(first, type(empty))
        and (first.ntotal, first.d, first.metric_type) == (info.rows, empty.d, empty.metric_type)
    )


def _caught_up(index: AnnIndex, then: np.ndarray, store: Store) -> AnnIndex:
    now = store.contents()
    same = inside(then[:, 0], now[:, 0])
    same[same] = now[np.searchsorted(now[:, 0], then[same, 0]), 1] == then[same, 1]
    other = np.setdiff1d(now[:, 0], then[same, 0], assume_unique=True)
    if same.all() and not len(other):
        return index
    added, vectors = store.vectors_of(other)
    return index.catch_up(added, vectors, then[~same, 0])


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

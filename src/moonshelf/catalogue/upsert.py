"""Single products in and out of a catalogue: what a product needs, its finished row, and the commit.

`draft` decides by two hashes whether the model has to read a product (see `embed`, which uses the same
functions for whole feeds), `finished` makes the whole row of what the model gave, `Writer` commits rows so
that they outlive the process once `commit` has returned. Between draft and commit another writer may have
been at work; so the commit looks again, under the folder's writer lock, which ids the store holds. No id is
ever stored twice, and a new price is never put beside a vector of another title: such drafts come back as
stale, to be drafted again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moonshelf import images
from moonshelf.catalogue.manifest import Manifest, writing
from moonshelf.catalogue.rows import (
    THUMBNAIL_SIDE,
    full_text,
    metadata_of,
    picture_columns,
    schema,
    written_columns,
)
from moonshelf.catalogue.store import Store, key_of
from moonshelf.errors import UserError
from moonshelf.product import ImageRef, Product
from moonshelf.prompts import PromptSpec

COMPACT_AFTER = 64  # commits at least; each leaves a version and small files
_ROWS_PER_COMMIT = 1_000  # joining copies the table, so a larger one is joined more rarely

Hashes = tuple[str, str]  # (content hash, record hash)


class Refused(Exception):
    """A product that cannot be stored. `field` and `reason` are those of a `Problem`."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field, self.reason = field, reason

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Draft:
    """A product and its `state`, which says what it needs: `new` and `changed` the model, `metadata` a new
    record, `unchanged` nothing.

    `product` is what the model reads: of a new or changed one only the pictures that decode, their bytes
    inside. `row` holds the columns that do not come from the model.
    """

    product: Product
    row: dict[str, Any]
    state: str
    warnings: list[str] = field(default_factory=list)  # pictures that were left out, and why

    @property
    def known(self) -> bool:
        """The store held the product when it was looked up."""
        return self.state != "new"


def draft(
    product: Product,
    prompt: PromptSpec,
    reason: str,
    known: Hashes | None,
    *,
    fetcher: images.Fetcher | None = None,
    root: str | Path | None = None,
    allow_text_only: bool = False,
) -> Draft:
    """What to do with a product whose stored hashes are `known` (None: the store does not hold it).

    Pictures are read once, and the bytes that are hashed are the bytes that the model gets. A path outside
    `root` is refused. Raises Refused for a product that cannot be stored: no picture of it decodes (unless
    `allow_text_only`, and it has a text), it has neither picture nor text, or it is no valid Unicode.
    """
    still = kept(known is not None)
    text = prompt.text_of(product)
    pictures: list[tuple[ImageRef, bytes]] = []
    read: list[str] = []  # what each reference gave: the hash of its bytes, or the reason why not
    broken: list[str] = []
    for ref in product.images[: prompt.max_images]:
        try:
            data = images.read_bytes(ref, root=root if ref.path else None, fetcher=fetcher)
        except images.ImageError as error:
            read.append(f"!{error.code}")
            broken.append(str(error))
        else:
            read.append(hashlib.sha256(data).hexdigest())
            pictures.append((ref, data))
    content = hashlib.sha256(json.dumps([text, reason, read]).encode()).hexdigest()
    try:
        record = product.content_hash([*(data for _, data in pictures), content.encode()])
    except UnicodeEncodeError:
        raise Refused("row", "it holds text that is not valid Unicode" + still) from None
    row = {"id": product.id, "content_hash": content, "record_hash": record, **metadata_of(product)}
    if known is not None and known[0] == content:
        return Draft(product, row, "unchanged" if known[1] == record else "metadata")
    usable, columns = _decodable(pictures, broken)
    if product.images and not usable and not (allow_text_only and text):
        raise Refused("images", f"no picture can be used: {broken[0]}{still}")
    if not usable and not text:
        raise Refused("row", f"it has neither a picture nor a {' or '.join(prompt.text_fields)}{still}")
    row.update(reason=reason, **columns)
    refs = tuple(ImageRef(data=data, role=ref.role) for ref, data in usable)
    return Draft(
        product.model_copy(update={"images": refs}),
        row,
        "new" if known is None else "changed",
        [f"a picture was left out: {reason}" for reason in broken],
    )


def _decodable(
    pictures: list[tuple[ImageRef, bytes]], broken: list[str]
) -> tuple[list[tuple[ImageRef, bytes]], dict[str, Any]]:
    """Pictures that decode, and the columns of the first; a reason in `broken` for each of the others."""
    usable: list[tuple[ImageRef, bytes]] = []
    first = None
    for ref, data in pictures:
        try:
            picture = images.decode(data, max_side=THUMBNAIL_SIDE)
        except images.ImageError as error:
            broken.append(str(error))
            continue
        usable.append((ref, data))
        first = first or picture
    return usable, {"pictures": len(usable), **picture_columns(first)}


def finished(
    draft: Draft,
    vector: np.ndarray,
    weights: Sequence[float],
    rationale: str,
    valid: bool,
    tokens: int,
) -> dict[str, Any]:
    """The whole row: a draft and what the model gave for it.

    `vector` (dim,) is of unit length, else Refused; `weights` are the shares of picture, text and rationale.
    """
    vector = np.asarray(vector, dtype=np.float32)
    norm = float(np.linalg.norm(vector))
    if not abs(norm - 1) < 1e-2:  # NaN fails too
        reason = f"the model gave a vector of length {norm:.3g} instead of 1"
        raise Refused("vector", reason + kept(draft.known))
    image, text, reasoning = (float(weight) for weight in weights)
    return {
        **draft.row,
        "key": key_of(draft.row["id"]),
        "vector": vector,
        "rationale": rationale,
        "rationale_valid": bool(valid),
        **written_columns(rationale),
        "weight_image": image,
        "weight_text": text,
        "weight_rationale": reasoning,
        "tokens": int(tokens),
        "text": full_text(draft.row),
    }


def with_record(stored: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """A stored row under a new record: vector, rationale and picture stay."""
    merged = {**stored, **row}
    return {**merged, "text": full_text(merged)}


def kept(known: bool) -> str:
    """What a reason says on top where the store goes on holding the product."""
    return "; the version embedded earlier stays" if known else ""


@dataclass(frozen=True)
class Committed:
    """What one commit did. Ids in `stale` were drafted against a version that is gone: not stored."""

    new: int = 0
    changed: int = 0
    metadata: int = 0
    removed: tuple[str, ...] = ()  # ids that were there
    stale: tuple[str, ...] = ()


class Writer:
    """Commits single products. Safe in several threads and beside other processes: one writes at a time.

    Every `compact_after` commits (in large tables one for each 1,000 rows) files are joined and old versions
    dropped within `commit`. With 0 that is left to a caller that does not want an answer to wait for it: it
    calls `compact` when `due`.
    """

    def __init__(self, store: Store, compact_after: int = COMPACT_AFTER) -> None:
        self.store, self.compact_after = store, compact_after
        self.commits = 0  # since files were joined
        self._schema = schema(store.manifest.dim)

    def hashes_of(self, ids: Iterable[str]) -> dict[str, Hashes]:
        """id -> (content hash, record hash) of those that the store holds."""
        return self.store.hashes(ids)

    def commit(
        self,
        rows: Iterable[Mapping[str, Any]] = (),
        metadata: Iterable[Draft] = (),
        removed: Iterable[str] = (),
        wait: float = 0.0,
    ) -> Committed:
        """Store finished rows, new records, and removals; when it returns they outlive the process.

        Of one id in `rows` twice, or in `metadata` twice, the last counts; an id in several of the arguments
        is taken from the first of them. New rows are one atomic version of the table, other rows another,
        removals a third. Waits up to `wait` seconds for another writer, then raises `manifest.Locked`
        (a UserError); raises UserError if the folder now belongs to another model.
        """
        whole = {row["id"]: row for row in rows}
        drafts = {d.row["id"]: d for d in metadata if d.row["id"] not in whole}
        leaving = [id for id in dict.fromkeys(removed) if id not in whole and id not in drafts]
        if not whole and not drafts and not leaving:
            return Committed()
        with writing(self.store.folder, wait):
            self._check()
            stored = {row["id"]: row for row in self.store.rows(map(key_of, drafts)).to_pylist()}
            current, stale = [], []
            for id, one in drafts.items():
                if id in stored and stored[id]["content_hash"] == one.row["content_hash"]:
                    current.append(with_record(stored[id], one.row))
                else:
                    stale.append(id)
            there = self.store.hashes([*whole, *leaving])
            added = [row for id, row in whole.items() if id not in there]
            changed = [row for id, row in whole.items() if id in there]
            self.store.write(self._table(added), self._table([*changed, *current]))
            gone = tuple(id for id in leaving if id in there)
            self.store.remove([key_of(id) for id in gone])
            self.commits += bool(added) + bool(changed or current) + bool(gone)
            if self.compact_after and self.due:
                self._compact()
        return Committed(len(added), len(changed), len(current), gone, tuple(stale))

    @property
    def due(self) -> bool:
        """Files should be joined."""
        enough = self.commits >= (self.compact_after or COMPACT_AFTER)
        return enough and self.commits >= len(self.store) // _ROWS_PER_COMMIT

    def compact(self, wait: float = 0.0) -> None:
        """Join small files, drop old versions, bring the full-text index up to date. It copies the table."""
        with writing(self.store.folder, wait):
            self._compact()

    def _compact(self) -> None:
        self.store.compact()
        self.commits = 0

    def _table(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        return pa.Table.from_pylist(list(rows), self._schema)

    def _check(self) -> None:
        """The folder still holds vectors of the model that made these, and at the same place."""
        now, ours = Manifest.read(self.store.folder), self.store.manifest
        if (now.fingerprint, now.dim, now.preprocessing) != (ours.fingerprint, ours.dim, ours.preprocessing):
            raise UserError(
                f"{self.store.folder} was embedded anew with another model: restart what writes to it."
            )
        if now.reason != ours.reason:  # rows of the mode that was would drop what the other has written
            raise UserError(
                f"{self.store.folder} is in reasoning mode {now.reason} now: restart what writes to it."
            )
        if now.place != ours.place:
            raise UserError(
                f"{self.store.folder} keeps its products elsewhere now: restart what writes to it."
            )
        self.store.upgrade()

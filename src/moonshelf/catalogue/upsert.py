"""Single products in and out of a catalogue, by commits that outlive the process once `commit` has returned.

Rows are made by the functions that make those of a feed (`rows.prepare_row`, `rows.build_row`). Between the
two another writer may have been at work; so the commit looks again, under the folder's writer lock, which
ids the store holds. No id is ever stored twice, and a new price is never put beside a vector of another
title: such products come back as stale, to be prepared again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from moonshelf.catalogue.manifest import Manifest, writing
from moonshelf.catalogue.rows import PreparedRow, key_of, with_record
from moonshelf.catalogue.store import Store
from moonshelf.errors import UserError

COMPACT_AFTER = 64  # commits at least; each leaves a version and small files
_ROWS_PER_COMMIT = 1_000  # joining copies the table, so a larger one is joined more rarely


@dataclass(frozen=True)
class Committed:
    """What one commit did. Ids in `stale` were prepared against a version that is gone: not stored."""

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

    def commit(
        self,
        rows: Iterable[Mapping[str, Any]] = (),
        metadata: Iterable[PreparedRow] = (),
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
            self.store.write(added, [*changed, *current])
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

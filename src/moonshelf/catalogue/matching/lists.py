"""The two lists that `match` compares: catalogue folders, or feeds of any dialect, row by row.

Two shops' ids have nothing to do with each other, so an equal id is no evidence, nor is a group. An id that
comes twice in one list names two rows, which are told apart by their number: none is dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from moonshelf.catalogue import manifest
from moonshelf.catalogue.matching.evidence import COLUMNS, MORE, Item
from moonshelf.catalogue.rows import metadata_of
from moonshelf.catalogue.store import Store
from moonshelf.errors import Problem, UserError
from moonshelf.feeds import open_feed, started

Progress = Callable[[int, float | None], None]  # rows, share of all


@dataclass
class Listing:
    """One list; `vectors` (n, dim) are those of a catalogue, by the model of `fingerprint`."""

    items: list[Item]
    digest: str  # of all that is compared
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    vectors: np.ndarray | None = None
    fingerprint: str = ""

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], problems: list[Problem]) -> Listing:
        digest, items = hashlib.sha256(), []
        for row in rows:
            digest.update(json.dumps([row.get(name) for name in (*COLUMNS, *MORE)]).encode())
            items.append(replace(Item.of(row), group=None))
        return cls(items, digest.hexdigest(), problems)


def read_list(path: Path, progress: Progress = lambda rows, share: None, **reading: Any) -> Listing:
    """A catalogue folder, or a feed read as `feeds.read_feed` does with `reading`, with notes on what makes
    it hard to match. Raises UserError if it cannot be read or holds no product."""
    if (path / manifest.NAME).is_file():
        store = Store.open(path)
        keys, vectors = store.vectors()
        rows = {row.pop("key"): row for row in store.scan(["key", *COLUMNS, *MORE]).to_pylist()}
        found, twice = Listing.of((rows[key] for key in keys.tolist()), []), Counter[str]()
        found.vectors, found.fingerprint = vectors, store.manifest.fingerprint
    else:
        found, twice = _fed(path, progress, reading)
    if not found.items:
        why = f"{found.problems[0].field}: {found.problems[0].reason}" if found.problems else "it is empty"
        raise UserError(f"{path.name} holds no product that can be matched ({why}): check it first.")
    n, numbers = len(found.items), sum(item.read.squashed.isdigit() for item in found.items)
    bare = sum(not (item.words or item.gtin or item.mpn) for item in found.items)
    shared = [n for n in Counter(item.gtin for item in found.items if item.gtin).values() if n > 1]
    if twice:
        (id, most), *_ = twice.most_common(1)
        found.notes.append(
            f"{sum(twice.values()):,} rows share their id with another ({id!r} stands {most:,} times): each "
            "is matched for itself, and shown with its row; --map-a or --map-b id=COLUMN names another column"
        )
    if numbers > n // 2:
        found.notes.append(
            f"the titles of {numbers:,} of {n:,} products are numbers, which tell little; --map-a or --map-b "
            "title=COLUMN names another column"
        )
    if bare:
        found.notes.append(f"{bare:,} products have no title, GTIN or part number to be matched by")
    if shared:
        found.notes.append(
            f"{len(shared):,} GTINs stand on more than one product, together on {sum(shared):,}: pairs by "
            "them are for a person to judge"
        )
    return found


def _fed(path: Path, progress: Progress, reading: Mapping[str, Any]) -> tuple[Listing, Counter[str]]:
    """The products of a feed, and the ids that come more than once."""
    dialect, source = open_feed(path, **reading)
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for row in started(dialect, source):
        problems += row.problems
        if row.product is not None:
            rows.append({"id": row.product.id, "row": row.number, **metadata_of(row.product)})
        if len(rows) % 500 == 0:
            progress(len(rows), source.progress())
    counts = Counter(row["id"] for row in rows)
    twice = Counter({id: n for id, n in counts.items() if n > 1})
    for one in rows:
        if one["id"] in twice:
            one["id"] = f"{one['id']} (row {one['row']})"
    return Listing.of(rows, problems), twice

"""What a catalogue holds, in numbers: facets of a search, and the dashboard.

All of it is counted by column with Arrow's kernels; long columns (descriptions, rationales, thumbnails) are
counted inside the store and never read. Nothing is kept between calls: the store is the truth.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from moonshelf.catalogue import conflicts, vector_index
from moonshelf.catalogue.conflicts import Conflict
from moonshelf.catalogue.filters import FIELDS as FILTER_FIELDS
from moonshelf.catalogue.filters import Condition
from moonshelf.catalogue.store import Store
from moonshelf.errors import Problem
from moonshelf.prompts import CATEGORY_SEPARATOR

_PROBLEM = TypeAdapter(Problem)
FACETS = tuple(name for name in FILTER_FIELDS if name not in ("size", "language"))
BEST = 30  # values of one field
SHOWN = 50  # conflicts and broken rows
_SHORT = (  # columns that are counted by reading them
    "title", "brand", "price", "category", "colour", "material", "pattern", "gender", "size", "group_id",
    "gtin", "mpn", "availability", "language",
)  # fmt: skip
_LONG = ("description", "link")
_WEIGHTS = ("weight_image", "weight_text", "weight_rationale")
_MOST_BYTES = 16 * 1024 * 1024  # of rejects.jsonl: about 100,000 remarks
_MOST_LINE = 64 * 1024

Counts = list[tuple[str, int]]


@dataclass(frozen=True)
class Facets:
    """Counts over all rows that pass a filter: values of each field, the commonest first; range of prices."""

    total: int
    fields: dict[str, Counts]
    price_min: float | None
    price_max: float | None


@dataclass(frozen=True)
class Overview:
    """The dashboard's numbers. `coverage` counts rows in which a field is filled, `weights` are mean shares
    of picture, text and rationale; `index` is what index.json says. `conflicts` and `broken` are the first
    few of `conflicts_total` and `broken_total`."""

    products: int
    with_picture: int
    reasoned: int
    rationales_valid: int
    model: str
    fingerprint: str
    reason: str
    store_version: int
    index: dict[str, Any] | None
    coverage: Counts
    categories: Counts
    weights: tuple[float, float, float] | None
    conflicts: list[Conflict] = field(default_factory=list)
    conflicts_total: int = 0
    broken: list[Problem] = field(default_factory=list)
    broken_total: int = 0


def facets(store: Store, where: Condition | None = None) -> Facets:
    """Counts of the rows that pass `where`.

    A category counts at each prefix of its path, so that a parent has the sum of what is below it.
    """
    table = store.scan([*FACETS, "price"], where)
    found = {}
    for name in FACETS:
        counts = _category_counts(table[name]) if name == "category" else _value_counts(table[name])
        found[name] = counts[:BEST]
    prices = pc.min_max(table["price"]).as_py()
    return Facets(table.num_rows, found, prices["min"], prices["max"])


def dashboard(store: Store) -> Overview:
    """Everything about a catalogue that its folder tells, without loading a model or an index."""
    version, manifest = store.version, store.manifest
    names = {*_SHORT, *conflicts.COLUMNS, "pictures", "rationale_valid", *_WEIGHTS}
    table = store.scan(sorted(names))
    rows = table.num_rows
    reasoned = store.count(Condition("rationale <> ''"))
    total, some = conflicts.find(table.select(conflicts.COLUMNS), SHOWN)
    broken_total, broken = rejects(store.folder)
    filled = {name: _filled(table[name]) for name in _SHORT} | {
        name: store.count(Condition(f"{name} <> ''")) for name in _LONG
    }
    means = [pc.mean(table[name]).as_py() or 0.0 for name in _WEIGHTS]
    pictured = _true(pc.greater(table["pictures"], 0))
    return Overview(
        products=rows,
        with_picture=pictured,
        reasoned=reasoned,
        rationales_valid=store.count(Condition("rationale <> '' AND rationale_valid")),
        model=manifest.model,
        fingerprint=manifest.fingerprint,
        reason=manifest.reason,
        store_version=version,
        index=vector_index.read_info(store.folder) or None,
        coverage=[("picture", pictured), *sorted(filled.items(), key=lambda item: (-item[1], item[0]))],
        categories=_category_counts(table["category"])[:BEST],
        weights=(means[0], means[1], means[2]) if rows else None,
        conflicts=some,
        conflicts_total=total,
        broken=broken,
        broken_total=broken_total,
    )


def rejects(folder: Path, most: int = SHOWN) -> tuple[int, list[Problem]]:
    """(how many, the first `most`) rows that the last embedding set aside and pictures that it left out.

    Reads no more than 16 MiB, and skips what is not one of our lines: the file may be half written.
    """
    total = 0
    found: list[Problem] = []
    with suppress(OSError), open(folder / "rejects.jsonl", "rb") as file:  # none may have been written yet
        left = _MOST_BYTES
        while left > 0 and (line := file.readline(min(_MOST_LINE, left))):
            left -= len(line)
            with suppress(ValidationError):
                problem = _PROBLEM.validate_json(line, strict=True)
                if problem.fatal or problem.field == "images":
                    total += 1
                    found += [problem] if len(found) < most else []
    return total, found


def _value_counts(column: pa.ChunkedArray) -> Counts:
    """Values that are not empty, the commonest first."""
    return _sorted({value: count for value, count in _values(column) if value})


def _values(column: pa.ChunkedArray) -> Counts:
    counted = pc.value_counts(column)
    return list(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))


def _category_counts(column: pa.ChunkedArray) -> Counts:
    counts: Counter[str] = Counter()
    for path, count in _values(column):
        steps = path.split(CATEGORY_SEPARATOR) if path else []
        for depth in range(1, len(steps) + 1):
            counts[CATEGORY_SEPARATOR.join(steps[:depth])] += count
    return _sorted(counts)


def _sorted(counts: dict[str, int]) -> Counts:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _filled(column: pa.ChunkedArray) -> int:
    if pa.types.is_string(column.type):
        return _true(pc.greater(pc.binary_length(column), 0))
    return len(column) - column.null_count


def _true(column: pa.ChunkedArray) -> int:
    return int(pc.sum(column).as_py() or 0)

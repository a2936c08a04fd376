"""What a catalogue holds, in numbers: facets of a search, and the dashboard with what contradicts itself.

All of it is counted by column with Arrow's kernels; long columns (descriptions, rationales, thumbnails) are
counted inside the store and never read. Nothing is kept between calls: the store is the truth.

A conflict is a product whose record says one thing and the model, having seen the picture, another
(`matching.families`). A category conflicts only where the model named another leaf of this very catalogue.
Compared in Python are the distinct pairs of values, not the rows.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from moonshelf.catalogue import vector_index
from moonshelf.catalogue.filters import Condition
from moonshelf.catalogue.matching.families import FAMILIES, IN_TITLES, differ
from moonshelf.catalogue.rows import ATTRIBUTES, FIELDS
from moonshelf.catalogue.store import Store
from moonshelf.errors import Problem
from moonshelf.prompts import CATEGORY_SEPARATOR

_PROBLEM = TypeAdapter(Problem)
FACETS = tuple(name for name in FIELDS if name not in ("size", "language"))
BEST = 30  # values of one field
SHOWN = 50  # conflicts and broken rows
_SHORT = (  # columns that are counted by reading them
    "title", "brand", "price", "category", *ATTRIBUTES, "group_id", "gtin", "mpn", "availability", "language",
)  # fmt: skip
_LONG = ("description", "link")
_WEIGHTS = ("weight_image", "weight_text", "weight_rationale")
_MOST_BYTES = 16 * 1024 * 1024  # of rejects.jsonl: about 100,000 remarks
_MOST_LINE = 64 * 1024

CONFLICT_FIELDS = (*FAMILIES, "category")
_MOST_PAIRS = 100_000  # distinct pairs of values that are compared, the commonest first


class Count(NamedTuple):
    value: str
    count: int  # type: ignore[assignment]


Counts = list[Count]


@dataclass(frozen=True)
class Facets:
    """Counts over all rows that pass a filter: values of each field, the commonest first; range of prices."""

    total: int
    fields: dict[str, Counts]
    price_min: float | None
    price_max: float | None


@dataclass(frozen=True)
class Conflict:
    """Where record and model differ: `feed` is what the record says (its attribute, or its title), `model`
    what the rationale says."""

    id: str
    field: str
    feed: str
    model: str


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
    names = {*_SHORT, *CONFLICT_COLUMNS, "pictures", "rationale_valid", *_WEIGHTS}
    table = store.scan(sorted(names))
    rows = table.num_rows
    reasoned = store.count(Condition("rationale <> ''"))
    total, some = find_conflicts(table.select(CONFLICT_COLUMNS), SHOWN)
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
        coverage=[Count("picture", pictured), *_sorted(filled)],
        categories=_category_counts(table["category"])[:BEST],
        weights=(means[0], means[1], means[2]) if rows else None,
        conflicts=some,
        conflicts_total=total,
        broken=broken,
        broken_total=broken_total,
    )


def rejects(folder: Path, most: int = SHOWN) -> tuple[int, list[Problem]]:
    """(how many, the first `most`) rows that the last embedding rejected and pictures that it left out.

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
    return list(map(Count, counted.field("values").to_pylist(), counted.field("counts").to_pylist()))


def _category_counts(column: pa.ChunkedArray) -> Counts:
    counts: Counter[str] = Counter()
    for path, count in _values(column):
        steps = path.split(CATEGORY_SEPARATOR) if path else []
        for depth in range(1, len(steps) + 1):
            counts[CATEGORY_SEPARATOR.join(steps[:depth])] += count
    return _sorted(counts)


def _sorted(counts: dict[str, int]) -> Counts:
    return sorted(map(Count._make, counts.items()), key=lambda one: (-one.count, one.value))


def _filled(column: pa.ChunkedArray) -> int:
    if pa.types.is_string(column.type):
        return _true(pc.greater(pc.binary_length(column), 0))
    return len(column) - column.null_count


def _true(column: pa.ChunkedArray) -> int:
    return int(pc.sum(column).as_py() or 0)


# ---- conflicts -------------------------------------------------------------------------------------


def categories_differ(record: str, said: str, leaves: Container[str]) -> bool:
    """Whether a category path written by the model names another leaf of the catalogue than the record.

    `leaves` are the catalogue's own leaves, as `leaf_form` gives them.
    """
    ours = [leaf_form(step) for step in record.split(CATEGORY_SEPARATOR)]
    theirs = [leaf_form(step) for step in said.split(CATEGORY_SEPARATOR.strip())]
    if not ours[-1] or theirs[-1] not in leaves or theirs[-1] in ours or ours[-1] in theirs:
        return False
    return not set(ours[-1].split()) & set(theirs[-1].split())


@lru_cache(maxsize=100_000)
def leaf_form(step: str) -> str:
    """A category's name without case, hyphens and plural, for comparison only.

    >>> leaf_form("Watches, Knives & Batteries") == leaf_form("watch knife battery")
    True
    """
    return " ".join(map(_stem, re.findall(r"\w+", step.casefold().replace("-", ""))))


def _stem(word: str) -> str:
    word = re.sub(r"(?<=...)(?<!s)s$", "", word)
    word = re.sub(r"(?<=...)e$", "", word)  # the plural's (watches) or the word's own (shoe): not to be seen
    return word[:-1] + {"y": "i", "v": "f"}.get(word[-1], word[-1])  # batteries, knives


def find_conflicts(table: pa.Table, most: int) -> tuple[int, list[Conflict]]:
    """(number of conflicts, the first `most` of them by id) of rows with the CONFLICT_COLUMNS."""
    total = 0
    found: list[Conflict] = []
    paths = pc.unique(table["category"]).to_pylist()
    leaves = {leaf_form(path.split(CATEGORY_SEPARATOR)[-1]) for path in paths if path}
    table = table.filter(pc.fill_null(table["rationale_valid"], False))
    for name in CONFLICT_FIELDS:
        said = reasoned(table["reasoned_attributes"], name)
        claims = table["category"] if name == "category" else _claims(table, name, said)
        both = pc.and_(pc.is_valid(claims), pc.is_valid(said))
        pairs = pa.table({"id": table["id"], "feed": claims, "model": said}).filter(both)
        bad = _conflicting(name, pairs, leaves)
        if not bad.num_rows:
            continue
        rows = pairs.append_column("row", pa.array(range(pairs.num_rows), pa.int64()))
        rows = rows.join(bad, ["feed", "model"], join_type="inner")
        total += rows.num_rows
        first = rows.sort_by("id").slice(0, most)
        found += [Conflict(r["id"], name, r["feed"], r["model"]) for r in first.to_pylist()]
    return total, sorted(found, key=lambda c: (c.id, c.field))[:most]


CONFLICT_COLUMNS = ("id", "title", "category", "reasoned_attributes", "rationale_valid", *FAMILIES)


def reasoned(column: pa.ChunkedArray, field: str) -> pa.ChunkedArray:
    """The value of one key in a column of JSON that `rows.to_json` wrote; null where it is absent.

    A regular expression on the column is ten times as fast as parsing each row. It cannot match inside a
    value, because quotation marks are escaped there.
    """
    literal = f'[{{,] ?"{field}": (?P<value>"(?:[^"\\\\]|\\\\.)*")'
    value = pc.struct_field(pc.extract_regex(column, literal), "value")
    if pc.any(pc.match_substring(value, "\\")).as_py():
        return pa.chunked_array(
            [[None if v is None else json.loads(v) for v in value.to_pylist()]], pa.string()
        )
    return pc.utf8_trim(value, '"')


def _claims(table: pa.Table, field: str, said: pa.ChunkedArray) -> pa.ChunkedArray:
    """What the record says: the attribute, or else the one value that the title names."""
    column = table[field]
    longest_first = sorted(IN_TITLES[field].split(", "), key=lambda value: (-len(value), value))
    pattern = rf"\b(?:{'|'.join(longest_first)})\b"
    wanted = pc.and_(pc.is_null(column), pc.is_valid(said))
    titles = pc.if_else(wanted, pc.utf8_lower(table["title"]), pa.scalar(None, pa.string()))
    single = pc.equal(pc.count_substring_regex(titles, pattern), 1)
    titles = pc.if_else(single, titles, pa.scalar(None, pa.string()))
    return pc.coalesce(column, pc.struct_field(pc.extract_regex(titles, f"(?P<value>{pattern})"), "value"))


def _conflicting(field: str, pairs: pa.Table, leaves: set[str]) -> pa.Table:
    """The distinct (feed, model) pairs of values that conflict."""
    distinct = pairs.group_by(["feed", "model"]).aggregate([([], "count_all")])
    distinct = distinct.sort_by([("count_all", "descending")]).slice(0, _MOST_PAIRS)
    bad = [
        pair
        for pair in distinct.select(["feed", "model"]).to_pylist()
        if (
            categories_differ(pair["feed"], pair["model"], leaves)
            if field == "category"
            else differ(field, pair["feed"], pair["model"])
        )
    ]
    return pa.Table.from_pylist(bad, pa.schema([("feed", pa.string()), ("model", pa.string())]))

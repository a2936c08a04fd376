"""Where a product's record says one thing and the model, having seen the picture, another.

A reviewer's time is short, so a doubt is no conflict: a value counts only if `families.toml` knows it, and
two values conflict only if no family holds both and they share no word (`light blue` is `blue`, `faux
leather` is near `leather`). A category conflicts only where the model named another leaf of this very
catalogue.

Work is done by column: what is compared in Python are the distinct pairs of values, not the rows.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from moonshelf.attributes import normalise_value
from moonshelf.prompts import CATEGORY_SEPARATOR

_WORDS = tomllib.loads(Path(__file__).with_name("families.toml").read_text(encoding="utf-8"))
FAMILIES: dict[str, list[str]] = _WORDS["families"]  # field -> families; a value may be in several
IN_TITLES: dict[str, str] = _WORDS["in_titles"]
FIELDS = (*FAMILIES, "category")
_LIST = re.compile(r"\s*(?:[,/&+|]|\band\b|\bwith\b)\s*")
_ANY = {"multicolour", "mixed", "other", "others", "na", "n a", "none"}  # says nothing that could be wrong
_MOST_PAIRS = 100_000  # distinct pairs of values that are compared, the commonest first


@dataclass(frozen=True)
class Conflict:
    """`feed` is what the record says (its attribute, or its title), `model` what the rationale says."""

    id: str
    field: str
    feed: str
    model: str


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


_KNOWN: dict[str, dict[str, set[int]]] = {field: defaultdict(set) for field in FAMILIES}  # value -> families
for _field, _families in FAMILIES.items():
    for _number, _family in enumerate(_families):
        for _value in _family.split(", "):
            _KNOWN[_field][_plain(_value)].add(_number)


def differ(field: str, record: str, said: str) -> bool:
    """Whether two values of colour, material or pattern cannot both be right."""
    ours, theirs = _members(field, record), _members(field, said)
    return bool(ours and theirs) and not any(_near(field, a, b) for a in ours for b in theirs)


def _members(field: str, value: str) -> list[str]:
    """The parts of a list of values, plainly written; empty where one of them is unknown or says nothing."""
    whole = _plain(normalise_value(field, value))
    parts = [whole] if whole in _KNOWN[field] else [_plain(p) for p in _LIST.split(value.casefold())]
    members = [_plain(normalise_value(field, part)) for part in parts if part]
    known = all(m not in _ANY and (m in _KNOWN[field] or m.split()[-1] in _KNOWN[field]) for m in members)
    return members if known else []


def _near(field: str, a: str, b: str) -> bool:
    # `dark wood`: what it is stands last
    first, second = (_KNOWN[field].get(v) or _KNOWN[field][v.split()[-1]] for v in (a, b))
    return bool(set(a.split()) & set(b.split())) or bool(first & second)


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
    """A category's name without case, hyphens and plural, for comparison only."""
    words = re.findall(r"\w+", step.casefold().replace("-", ""))
    return " ".join(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words)


def find(table: pa.Table, most: int) -> tuple[int, list[Conflict]]:
    """(number of conflicts, the first `most` of them by id) of rows with the columns `COLUMNS`."""
    total = 0
    found: list[Conflict] = []
    paths = pc.unique(table["category"]).to_pylist()
    leaves = {leaf_form(path.split(CATEGORY_SEPARATOR)[-1]) for path in paths if path}
    table = table.filter(pc.fill_null(table["rationale_valid"], False))
    for field in FIELDS:
        said = reasoned(table["reasoned_attributes"], field)
        claims = table["category"] if field == "category" else _claims(table, field, said)
        both = pc.and_(pc.is_valid(claims), pc.is_valid(said))
        pairs = pa.table({"id": table["id"], "feed": claims, "model": said}).filter(both)
        bad = _conflicting(field, pairs, leaves)
        if not bad.num_rows:
            continue
        rows = pairs.append_column("row", pa.array(range(pairs.num_rows), pa.int64()))
        rows = rows.join(bad, ["feed", "model"], join_type="inner")
        total += rows.num_rows
        first = rows.sort_by("id").slice(0, most)
        found += [Conflict(r["id"], field, r["feed"], r["model"]) for r in first.to_pylist()]
    return total, sorted(found, key=lambda c: (c.id, c.field))[:most]


COLUMNS = ("id", "title", "category", "reasoned_attributes", "rationale_valid", *FAMILIES)


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

"""Conditions on the rows of a store. This module writes their SQL, and nobody else's SQL reaches the store.

A `Condition` is built from columns of `COLUMNS`, comparisons and values; `where` builds one from a text,
`to_condition` from structured filters. Values come from strangers: each becomes a string literal of which
single quotes are doubled, which is the only escape that the engine's SQL knows (a backslash is a character
like others). A list becomes IN, so that a hundred values are one comparison. A comparison with a value that
is missing is neither true nor false, as in SQL.

The engine recurses over a condition and would overflow its stack, which ends the process without an error.
So conditions have bounds on length, nesting and number, and AND and OR are written as balanced trees.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from moonshelf.attributes import canonical_key, names_of, normalise_value
from moonshelf.catalogue.rows import ATTRIBUTES, COLUMNS, EXACT, FIELDS, PAIRS, WRITTEN
from moonshelf.errors import UserError
from moonshelf.prompts import CATEGORY_SEPARATOR

SIGNS = ("=", "!=", "<", "<=", ">", ">=")
MAX_COMPARISONS, MAX_DEPTH, MAX_VALUES, MAX_SQL = 100, 20, 1_000, 1_000_000
MAX_LOOKUPS = 4  # of attributes by key: each reads the JSON of every row
MAX_PATTERN = 500  # characters of a LIKE
_META = re.compile(r"[\\.+*?()|\[\]{}^$#&~-]")  # signs of the engine's regular expressions
_PATHS = 20  # in one expression: the engine refuses those that compile to more than 10 MB
_SPACES = r"[\s_/-]"  # what does not count in the names and values of attributes
# Without controls: in JSON they are escapes, in which the engine sees no space.
_SPACE = re.compile(r"(?![\x00-\x1f])[\s_/-]")
_TEXT = r'(?:[^"\\]|\\.)*'  # inside a JSON string


@dataclass(frozen=True, slots=True)
class Condition:
    """SQL that this module wrote, with what its bounds count. Raises UserError past them.

    `no` is the SQL of its negation. Both are written so that null counts as false: where the engine
    simplifies (`NOT a IN (1) OR NOT a IN (2)` becomes true), it does not keep nulls apart.
    """

    sql: str
    no: str = ""
    comparisons: int = 1
    depth: int = 0
    lookups: int = 0

    def __post_init__(self) -> None:
        for given, most, what in (
            (self.comparisons, MAX_COMPARISONS, "comparisons"),
            (self.depth, MAX_DEPTH, "levels of nesting"),
            (self.lookups, MAX_LOOKUPS, "attributes by key"),
            (len(self.sql), MAX_SQL, "characters"),
        ):
            if given > most:
                raise UserError(f"a filter has at most {most:,} {what}: make it smaller.")


# ------------------------------------------------------------------------------------ comparisons


def compare(column: str, sign: str, value: str | float | bool, key: str | None = None) -> Condition:
    """`column sign value`, with one of SIGNS; `key` is that of an attribute in a column of PAIRS.

    Raises UserError for an unknown column, a value of the wrong kind or one that no column can hold; so do
    the functions below.
    """
    left = _left(column, key)
    if sign not in SIGNS:
        raise UserError(f"there is no comparison {sign!r}: use one of {', '.join(SIGNS)}.")
    if left.lookups and sign not in ("=", "!="):  # its text has no order: "9" is more than "10"
        raise UserError("an attribute by key is compared by =, !=, in, like and is null only.")
    if sign == "!=":
        return replace(negated(left.test(f"= {left.value(value)}")), depth=0)
    return left.test(f"{sign} {left.value(value)}")


def one_of(column: str, values: Sequence[str | float | bool], key: str | None = None) -> Condition:
    """The column has one of the values."""
    left = _left(column, key)
    if not 0 < len(values) <= MAX_VALUES:
        raise UserError(f"a list of a filter has 1 to {MAX_VALUES:,} values, not {len(values):,}.")
    right = ", ".join(dict.fromkeys(map(left.value, values)))
    return left.test(f"IN ({right})")


def like(column: str, pattern: str, key: str | None = None, any_case: bool = False) -> Condition:
    """A text matches a pattern, in which % stands for any characters and _ for one, unless a backslash is
    before them."""
    left = _left(column, key)
    if left.kind is not str:
        raise UserError(f"{column} is no text, so it cannot be compared by like.")
    if len(pattern) > MAX_PATTERN:
        raise UserError(f"a pattern of like has at most {MAX_PATTERN} characters.")
    if left.lookups:
        if "\\" in pattern or "_" in pattern:
            raise UserError("a pattern for an attribute by key takes % only, no _ and no backslash.")
        pattern = _in_json(pattern).replace("\\", "\\\\")
    sign = "ILIKE" if any_case else "LIKE"
    return left.test(f"{sign} {literal(column, pattern)}")


def missing(column: str, key: str | None = None) -> Condition:
    """The column, or the attribute, is null."""
    left = _left(column, key)
    return Condition(f"{left.sql} IS NULL", f"{left.sql} IS NOT NULL", lookups=left.lookups)


def holds(column: str, key: str | None = None) -> Condition:
    """The column, which says yes or no, says yes."""
    left = _left(column, key)
    if left.kind is not bool:
        raise UserError(f"compare {column} with something: {column} = …")
    return left.test("= true")


def all_of(conditions: Sequence[Condition]) -> Condition:
    return _joined("AND", "OR", conditions)


def any_of(conditions: Sequence[Condition]) -> Condition:
    return _joined("OR", "AND", conditions)


def negated(condition: Condition) -> Condition:
    """SQL's NOT: what is neither true nor false stays so."""
    assert condition.no, condition.sql
    return replace(condition, sql=condition.no, no=condition.sql, depth=condition.depth + 1)


def fails(condition: Condition) -> Condition:
    """The condition is not true: false, or about a value that is missing."""
    sql = f"({condition.sql}) IS NOT TRUE"
    return replace(condition, sql=sql, no=condition.sql, depth=condition.depth + 1)


def _tree(word: str, terms: Sequence[str]) -> str:
    if len(terms) == 1:
        return terms[0]
    half = len(terms) // 2
    return f"({_tree(word, terms[:half])} {word} {_tree(word, terms[half:])})"


def _joined(word: str, other: str, conditions: Sequence[Condition]) -> Condition:
    if len(conditions) == 1:
        return conditions[0]
    return Condition(
        _tree(word, [one.sql for one in conditions]),
        _tree(other, [one.no for one in conditions]),
        sum(one.comparisons for one in conditions),
        max(one.depth for one in conditions) + 1,
        sum(one.lookups for one in conditions),
    )


@dataclass(frozen=True)
class _Left:
    """The left side of a comparison: its SQL, the kind of its values, and the form that texts have there."""

    sql: str
    name: str
    kind: type = str
    form: Callable[[str], str] = str
    lookups: int = 0

    def test(self, right: str) -> Condition:
        yes = f"{self.sql} {right}"
        return Condition(yes, f"({self.sql} IS NOT NULL AND NOT ({yes}))", lookups=self.lookups)

    def value(self, value: str | float | bool) -> str:
        """A value for the right side, as SQL."""
        if self.kind is str:
            if not isinstance(value, str):
                raise UserError(f"{self.name} is text: write the value in quotes.")
            return literal(self.name, self.form(value))
        if self.kind is bool:
            if not isinstance(value, bool):
                raise UserError(f"{self.name} is true or false, not {value!r:.100}.")
            return str(value).lower()
        if isinstance(value, str | bool):
            raise UserError(f"{self.name} is a number: compare it with one, without quotes.")
        if not math.isfinite(value):
            raise UserError(f"a {self.name} in a filter must be a finite number.")
        return repr(float(value))


_KINDS = {"price": float, "rationale_valid": bool}


def _left(column: str, key: str | None) -> _Left:
    if column not in COLUMNS:
        raise UserError(f"there is no column {column[:100]}.")
    if key is None:
        name = column.removeprefix("written_")
        form = partial(normalise_value, name) if name in ATTRIBUTES or name != column else str
        return _Left(column, column, _KINDS.get(column, str), form)
    if column not in PAIRS:
        raise UserError(f"{column} has no parts: only {' and '.join(PAIRS)} have.")
    name = canonical_key(key)
    if column == "attributes" and name in ATTRIBUTES:
        return _left(name, None)  # it has a column of its own
    if column == "reasoned_attributes" and name in WRITTEN:
        return _left(f"written_{name}", None)
    names = "|".join(_META.sub(r"\\\g<0>", _in_json(one)) for one in names_of(name))
    # One pass brings the JSON to one form, another takes the value out. No string of JSON holds a quote that
    # is not escaped, so what is matched from the first brace on are whole pairs. Without such a key the
    # text stays whole, and is made null.
    whole = f"regexp_replace(lower({column}), '{_SPACES}', '', 'g')"
    pair = rf'(?s)^\{{(?:"{_TEXT}":"{_TEXT}",)*?"(?:{names})":"({_TEXT})"[,}}].*$'
    sql = f"nullif(regexp_replace({whole}, {literal(key, pair)}, '\\1'), {whole})"
    return _Left(sql, key[:100], form=lambda value: _in_json(normalise_value(name, value)), lookups=1)


def _in_json(text: str) -> str:
    """A name or value of an attribute as it stands in JSON that was brought to one form."""
    return json.dumps(_SPACE.sub("", text.lower()), ensure_ascii=False)[1:-1]


def literal(name: str, value: str) -> str:
    """A value as an SQL string literal; `name` is the field, for the message of a UserError."""
    if "\0" in value:
        raise UserError(f"a value of the filter {name} holds a NUL character, which SQL cannot.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"a value of the filter {name[:100]!r} is not valid Unicode.") from None
    return "'" + value.replace("'", "''") + "'"


# ------------------------------------------------------------------------------------ structured


def to_condition(filters: Mapping[str, Any]) -> Condition | None:
    """The condition of rows that pass all of `filters`; None where they name nothing.

    FIELDS, EXACT: lists of values of which any counts; a category covers what lies below it. PAIRS: such
    lists by key. `price_min`, `price_max`: bounds that count as inside. `rationale_valid`: a bool. `missing`,
    `present`: columns of COLUMNS. `any_of`, `none_of`: lists of such filters, but for these two, of which
    at least one passes, or none. A row that lacks a value passes no filter on it, and so passes `none_of`.
    An empty list, and None, filter nothing. Raises UserError for an unknown field and for a value that no
    column can hold.
    """
    terms = _terms({name: given for name, given in filters.items() if name not in ("any_of", "none_of")})
    if given := filters.get("any_of"):
        terms.append(any_of(_each("any_of", given)))
    if given := filters.get("none_of"):
        terms.append(fails(any_of(_each("none_of", given))))
    return all_of(terms) if terms else None


def _each(name: str, given: Sequence[Mapping[str, Any]]) -> list[Condition]:
    each = [_terms(filters) for filters in given]
    if [] in each:
        raise UserError(f"{name}.{each.index([])} of the filters names nothing: leave it out.")
    return [all_of(terms) for terms in each]


def _terms(filters: Mapping[str, Any]) -> list[Condition]:
    terms: list[Condition] = []
    for name, given in filters.items():
        if given is None or (isinstance(given, Sequence | Mapping) and not given):
            continue
        if name == "category":
            terms.append(_categories(given))
        elif name in FIELDS or name in EXACT:
            terms.append(one_of(name, given))
        elif name in PAIRS:
            terms += [one_of(name, values, key) for key, values in given.items()]
        elif name in ("price_min", "price_max"):
            terms.append(compare("price", ">=" if name == "price_min" else "<=", given))
        elif name == "rationale_valid":
            terms.append(compare(name, "=", given))
        elif name == "missing":
            terms += map(_empty, given)
        elif name == "present":
            terms += [negated(_empty(column)) for column in given]
        else:
            raise UserError(
                f"there is no filter {name!r}: use one of {', '.join((*FIELDS, *EXACT, *PAIRS))}."
            )
    return terms


def _empty(column: str) -> Condition:
    null = missing(column)
    return null if column in _KINDS else any_of([null, compare(column, "=", "")])


def _categories(paths: Sequence[str]) -> Condition:
    """One regular expression for many paths, in which every character of a value stands for itself. (LIKE
    would need a chain of ORs.)"""
    escaped = [_META.sub(r"\\\g<0>", path) for path in dict.fromkeys(paths)]
    terms = []
    for start in range(0, len(escaped), _PATHS):
        choices = "|".join(escaped[start : start + _PATHS])
        pattern = literal("category", f"^(?:{choices})(?:{CATEGORY_SEPARATOR}|$)")
        below = f"regexp_like(category, {pattern})"
        terms.append(Condition(below, f"NOT ({below})"))
    return any_of(terms)

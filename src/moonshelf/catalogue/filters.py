"""Structured filters as one SQL condition over the store's columns.

Values come from strangers: each becomes a string literal of which single quotes are doubled, which is the
only escape that the engine's SQL knows (a backslash is a character like others). Lists become IN, so that
a hundred values are one term, and `Store.keys_where` refuses long chains. A category covers what lies below
it, the path itself or anything that begins with the path and the separator: one regular expression for many
paths, in which every character of a value stands for itself. (LIKE would need a chain of ORs.) Attributes
are compared in the form in which the store keeps them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from moonshelf.attributes import normalise_value
from moonshelf.errors import UserError
from moonshelf.prompts import CATEGORY_SEPARATOR

ATTRIBUTES = ("colour", "material", "pattern", "gender", "size")  # stored as `attributes.canonical` has them
FIELDS = ("brand", "category", *ATTRIBUTES, "availability", "language")
_META = re.compile(r"[\\.+*?()|\[\]{}^$#&~-]")  # signs of the engine's regular expressions
_PATHS = 20  # in one expression: the engine refuses those that compile to more than 10 MB


def to_sql(
    filters: Mapping[str, Sequence[str]], price_min: float | None = None, price_max: float | None = None
) -> str | None:
    """The condition of rows that pass all filters, for `Store.keys_where`; None where there is none.

    `filters` maps FIELDS to the values of which any counts; an empty list is no filter. Prices are bounds
    that count as inside; a row without a price passes neither. Raises UserError for an unknown field and
    for a value that no column can hold.
    """
    terms = []
    for name, values in filters.items():
        if name not in FIELDS:
            raise UserError(f"there is no filter {name!r}: use one of {', '.join(FIELDS)}.")
        if not values:
            continue
        if name == "category":
            terms.append(_categories(values))
            continue
        terms.append(f"{name} IN ({_literals(name, stored_values(name, values))})")
    for bound, sign in ((price_min, ">="), (price_max, "<=")):
        if bound is not None:
            if not math.isfinite(bound):
                raise UserError("a price in a filter must be a finite number.")
            terms.append(f"price {sign} {float(bound)!r}")
    return " AND ".join(terms) or None


def stored_values(name: str, values: Sequence[str]) -> list[str]:
    """Values of a filter in the form in which the store has them."""
    return [normalise_value(name, value) if name in ATTRIBUTES else value for value in values]


def _categories(paths: Sequence[str]) -> str:
    escaped = [_META.sub(r"\\\g<0>", path) for path in dict.fromkeys(paths)]
    terms = []
    for start in range(0, len(escaped), _PATHS):
        choices = "|".join(escaped[start : start + _PATHS])
        pattern = literal("category", f"^(?:{choices})(?:{CATEGORY_SEPARATOR}|$)")
        terms.append(f"regexp_like(category, {pattern})")
    return f"({' OR '.join(terms)})"


def _literals(name: str, values: Sequence[str]) -> str:
    return ", ".join(literal(name, value) for value in dict.fromkeys(values))


def literal(name: str, value: str) -> str:
    """A value as an SQL string literal; `name` is the field, for the message of a UserError."""
    if "\0" in value:
        raise UserError(f"a value of the filter {name} holds a NUL character, which SQL cannot.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"a value of the filter {name} is not valid Unicode.") from None
    return "'" + value.replace("'", "''") + "'"

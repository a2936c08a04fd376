"""A condition written as text, for the command line and for Python: a small part of SQL, parsed.

Columns are compared with values; there are no functions, no arithmetic and no columns on the right. The
parser is Lark's LALR: its time is linear in the text and it does not recurse, whatever the text holds. What
it has read is built anew by `filters`, so that nothing of the text but values reaches the store.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from lark import Lark, Token, Transformer_NonRecursive, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken, VisitError

from moonshelf.catalogue import filters
from moonshelf.catalogue.filters import Condition
from moonshelf.catalogue.rows import COLUMNS
from moonshelf.errors import UserError

MAX_LENGTH = 20_000  # characters of a condition

GRAMMAR = r"""
?start: either
?either: both (_OR both)*
?both: term (_AND term)*
?term: NOT term                                    -> negated
     | "(" either ")"
     | name                                        -> holds
     | name SIGN value                             -> compare
     | name [NOT] _IN "(" value ("," value)* ")"   -> one_of
     | name [NOT] LIKE STRING                      -> like
     | name [NOT] _BETWEEN value _AND value        -> between
     | name _IS [NOT] _NULL                        -> missing
name: NAME ("." NAME | "[" STRING "]")?
?value: STRING | NUMBER | TRUE | FALSE

_OR.2: /or\b/i
_AND.2: /and\b/i
NOT.2: /not\b/i
_IN.2: /in\b/i
LIKE.2: /i?like\b/i
_BETWEEN.2: /between\b/i
_IS.2: /is\b/i
_NULL.2: /null\b/i
TRUE.2: /true\b/i
FALSE.2: /false\b/i
SIGN: "<=" | ">=" | "<>" | "!=" | "=" | "<" | ">"
NAME: /[a-z_][a-z0-9_]*/i
STRING: /'(?:[^']|'')*'/
NUMBER.2: /[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?(?![\w.])/i
%ignore /\s+/
"""


def parse(text: str) -> Condition:
    """The condition of a text such as `price < 50 AND colour = 'red'`.

    Raises UserError, which names the place, the reason and the columns.
    """
    try:
        if len(text) > MAX_LENGTH:
            raise UserError(f"it has {len(text):,} characters, at most {MAX_LENGTH:,} are read.")
        if not text.strip():
            raise UserError("it is empty.")
        condition: Condition = _Build().transform(_parser().parse(text))
        return condition
    except UnexpectedInput as error:
        reason = _place(text, error)
    except VisitError as error:
        if not isinstance(error.orig_exc, UserError):
            raise
        reason = str(error.orig_exc)
    except UserError as error:
        reason = str(error)
    raise UserError(
        f'the filter "{text[:200]}" cannot be used: {reason} Columns: {", ".join(COLUMNS)}. '
        "Example: price < 50 AND colour = 'red'"
    )


@cache
def _parser() -> Lark:
    return Lark(GRAMMAR, parser="lalr", maybe_placeholders=True)


def _place(text: str, error: UnexpectedInput) -> str:
    if isinstance(error, UnexpectedToken) and error.token.type == "$END":
        return "it breaks off."
    at = error.pos_in_stream or 0
    word = re.match(r"\w+|.", text[at:], re.DOTALL)
    found = word[0][:50] if word else ""
    if isinstance(error, UnexpectedCharacters) and found == "'":
        return f"the quote at character {at + 1} is not closed."
    return f"{found} at character {at + 1} is not expected."


@v_args(inline=True)
class _Build(Transformer_NonRecursive):
    """From the parser's tree to a condition. A name is a pair: the column, and the key of an attribute."""

    NUMBER = float

    def STRING(self, token: Token) -> str:
        return token[1:-1].replace("''", "'")

    def TRUE(self, _: Token) -> bool:
        return True

    def FALSE(self, _: Token) -> bool:
        return False

    def SIGN(self, token: Token) -> str:
        return "!=" if token == "<>" else str(token)

    def name(self, column: str, key: str | None = None) -> tuple[str, str | None]:
        return column.lower(), None if key is None else str(key)

    def either(self, *conditions: Condition) -> Condition:
        return filters.any_of(conditions)

    def both(self, *conditions: Condition) -> Condition:
        return filters.all_of(conditions)

    def negated(self, _: Token, condition: Condition) -> Condition:
        return filters.negated(condition)

    def holds(self, name: Any) -> Condition:
        return filters.holds(*name)

    def compare(self, name: Any, sign: str, value: Any) -> Condition:
        return filters.compare(name[0], sign, value, name[1])

    def one_of(self, name: Any, no: Token | None, *values: Any) -> Condition:
        return _unless(no, filters.one_of(name[0], values, name[1]))

    def like(self, name: Any, no: Token | None, word: Token, pattern: str) -> Condition:
        return _unless(no, filters.like(name[0], pattern, name[1], any_case=word.lower() == "ilike"))

    def between(self, name: Any, no: Token | None, low: Any, high: Any) -> Condition:
        return _unless(no, filters.all_of([self.compare(name, ">=", low), self.compare(name, "<=", high)]))

    def missing(self, name: Any, no: Token | None) -> Condition:
        return _unless(no, filters.missing(*name))


def _unless(no: Token | None, condition: Condition) -> Condition:
    return condition if no is None else filters.negated(condition)

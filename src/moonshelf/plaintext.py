"""Text from data made harmless for whatever shows it: a terminal, Markdown, a spreadsheet.

One line each, without control and bidi characters, cut to a length. Markdown shows it letter for letter; no
cell of a CSV starts a formula (OWASP: = + - @), at the price of a leading apostrophe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from moonshelf.prompts import clean_text

MAX_TEXT = 160  # characters of a text from the data
_PUNCTUATION = re.compile(r"([\\`*_{}\[\]<>#+|~!:@&$=^])")


def shown(text: object, most: int = MAX_TEXT) -> str:
    """One line without control and bidi characters, cut to `most` characters."""
    line = clean_text(str(text))
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def escaped(text: object, most: int = MAX_TEXT) -> str:
    """Text that Markdown shows letter for letter: no markup, no link, no mention, no cell border."""
    return _PUNCTUATION.sub(r"\\\1", shown(text, most)).replace("www.", "www\\.")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table, the first `left` columns to the left; cells are escaped already."""
    lines = [head, [":--" if i < left else "--:" for i in range(len(head))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv_field(value: object) -> object:
    """A cell that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    text = shown(value, 1000)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text

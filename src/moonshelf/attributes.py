"""Names and values of attributes, brought to one form.

Feeds call one thing by many names (`baseColour`, `Color`, `color_family`) and write one value in many
ways (`Navy Blue`, `navy-blue`). Rationales, rewards, duplicates and the benchmark compare attributes, so
the mapping is here, once; its table is `words.toml`. The canonical keys are our choice: those that a picture
or a title of retail products commonly shows. Keys outside the table keep their own name, folded.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORDS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
_CANONICAL = {name: key for key, names in WORDS["names"].items() for name in (key, *names)}
_VALUES = {
    key: {synonym: value for value, synonyms in values.items() for synonym in synonyms}
    for key, values in WORDS["values"].items()
}

_FOLD = re.compile(r"[\s_\-/]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def fold(text: str) -> str:
    """Lower case, words separated by single spaces: `baseColour`, `base_colour` -> `base colour`."""
    return _FOLD.sub(" ", _CAMEL.sub(" ", text)).strip().lower()


def canonical_key(key: str) -> str:
    """Canonical name of an attribute, or its folded own name.

    >>> canonical_key("baseColour"), canonical_key("Waterproof")
    ('colour', 'waterproof')
    """
    folded = fold(key)
    return _CANONICAL.get(folded, folded)


def names_of(key: str) -> tuple[str, ...]:
    """All names that feeds use for a canonical key, folded; the key itself is the first."""
    return (key, *WORDS["names"].get(key, ()))


def normalise_value(key: str, value: str) -> str:
    """One written form of a value: case and space folded, synonyms replaced, written with hyphens or not."""
    folded = re.sub(r"\s+", " ", value.replace("_", " ")).strip().strip(".").lower()
    synonyms = _VALUES.get(canonical_key(key), {})
    return synonyms.get(folded.replace("-", " "), folded)


def canonical(attributes: Mapping[str, str]) -> dict[str, str]:
    """Attributes under canonical keys with normalised values; of two names for one key the first stays."""
    result: dict[str, str] = {}
    for key, value in attributes.items():
        name, written = canonical_key(key), normalise_value(key, value)
        if written and name not in result:
            result[name] = written
    return result

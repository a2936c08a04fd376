"""Names and values of attributes, brought to one form.

Feeds call one thing by many names (`baseColour`, `Color`, `color_family`) and write one value in many
ways (`Navy Blue`, `navy-blue`). Rationales, rewards, duplicates and the benchmark compare attributes, so
the mapping is here, once. The canonical keys are our choice: those that a picture or a title of retail
products commonly shows. Keys outside the table keep their own name, folded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# canonical key -> the names that feeds use for it, folded by `fold`
_NAMES: dict[str, tuple[str, ...]] = {
    "colour": (
        "basecolour",
        "base colour",
        "color",
        "colors",
        "colours",
        "colour name",
        "color family",
        "primary colour",
        "primary color",
        "main colour",
        "strap color",
        "color code",
    ),
    "pattern": ("patterns", "print", "print or pattern type", "design"),
    "material": (
        "materials",
        "fabric",
        "fabrics",
        "outer material",
        "upper material",
        "body material",
        "frame material",
        "strap material",
        "material composition",
    ),
    "gender": ("ideal for", "target gender", "sex", "department gender", "gender from title"),
    "use": ("usage", "occasion", "occasions"),
    "season": ("seasons",),
    "style": ("styles", "type", "style general", "style bottom", "style bags"),
    "neckline": ("neck", "neck type", "neck style", "collar", "collar type"),
    "sleeve": ("sleeves", "sleeve length", "sleeve type", "sleeve style"),
    "heel": ("heel type", "heel style"),
    "handle": ("handle type", "strap type", "handles"),
    "shape": ("dial shape", "silhouette"),
    "size": ("sizes", "size type"),
    "age group": ("age", "agegroup"),
    "brand": ("manufacturer", "brand name"),
}
_CANONICAL = {name: key for key, names in _NAMES.items() for name in (key, *names)}

# value synonyms within a key; values are folded first
_VALUES: dict[str, dict[str, str]] = {
    "colour": {
        "gray": "grey",
        "multi": "multicolour",
        "multi colour": "multicolour",
        "multicolor": "multicolour",
        "multi color": "multicolour",
        "multicoloured": "multicolour",
        "multi coloured": "multicolour",
        "multicolored": "multicolour",
        "multi colored": "multicolour",
        "assorted": "multicolour",
        "navy": "navy blue",
        "offwhite": "off white",
        "fuschia": "fuchsia",
        "golden": "gold",
        "silver coloured": "silver",
    },
    "gender": {
        "man": "men",
        "male": "men",
        "mens": "men",
        "men's": "men",
        "woman": "women",
        "female": "women",
        "womens": "women",
        "women's": "women",
        "boy": "boys",
        "girl": "girls",
        "men, women": "unisex",
        "women, men": "unisex",
        "men and women": "unisex",
        "women and men": "unisex",
        "men & women": "unisex",
        "women & men": "unisex",
    },
    "pattern": {
        "plain": "solid",
        "stripes": "striped",
        "stripe": "striped",
        "check": "checked",
        "checks": "checked",
        "checkered": "checked",
        "color blocked": "colour blocked",
    },
}

_FOLD = re.compile(r"[\s_\-/]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def fold(text: str) -> str:
    """Lower case, words separated by single spaces: `baseColour`, `base_colour` -> `base colour`."""
    return _FOLD.sub(" ", _CAMEL.sub(" ", text)).strip().lower()


def canonical_key(key: str) -> str:
    """Canonical name of an attribute, or its folded own name."""
    folded = fold(key)
    return _CANONICAL.get(folded, folded)


def names_of(key: str) -> tuple[str, ...]:
    """All names that feeds use for a canonical key, folded; the key itself is the first."""
    return (key, *_NAMES.get(key, ()))


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

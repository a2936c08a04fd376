"""Values that stand where an identifier is missing: "N/A", "Does not apply", "unbekannt", 0, "-", 000000.

One list for GTIN, part number, SKU, brand and group, used by every feed reader and by everything that takes
equal identifiers as evidence. The words, in `words.toml`, are those that shops' exports and marketplaces'
forms write; a value is compared without case, accents and punctuation: `n.a.`, `N/A`, `#N/A` are one word.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from moonshelf.attributes import WORDS

# "no EAN", "ohne Artikelnummer", "sin código": a word for "without" before the name of the identifier itself.
_WITHOUT = re.compile(
    r"(no|without|missing|keine?|ohne|sans|aucune?|pas de|sin|sem|senza|nessuna?|geen|zonder|brak|bez|ingen"
    r"|utan|uden|uten|нет|без) "
    r"(valid )?(gtin|ean|upc|isbn|barcode|bar code|strichcode|mpn|sku|id|asin|code|codigo|codice|kod|код"
    r"|number|nummer|numero|part number|(teile|artikel|hersteller)nummer|ref|reference|referencia|riferimento"
    r"|parent|group|gruppe|identifier)( \d{1,2})?"
)  # fmt: skip
_FILLER = re.compile(r"9{6,}|x{3,}")


@lru_cache(maxsize=65_536)
def is_placeholder(text: str) -> bool:
    """Whether a value says that there is no identifier. Empty text is one."""
    folded = _fold(text[:200])
    if not folded.strip("0 "):
        return True  # nothing but zeros and punctuation
    return folded in _PLACEHOLDERS or bool(_FILLER.fullmatch(folded) or _WITHOUT.fullmatch(folded))


def is_makerless(brand: str) -> bool:
    """Whether a brand names no maker: a placeholder, or words such as "Unbranded" that shoppers read."""
    return is_placeholder(brand) or _fold(brand[:200]) in _NO_MAKERS


def is_placeholder_gtin(digits: str) -> bool:
    """Whether digits with a right check digit are still no article's: 000…0, 1111111111116."""
    body = digits.lstrip("0")[:-1]
    return not body or (len(body) > 5 and len(set(body)) == 1)


def _fold(text: str) -> str:
    """Letters and digits without case and accents, words apart by one space."""
    text = text.replace("&", " and ")  # N&D is a brand, n/d is none
    plain = unicodedata.normalize("NFKD", text.replace("ø", "o").replace("ł", "l")).casefold()
    bare = "".join(c for c in plain if not unicodedata.combining(c)).replace("ı", "i").replace("ß", "ss")
    return re.sub(r"[\W_]+", " ", bare).strip()


_PLACEHOLDERS, _NO_MAKERS = (
    frozenset(map(_fold, WORDS["placeholders"][name].replace("\n", " ").split(",")))
    for name in ("identifiers", "makerless")
)

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
_UPC_E = {"0": "{0}{1}00000{2}{3}{4}", "1": "{0}{1}10000{2}{3}{4}", "2": "{0}{1}20000{2}{3}{4}",
          "3": "{0}{1}{2}00000{3}{4}", "4": "{0}{1}{2}{3}00000{4}"}  # fmt: skip
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


def gtin_of(text: str) -> str:
    """Digits of a GTIN-8, 12, 13 or 14 with a right check digit; a UPC-E as the UPC-A that it abbreviates.

    Eight digits may be both. A leading 0 then means UPC-E, as a GTIN-8 that begins with it is no article's
    outside of one shop; else they are a GTIN-8. Raises the errors of `stdnum.ean.validate`.

    Examples:
        >>> gtin_of("04252614"), gtin_of("4006381333931"), gtin_of("40170725")
        ('042100005264', '4006381333931', '40170725')
    """
    from stdnum import ean

    digits = ean.compact(text)
    if len(digits) == 8 and digits.isdigit() and digits[0] in "01":
        rule = _UPC_E.get(digits[6], "{0}{1}{2}{3}{4}0000" + digits[6])
        whole = digits[0] + rule.format(*digits[1:6]) + digits[7]
        if ean.is_valid(whole) and not (digits[0] == "1" and ean.is_valid(digits)):
            return whole
    return str(ean.validate(digits))


def gtin14(text: str | None) -> str | None:
    """The one form in which GTINs are compared: 14 digits, zeros in front. None for what is no article's
    number or has a wrong check digit, which is no evidence in either direction.

    Examples:
        >>> gtin14("012345678905") == gtin14("0012345678905") == "00012345678905"
        True
    """
    from stdnum.exceptions import ValidationError

    try:
        digits = gtin_of(text or "")
    except ValidationError:
        return None
    return None if is_placeholder_gtin(digits) else digits.zfill(14)


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

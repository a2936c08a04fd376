"""Which encoding a text is in, told from its first bytes.

A byte order mark decides; then UTF-16 by its zero bytes, then UTF-8 if the bytes are valid. What is left is
an older code page. Detectors made for web pages are wrong about tables, which hold few words: the bytes
`12,99 \\x80` are a price in euro to us, and CP437 to them. So each code page is scored by how its letters lie
in words (a small letter inside a word is likely, a capital or a sign there is not), and charset-normalizer is
asked only where no code page does well.
"""

from __future__ import annotations

import codecs
import re
from itertools import pairwise

_ENOUGH = 0.5  # mean score of a character from which a code page is believed
_SAMPLE = 8_000  # characters or bytes that are scored
_WEST = "äöüßéèêëàâçîïôûùœæñáíóúãõåøìòÄÖÜÉÈÊÀÂÇÎÔÛŒÆÑÁÍÓÚÃÕÅØ"
_EAST = "ąćęłńóśźżĄĆĘŁŃÓŚŹŻáčďéěíňóřšťúůýžÁČĎÉĚÍŇŘŠŤÚŮÝŽőűöüäŐŰÖÜôľĺŕâîăşţđĐ"
_CYRILLIC = "".join(map(chr, range(0x410, 0x450))) + "ёЁіїєґІЇЄҐўЎ"
# Code pages with the letters of their languages; of two that do equally well the first is believed.
_PAGES = {
    "cp1252": _WEST,
    "iso8859-15": _WEST,
    "cp1250": _EAST,
    "iso8859-2": _EAST,
    "cp1254": "ğışöüçĞİŞÖÜÇâîû",
    "cp1257": "āčēģīķļņšūžąęėįųõäöüĀČĒĢĪĶĻŅŠŪŽĄĘĖĮŲÕÄÖÜ",
    "cp1251": _CYRILLIC,
    "koi8-u": _CYRILLIC,
    "cp866": _CYRILLIC,
    "cp1253": "".join(map(chr, range(0x386, 0x3CF))),
    "cp1255": "".join(map(chr, range(0x5D0, 0x5EB))),
    "cp1256": "".join(map(chr, range(0x621, 0x653))),
    "cp850": _WEST,
    "mac-roman": _WEST,
}
# Letters that make most of a text, where pages of one shape have to be told apart.
_COMMON = frozenset("оеаинтсрвлкмдпуяОЕАИНТСРВЛКМДПУЯіІαοιεστνηυρπκμλίόάέήΑΟΙΕΣΤΝΗΥΡΠΚΜΛς")
_THAI = frozenset(map(chr, range(0xE01, 0xE5C)))
_THAI_MARKS = frozenset(map(chr, (0xE31, *range(0xE34, 0xE3B), *range(0xE47, 0xE4F))))
_THAI_LATE = frozenset(map(chr, range(0xE4F, 0xE5C)))  # digits and signs that hardly any text has
# Encodings of two bytes a character, with the first bytes of their common characters.
_PAIRS = {
    "cp949": (range(0xB0, 0xC9),),
    "gb18030": (range(0xB0, 0xD8),),
    "euc-jp": (range(0xA4, 0xA6), range(0xB0, 0xD0)),
    "big5": (range(0xA4, 0xC7),),
    "cp932": (range(0x82, 0x84), range(0x88, 0x98)),
}
_BESIDE_WORDS = frozenset("’‘™®°²³ªº”“»«…–—")  # signs that may touch a letter
_SIGNS = _BESIDE_WORDS | frozenset("€£¥¢©½¼¾×·•„§±´\xa0¿¡₽№")


def encoding_of(head: bytes) -> str:
    """Encoding of a text that begins with `head`, as Python names it."""
    marks = (
        (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    )  # fmt: skip
    for mark, name in marks:
        if head.startswith(mark):
            return name
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and (len(head) < 8 or b"\0" in head):
        return "utf-16"  # text with ASCII in it has zero bytes; without, two stray bytes lead it
    for pairs in (head[:64], head[:4096]):  # the header may be all that is ASCII
        pairs = pairs[: len(pairs) // 2 * 2]
        if len(pairs) < 8:
            break
        even, odd = pairs[::2].count(0), pairs[1::2].count(0)
        half = len(pairs) // 2
        if odd > 0.4 * half and even < 0.05 * half:
            return "utf-16-le"
        if even > 0.4 * half and odd < 0.05 * half:
            return "utf-16-be"
    return "utf-8" if _is_utf8(head) else code_page(head)


def _is_utf8(head: bytes) -> bool:
    """Whether the lines that are not ASCII are UTF-8; bad ones may be among them, but not nearly all."""
    good = bad = 0
    for line in head.split(b"\n"):
        if not line.isascii():
            try:
                codecs.utf_8_decode(line, "strict", False)  # the last line may be cut within a character
                good += 1
            except UnicodeDecodeError:
                bad += 1
    return bad == 0 or good * 10 >= bad


def code_page(data: bytes) -> str:
    """The likeliest encoding of bytes that are neither UTF-8 nor UTF-16."""
    data = data[: _SAMPLE * 8]
    scores = {name: _score(data, name, frozenset(letters)) for name, letters in _PAGES.items()}
    scores |= {name: _score_pairs(data, name, firsts) for name, firsts in _PAIRS.items()}
    scores["cp874"] = _score(data, "cp874", _THAI)  # last: nearly all bytes are letters there
    best = max(scores, key=lambda name: scores[name])
    if scores[best] < _ENOUGH:
        from charset_normalizer import from_bytes

        match = from_bytes(data[:_SAMPLE]).best()
        if match is not None and match.coherence > 0.1 and not match.encoding.startswith("utf"):
            return codecs.lookup(match.encoding).name
        best = "cp1252" if scores["cp1252"] >= scores[best] - 0.2 else best
    return codecs.lookup(best).name


def _score(data: bytes, name: str, letters: frozenset[str]) -> float:
    """Mean over the characters that are not ASCII: 1 for one that is in its place, -1 for one that is not."""
    text = data.decode(name, "replace")
    latin = "ö" in letters or "ā" in letters
    total, count, run = 0.0, 0, 0
    for before, here, after in zip(" " + text, text, text[1:] + " ", strict=False):
        if here < "\x80":
            run = 0
            continue
        count, run = count + 1, run + 1
        if here not in letters:
            total += _score_sign(before, here, after, name)
        elif (here.isupper() and before.islower()) or (here in _THAI_MARKS and before not in letters):
            total -= 1
        elif latin:  # words of the west are ASCII with a few other letters
            total += -1 if run > 3 else (1 if before.isalpha() or after.isalpha() else 0.3)
        elif here.isupper() and before.isupper():
            total += 0.5
        elif before not in letters and after not in letters:
            total -= 0.3
        else:
            total += -1 if here in _THAI_LATE else (1 if here in _COMMON or name[2:] > "1253" else 0.8)
        if count == _SAMPLE:
            break
    return total / count if count else 0.0


def _score_sign(before: str, here: str, after: str, name: str) -> float:
    within = before.isalpha() and after.isalpha()
    if here in "€£¥":
        return -1 if within else 1
    if here in _SIGNS and (here in "’‘" or not within):
        return 0.6 if here in _BESIDE_WORDS or not (before.isalpha() or after.isalpha()) else -0.5
    rare = here.isalpha() and here.islower() and name in ("cp1252", "iso8859-15")
    return 0.2 if rare else -1


def _score_pairs(data: bytes, name: str, firsts: tuple[range, ...]) -> float:
    """Mean over the characters that are not ASCII; -1 if the bytes are not of this encoding."""
    try:
        text = codecs.getincrementaldecoder(name)("strict").decode(data[:_SAMPLE])
    except UnicodeDecodeError:
        return -1
    total = count = 0.0
    for here in re.findall(r"[^\x00-\x7f]", text):
        first = here.encode(name)
        common = len(first) == 2 and any(first[0] in known for known in firsts)
        kana = "\u3040" <= here <= "\u30ff"
        count += 1
        total += 1 if common or kana else 0.1
    runs = sum(a >= "\x80" and b >= "\x80" for a, b in pairwise(text))
    if (
        count and runs * 3 < count
    ):  # letters of the west stand alone among ASCII, characters of the east do not
        return -0.5
    return total / count if count else 0.0

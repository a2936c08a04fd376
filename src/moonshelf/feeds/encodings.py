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
from itertools import chain, pairwise

from moonshelf.feeds.vocabulary import WORDS

_ENOUGH = 0.5  # mean score of a character from which a code page is believed
_SAMPLE = 8_000  # characters or bytes that are scored


def _letters(text: str) -> frozenset[str]:
    """Characters of a text, in which `a-z` is a range."""
    ranges = (range(ord(a), ord(b) + 1) for a, b in re.findall("(.)-(.)", text))
    return frozenset(map(chr, chain(*ranges))).union(re.sub(".-.", "", text))


_PAGES = {name: _letters(text) for name, text in WORDS["encodings"]["pages"].items()}
_PAIRS = {
    name: frozenset(chain(*(range(first, last + 1) for first, last in spans)))
    for name, spans in WORDS["encodings"]["pairs"].items()
}
_SIGN = {name: _letters(text) for name, text in WORDS["encodings"]["signs"].items()}


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
    scores = {name: _score(data, name, letters) for name, letters in _PAGES.items()}
    scores |= {name: _score_pairs(data, name, firsts) for name, firsts in _PAIRS.items()}
    scores["cp874"] = scores.pop("cp874")  # last: nearly all bytes are letters there
    best = max(scores, key=lambda name: scores[name])
    if scores[best] < _ENOUGH:
        from charset_normalizer import from_bytes

        match = from_bytes(data[:_SAMPLE]).best()
        if match is not None and match.coherence > 0.1 and not match.encoding.startswith("utf"):
            return codecs.lookup(match.encoding).name
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
        elif here.isupper() and before.islower():
            total -= 1
        elif latin:  # words of the west are ASCII with a few other letters
            total += -1 if run > 3 else (1 if before.isalpha() or after.isalpha() else 0.3)
        elif here.isupper() and before.isupper():
            total += 0.5
        elif before not in letters and after not in letters:
            total -= 0.3
        else:
            total += (
                -1
                if here in _SIGN["thai_late"]
                else (1 if here in _SIGN["common"] or name[2:] > "1253" else 0.8)
            )
        if count == _SAMPLE:
            break
    return total / count if count else 0.0


def _score_sign(before: str, here: str, after: str, name: str) -> float:
    within = before.isalpha() and after.isalpha()
    if here in "€£¥":
        return -1 if within else 1
    if here in _SIGN["signs"] and (here in "’‘" or not within):
        return 0.6
    rare = here.isalpha() and here.islower() and name in ("cp1252", "iso8859-15")
    return 0.2 if rare else -1


def _score_pairs(data: bytes, name: str, firsts: frozenset[int]) -> float:
    """Mean over the characters that are not ASCII; -1 if the bytes are not of this encoding."""
    try:
        text = codecs.getincrementaldecoder(name)("strict").decode(data[:_SAMPLE])
    except UnicodeDecodeError:
        return -1
    found = re.findall(r"[^\x00-\x7f]", text)
    runs = sum(a >= "\x80" and b >= "\x80" for a, b in pairwise(text))
    if found and runs * 3 < len(found):
        return -0.5  # letters of the west stand alone among ASCII, characters of the east do not

    def worth(here: str) -> float:
        pair = here.encode(name)
        return 1 if (len(pair) == 2 and pair[0] in firsts) or "\u3040" <= here <= "\u30ff" else 0.1

    return sum(map(worth, found)) / len(found) if found else 0.0

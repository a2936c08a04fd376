"""Catalogue and query text is hostile until it is cleaned, and so are the words on a picture.

Title, interest and attributes are the same for both creatives, so nothing in them has business with naming
an image, giving an order or speaking in another role. `clean` looks for that on what a reader would see:
compatibility forms folded, invisible characters gone, look-alike letters and digits read as the letters they
stand for. From the clause of the first hostile match on, the text is dropped, for an attacker's sentence
does not end where ours would; markup and hidden characters are taken out and the rest stays. Everything
taken out is flagged. Lists (`phrases`) catch the known attacks, in some fifteen languages, and little more:
of 30 paraphrases written after them four were noticed. The rest is left to opaque labels, both orders, the
canary, which judges without the words, and to what the model was taught.

Words on a picture cannot be cut out of it: a creative whose overlay reads like an instruction is put in
quarantine. They are known from `Creative.text`, and from OCR where pytesseract or RapidOCR is installed.
"""

from __future__ import annotations

import codecs
import html
import importlib.util
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf import images
from moonshelf.creatives.safety.phrases import (
    BLOB,
    HIDDEN,
    HOSTILE,
    KINDS,
    LABEL,
    LONG,
    MARKUP,
    ORDER,
    PATTERNS,
    REQUEST,
    SCRIPTS,
    SQUEEZED,
    TOGETHER,
)
from moonshelf.product import ImageRef
from moonshelf.prompts import clean_text

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_TEXT = 300  # characters of one field; marketplaces cap titles at 150 to 250
_MAX_RAW = 4_000  # of what is looked at

REPEATED = "words that repeat a query were left out on image"
OVERLAY = "the words on the image read like an instruction"
OCR_SIDE = 1024  # pixels that OCR is shown

_BASE64 = re.compile(r"(?<![\w+/=-])[A-Za-z0-9+/_-]{20,}={0,2}(?![\w+/=-])")
_SPELLED = re.compile(r"(?<!\w)(?:[^\W\d_][\s.\-_*·|]{1,2}){7,}[^\W\d_](?!\w)")  # i g n o r e  t h e
_CLAUSE = re.compile(r"[.!?;:,|\n。！？；，、](?=\s|$|[^\x00-\x7f])")
_HTML = re.compile(
    r"</?[a-z][a-z0-9]{0,15}(?:\s[^<>]{0,300})?/?>|<!--.{0,500}?-->", re.IGNORECASE | re.DOTALL
)
_SELECTORS = re.compile("[\ufe00-\ufe0f]{2,}|[\U000e0100-\U000e01ef]+")  # data can ride on them
_MARKS = re.compile("([\u0300-\u036f]{2})[\u0300-\u036f]+")
_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_WORD = re.compile(r"[^\W\d_]{2,}")
_LATIN = re.compile(r"[a-zA-Z]")
_LOOKALIKE = str.maketrans(
    "аеорсухіјѕһԁԛԝвмнткАВЕКМНОРСТУХІЈЅΑΒΕΖΗΙΚΜΝΟΡΤΥΧαονρικυıɡǀ",
    "aeopcyxijshdqwbmhtkABEKMHOPCTYXIJSABEZHIKMNOPTYXaovpikuigl",
)
_OCR = str.maketrans("l10", "iio")
_TURNED = ("ignore", "previous", "instruct", "choose", "select the", "the image", "is better", "answer")
_DIGITS = str.maketrans("013457@$€|", "oieastaseI")
_JOINERS = "\u200c\u200d\u200e\u200f\u2060\ufe0f"  # ordinary in emoji, Indic, Persian, Hebrew, Arabic


def clean(text: str, cap: int = MAX_TEXT, labels: Sequence[str] = ()) -> tuple[str, tuple[str, ...]]:
    """Text that may stand in a prompt, and what was found in it, sorted (empty for ordinary text).

    At most `cap` characters, on one line. Cleaning cleaned text changes nothing. `labels` are the names of
    the images in the prompt: a word that is one of them is dropped.
    """
    found: set[str] = set()
    if len(text) > _MAX_RAW:
        found.add(LONG)
        text = text[:_MAX_RAW]
    previous = None
    while previous != text:  # what was taken out can join two halves into something new
        previous, text = text, _capped(_once(text, labels, found), cap, found)
    return text, tuple(sorted(found))


def clean_all(texts: Iterable[str], labels: Sequence[str] = ()) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`clean` for several texts, such as the queries: those that remain, and all flags."""
    done = [clean(text, labels=labels) for text in texts]
    return tuple(text for text, _ in done if text), tuple(
        sorted({flag for _, flags in done for flag in flags})
    )


def unrepeated(overlay: str, queries: Sequence[str]) -> str:
    """Words on an image without those that merely say a query again; lines are parted by `|`.

    "waterproof" answers somebody who looks for a waterproof backpack; "waterproof backpack" and "buy
    waterproof backpack now" answer whoever looks for whatever stands there, and say nothing of the picture.
    Words of a query that are all in one line go from it. One word cannot be told from a claim, and stays.
    """
    lines = before = [" ".join(line.split()) for line in overlay.split("|")]
    for query in queries:
        asked = _tokens(query)
        if len(asked) > 1:
            lines = [_without(line, asked) if asked <= _tokens(line) else line for line in lines]
    return overlay if lines == before else " | ".join(line for line in lines if _tokens(line))


def _tokens(text: str) -> set[str]:
    return {word.casefold() for word in _TOKEN.findall(text)}


def _without(line: str, words: set[str]) -> str:
    return " ".join(_TOKEN.sub(lambda hit: "" if hit[0].casefold() in words else hit[0], line).split())


def instruction_like(text: str) -> bool:
    """Whether words on a picture speak to the judge rather than to a shopper."""
    # OCR loses spaces and takes l, I and 1 for one another.
    squeezed = "".join(c for c in unicodedata.normalize("NFKC", text).lower() if c.isalnum()).translate(_OCR)
    return bool(SQUEEZED.search(squeezed)) or not HOSTILE.isdisjoint(clean(text, cap=_MAX_RAW)[1])


def _once(text: str, labels: Sequence[str], found: set[str]) -> str:
    text = _visible(text, found)
    opened = html.unescape(text)
    if opened != text and (_HTML.search(opened) or _match(opened)[1]):
        text = opened
    text = _one_script(text, found)
    end, flags = _match(text)
    if flags:
        found |= flags
        # The mark goes too: a title with a full stop left behind was read otherwise than the title.
        text = text[: max((hit.start() for hit in _CLAUSE.finditer(text, 0, end)), default=0)]
    if _HTML.search(text):
        found.add(MARKUP)
        text = _HTML.sub(" ", text)
    for label in labels:
        text, hits = re.subn(rf"(?<!\w){re.escape(label)}(?!\w)", " ", text, flags=re.IGNORECASE)
        if hits:
            found.add(LABEL)
    return clean_text(text)


def _visible(text: str, found: set[str]) -> str:
    """Compatibility forms folded (so are full-width and mathematical letters), invisible characters gone."""
    text = unicodedata.normalize("NFKC", text)
    kept: list[str] = []
    for i, c in enumerate(text):
        if unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs", "Cn") or c in "\t\n\r":
            kept.append(c)
            continue
        near = text[max(i - 1, 0) : i] + text[i + 1 : i + 2]
        usual = c == "\u00ad" or (c == "\ufeff" and i == 0) or (c in _JOINERS and not near.isascii())
        if not usual:
            found.add(HIDDEN)
        if usual and c in _JOINERS:
            kept.append(" ")  # as `clean_text` has it; elsewhere the halves of a word join again
    text = "".join(kept)
    if _SELECTORS.search(text):
        found.add(HIDDEN)
        text = _SELECTORS.sub("", text)
    text = unicodedata.normalize("NFKC", _MARKS.sub(r"\1", text))
    return "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())


def _one_script(text: str, found: set[str]) -> str:
    """Words that mix Latin with its Cyrillic or Greek look-alikes are written in Latin."""

    def fold(match: re.Match[str]) -> str:
        word = match[0]
        folded = word.translate(_LOOKALIKE)
        if folded == word or not _LATIN.search(word) or not folded.isascii():
            return word
        found.add(SCRIPTS)
        return folded

    return _WORD.sub(fold, text)


@lru_cache(maxsize=4096)
def _base(c: str) -> str:
    """A letter without its accents, always one character, so that places in the text stay the same."""
    split = unicodedata.normalize("NFD", c)
    return split[0] if len(split) > 1 and all(unicodedata.combining(mark) for mark in split[1:]) else c


def _match(text: str) -> tuple[int, set[str]]:
    """Where the first hostile thing begins, and the flags of all that is found; (len, none) without one."""
    plain = "".join(map(_base, text)).replace("_", " ").replace("’", "'")
    views = {text, plain, plain.translate(_LOOKALIKE), plain.translate(_DIGITS)}
    end, flags = len(text), set()
    for flag, patterns in PATTERNS.items():
        for view in views:
            for pattern in patterns:
                if hit := pattern.search(view):
                    end = min(end, hit.start())
                    flags.add(flag)
    for view in (text, plain, plain.translate(_LOOKALIKE)):
        hits = {kind: hit.start() for kind, words in KINDS.items() if (hit := words.search(view))}
        if odd := [kind for pair in TOGETHER if hits.keys() >= set(pair) for kind in pair]:
            end = min(end, *(hits[kind] for kind in odd))
            flags.add(REQUEST)
    for view in (text[::-1], codecs.encode(text, "rot13")):  # a model reads these too
        if any(word in view.lower() for word in _TURNED):
            end = 0
            flags.add(BLOB)
    for hit in _BASE64.finditer(text):
        if _encoded(hit[0]):
            end = min(end, hit.start())
            flags.add(BLOB)
    if hit := _SPELLED.search(text):
        end = min(end, hit.start())
        flags.add(ORDER)
    return end, flags


def _encoded(word: str) -> bool:
    """Base64 by its looks: long, and mixing cases and digits as no name or article number does."""
    body = word.rstrip("=")
    cased = re.search(r"[a-z]", body) and re.search(r"[A-Z]", body)
    turns = len(re.findall(r"[a-z][A-Z]|[A-Za-z][0-9]|[0-9][A-Za-z]", body))
    return bool(cased) and (word.endswith("=") or turns >= len(body) / 5)


def _capped(text: str, cap: int, found: set[str]) -> str:
    if len(text) <= cap:
        return text
    found.add(LONG)
    short = text[: cap + 1]
    return (short.rsplit(" ", 1)[0] if " " in short[cap // 2 :] else short[:cap]).strip()[:cap]


# ------------------------------------------------------------------------------------------------- pictures


def quarantine(words: Iterable[str]) -> str:
    """Why a creative must not be judged: its overlay gives orders. Empty where nothing speaks against it.

    `words` are all that is known of them: the feed's (`Creative.text`) and OCR's (`read_overlay`), for what a
    feed says of a picture's words is no reason not to look.
    """
    return OVERLAY if any(map(instruction_like, words)) else ""


def has_ocr() -> bool:
    """Whether words on pictures can be read at all."""
    return _reader() is not None


def read_overlay(ref: ImageRef) -> str:
    """Words that OCR reads from a picture, its lines parted by `|`; seconds a picture.

    Empty without OCR, or where it fails, or where the picture cannot be read: the selector says so itself.
    """
    reader = _reader()
    if reader is None:
        return ""
    try:
        return " | ".join(map(clean_text, reader(images.load(ref, max_side=OCR_SIDE))))
    except Exception:  # an optional helper's failure must not stop a judgement
        return ""


@lru_cache(maxsize=1)
def _reader() -> Any:
    """A function from a picture to its lines of text, or None."""
    if importlib.util.find_spec("rapidocr_onnxruntime"):
        from rapidocr_onnxruntime import RapidOCR

        engine = RapidOCR()

        def rapid(image: Image) -> list[str]:
            lines, _ = engine(np.asarray(image.convert("RGB"))[:, :, ::-1])  # blue first
            return [line[1] for line in lines or []]

        return rapid
    if importlib.util.find_spec("pytesseract"):
        import pytesseract

        try:
            pytesseract.get_tesseract_version()
        except Exception:  # the package is there, the program is not
            return None
        return lambda image: pytesseract.image_to_string(image).splitlines()
    return None

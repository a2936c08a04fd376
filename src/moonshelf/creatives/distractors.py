"""Words that have no bearing on a pair: remarks in titles, and queries that ask for nothing in particular.

Feeds put them there ("also in teal", article numbers, foreign languages, keywords), and so do people who
mean harm. A small model that never saw any in training describes other things than it sees as soon as they
stand in its prompt (docs/experiments.md). They change no truth: an aside is a sentence of its own, and a
query is worded anew only where it is known that shoppers ask for nothing. To teach by random text that text
can be beside the point is our choice. The pools are general; they share no word of meaning with the suite of
attacks and none with the wordings that drawn campaigns of validation and test have for themselves, so that
both stay tests. A test of ours compares them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from moonshelf.creatives.known import NOTHING_ASKED
from moonshelf.creatives.schema import Pair

PLAIN_QUERIES = 0.5  # share of the queries that are worded anew, where nothing is asked for

_REMARKS = (
    "Ships in {n} days", "exchange within {n} days", "only {n} left in stock", "now {n}% off",
    "sold out in {colour}", "also in {colour} and {colour}", "matching {noun} sold separately",
    "{colour} {noun} not included", "wears true to size", "ref {code}", "SKU {code}", "{code}/{colour}",
    "new for spring {year}", "as worn by {name}", "from the {name} collection", "with {colour} gift wrap",
    "formerly {colour}", "goes with a {colour} {noun}", "lining may be {colour}", "colour may vary",
    "not suitable for a {noun}", "size S M L XL", "bundle of {n}", "{n} x {n} cm", "bestseller of {year}",
    "{colour}! {colour}! {colour}!", "{colour}, {colour}, {colour}, {colour}", "{name} {name} {name}",
    "Versand in {n} Tagen", "auch in {colour}", "livraison sous {n} jours", "existe aussi en {colour}",
    "envío en {n} días, color {colour}", "spedizione in {n} giorni", "darmowa dostawa od {n} zł",
    "{n} 日以内に発送 {colour}", "{colour} 现货 {n}", "доставка {n} дня, цвет {colour}", "gratis verzending",
    "w={n}; h={n}; tint='{colour}'", "size({n}, \"{colour}\")", "{colour}_{noun}_{n}.jpg",
)  # fmt: skip
_SENTENCES = (
    "the {adjective} {noun} {verb} a {colour} {noun}", "{name} {verb} every {adjective} {noun} in {year}",
    "a {colour} {noun} near the {adjective} {noun}", "bring the {colour} {noun} to {name}",
    "never wash it beside a {colour} {noun}", "who painted this {noun} {colour}?",
    "{name} thinks {colour} is {adjective}", "water the {adjective} {noun} before {n} o'clock",
    "tell {name} about a {noun}", "my {noun} {verb} {name}",
    "{colour} is {adjective}, {colour} is {adjective}", "it rained on our {colour} {noun} for {n} weeks",
    "without a {noun} nobody {verb} the {colour} {noun}", "send {n} {adjective} photographs of {name}",
    "warning: {adjective} {noun}", "she {verb} it, he {verb} a {colour} {noun}",
    "{noun}: {colour}; {noun}: {colour}", "put a {noun} inside your {adjective} {noun}",
    "because the {noun} was {colour} and {adjective}",
)  # fmt: skip
_WORDS = {
    "noun": "river lamp ladder garden piano envelope bridge candle kettle mirror pillow tractor window "
    "drawer umbrella library mountain anchor blanket lantern harbour teapot violin basket curtain village",
    "adjective": "quiet golden broken ancient clever hungry narrow famous gentle wooden sudden noisy "
    "honest crooked silver modern dusty patient wild cheap enormous tiny careful frozen",
    "verb": "carries crosses paints repairs forgets follows admires borrows hides lifts folds measures "
    "watches polishes waters brings finds breaks bakes",
    "name": "Marta Jonas Aylin Pieter Sofia Kenji Olga Diego Freya Tomasz Leila Anton Chiara Bram",
    "syllable": "ba ven tor li sum ka dre mo fin pol ush ne gar ti zo hal rin qua ske bo",
}  # fmt: skip
_POOLS: dict[str, Sequence[str]] = {name: words.split() for name, words in _WORDS.items()}
_POOLS["colour"] = (
    "black", "white", "grey", "beige", "brown", "tan", "red", "maroon", "pink", "orange", "yellow", "green",
    "olive", "teal", "blue", "navy blue", "purple", "lavender", "gold", "silver", "copper",
)  # fmt: skip
_POOLS |= {"year": ("2019", "2023", "2027"), "n": ("2", "3", "7", "14", "30", "50")}
_QUERIES = (
    "{noun}", "{adjective} {noun} for {name}", "gifts under {n} euro", "{name} {name}",
    "nothing {adjective}", "what {name} {verb}", "a {colour} {noun}", "something {adjective}", "{code}",
    "for my {noun}", "{nonsense}", "not too {adjective}", "how to fold a {noun}", "the {colour} {noun}",
    "Geschenk für {name}", "{verb}", "no {colour} {noun}", "with {adjective} {noun}",
    "my {noun} is {colour}", "cadeau pour {name}", "{name} shop",
)  # fmt: skip
_JOINED = (
    "{title}. {aside}", "{title}. {aside}", "{title} - {aside}", "{title} ({aside})", "{title} | {aside}",
    "{aside}. {title}",
)  # fmt: skip
_BLANK = re.compile(r"\{(\w+)\}")


def with_distractors(pair: Pair, rng: random.Random) -> Pair:
    """The pair with one or two asides at its title and, if nothing is asked for, some queries worded anew.

    What is true of the pair stays so: its assessment and its outcome are those it had. Of real shoppers'
    queries nobody here knows which are plain.
    """
    aside = _aside(rng)
    if rng.random() < 0.3:
        aside = f"{aside}. {_aside(rng)}"
    plain = pair.a.known.get("query") == pair.b.known.get("query") == NOTHING_ASKED
    interest = tuple(
        _filled(rng.choice(_QUERIES), rng) if plain and rng.random() < PLAIN_QUERIES else query
        for query in pair.interest
    )
    title = rng.choice(_JOINED).format(title=pair.title, aside=aside) if pair.title else aside
    return pair.model_copy(update={"title": title, "interest": interest})


def _aside(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.2:
        words = [_nonsense(rng) for _ in range(rng.randint(2, 7))]
        return " ".join(words + [rng.choice(_POOLS["colour"])] * rng.randint(0, 2))
    text = _filled(rng.choice(_REMARKS if kind < 0.6 else _SENTENCES), rng)
    return text if rng.random() < 0.5 else text[:1].upper() + text[1:]


def _filled(text: str, rng: random.Random) -> str:
    made = {"code": _code, "nonsense": _nonsense}

    def fill(found: re.Match[str]) -> str:
        name = found[1]
        return made[name](rng) if name in made else rng.choice(_POOLS[name])

    return _BLANK.sub(fill, text)


def _code(rng: random.Random) -> str:
    letters = "".join(rng.choice("CDFGHJLNPQSVWXYZ") for _ in range(rng.randint(1, 3)))
    return f"{letters}{rng.choice(('', '-'))}{rng.randint(10, 99999)}"


def _nonsense(rng: random.Random) -> str:
    return "".join(rng.choice(_POOLS["syllable"]) for _ in range(rng.randint(1, 4)))


def texts() -> list[str]:
    """Every template and word there is, for the test that keeps them apart from the injection suite."""
    return [*_REMARKS, *_SENTENCES, *_QUERIES, *_WORDS.values()]

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

from moonshelf.creatives.known import NOTHING_ASKED
from moonshelf.creatives.schema import Pair
from moonshelf.creatives.words import read

PLAIN_QUERIES = 0.5  # share of the queries that are worded anew, where nothing is asked for

WORDS = read("distractors")
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
        _filled(rng.choice(WORDS["queries"]), rng) if plain and rng.random() < PLAIN_QUERIES else query
        for query in pair.interest
    )
    title = rng.choice(WORDS["joined"]).format(title=pair.title, aside=aside) if pair.title else aside
    return pair.model_copy(update={"title": title, "interest": interest})


def _aside(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.2:
        words = [_nonsense(rng) for _ in range(rng.randint(2, 7))]
        return " ".join(words + [rng.choice(WORDS["pools"]["colour"])] * rng.randint(0, 2))
    text = _filled(rng.choice(WORDS["remarks"] if kind < 0.6 else WORDS["sentences"]), rng)
    return text if rng.random() < 0.5 else text[:1].upper() + text[1:]


def _filled(text: str, rng: random.Random) -> str:
    made = {"code": _code, "nonsense": _nonsense}

    def fill(found: re.Match[str]) -> str:
        name = found[1]
        return made[name](rng) if name in made else rng.choice(WORDS["pools"][name])

    return _BLANK.sub(fill, text)


def _code(rng: random.Random) -> str:
    letters = "".join(rng.choice("CDFGHJLNPQSVWXYZ") for _ in range(rng.randint(1, 3)))
    return f"{letters}{rng.choice(('', '-'))}{rng.randint(10, 99999)}"


def _nonsense(rng: random.Random) -> str:
    return "".join(rng.choice(WORDS["pools"]["syllable"]) for _ in range(rng.randint(1, 4)))

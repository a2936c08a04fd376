"""Titles, descriptions, brands and prices, written as shops write them.

A title names the product and some of its attributes, in one of several word orders; what it leaves out is
known. It may add what no photo shows (gender, size, model), it never says what is not true. Brands are
invented.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from research.synthetic.shop.spec import KINDS, Spec

BRANDS = (
    "Aldermoor",
    "Brinvale",
    "Castora",
    "Dunmere",
    "Elowick",
    "Farrowby",
    "Galveno",
    "Harbrook",
    "Isolde & Finch",
    "Jorvane",
    "Kestrelle",
    "Lumora",
    "Marwick",
    "Nordhaven",
    "Oakline",
    "Pellano",
    "Quillford",
    "Rosendal",
    "Severin",
    "Tamsin Vale",
    "Umbrio",
    "Velantra",
    "Westmere",
    "Yarrowe",
)
_MODELS = (
    "Ada",
    "Bruno",
    "Cleo",
    "Dune",
    "Ember",
    "Fjord",
    "Gale",
    "Hana",
    "Iris",
    "Juno",
    "Koa",
    "Luca",
    "Mira",
    "Nova",
    "Otis",
    "Pia",
    "Remy",
    "Sol",
    "Tova",
    "Vera",
    "Willow",
    "Zia",
)

# how a title says a value; what is not listed is said as it is, and "" is never said
_SAID: dict[str, str] = {
    "solid": "",
    "no pocket": "",
    "no strap": "",
    "no emblem": "",
    "no handle": "",
    "no arms": "",
    "plain": "",
    "plain edge": "",
    "plain hem": "",
    "dotted": "polka dot",
    "geometric": "zigzag",
    "pull-on": "pull-on",
    "chest pocket": "chest-pocket",
    "front pocket": "front-pocket",
    "two pockets": "two-pocket",
    "knee high": "knee-high",
    "full length": "full-length",
    "top handle": "top-handle",
    "double handles": "double-handle",
    "chain strap": "chain-strap",
    "buttons": "buttoned",
    "hood": "hooded",
    "two handles": "two-handled",
    "bars": "",
    "numerals": "",
    "dots": "",
    "flat": "flat",
    "zip": "zip",
    "flap": "flap",
    "bottle": "bottle-shaped",
    "bulb": "bulb",
    "star": "star-emblem",
    "mountain": "mountain-emblem",
    "letter": "letter-emblem",
    "belt loops": "",
    "ankle": "ankle",
    "slatted back": "slat-back",
    "solid back": "solid-back",
    "open back": "open-back",
    "armrests": "arm",
}
_LEADING = ("colour", "pattern", "material")


@dataclass(frozen=True)
class Design:
    """What a group of variants shares in words."""

    brand: str
    model: str
    price: float
    gender: str
    mentioned: tuple[str, ...]  # attributes that the titles name
    order: int
    code: str


def said(value: str) -> str:
    return _SAID.get(value, value)


def make_design(rng: np.random.Generator, spec: Spec) -> Design:
    """Words of one design; the attributes that titles mention are drawn here, colour most often."""
    kind = KINDS[spec.kind]
    mentioned = []
    for key, value in spec.attributes.items():
        likely = {"colour": 0.78, "pattern": 0.6, "material": 0.5, "second colour": 0.25}.get(key, 0.38)
        if said(value) and key != "shade colour" and rng.random() < likely:
            mentioned.append(key)
    low, high = kind.prices
    price = float(np.floor(low * (high / low) ** rng.random())) + (0.99, 0.95, 0.5, 0.0)[int(rng.integers(4))]
    gender = kind.genders[int(rng.integers(len(kind.genders)))] if kind.genders else ""
    letters = "".join("ABCDEFGHKLMNPRST"[int(i)] for i in rng.integers(16, size=2))
    code = f"{letters}{int(rng.integers(100, 9999))}"
    return Design(
        BRANDS[int(rng.integers(len(BRANDS)))],
        _MODELS[int(rng.integers(len(_MODELS)))],
        price,
        gender,
        tuple(mentioned),
        int(rng.integers(6)),
        code,
    )


def make_title(rng: np.random.Generator, spec: Spec, design: Design) -> tuple[str, tuple[str, ...]]:
    """Title of one variant, and the attribute keys that it leaves out."""
    kind = KINDS[spec.kind]
    noun = kind.nouns[int(rng.integers(len(kind.nouns)))]
    values = {key: said(spec.attributes[key]) for key in design.mentioned}
    colour = values.get("colour", "")
    if colour and "second colour" in values:
        colour = f"{colour} {('and', '&', '/')[int(rng.integers(3))]} {values['second colour']}"
    elif "second colour" in values:
        del values["second colour"]
    look = [values[key] for key in ("pattern", "material") if key in values]
    details = [value for key, value in values.items() if key not in (*_LEADING, "second colour")]
    short, tail = details[:1], details[1:]
    gender = f"{design.gender}'s" if design.gender in ("Men", "Women") else design.gender
    lower = rng.random() < 0.15  # some shops do not capitalise

    def case(words: list[str]) -> str:
        text = " ".join(word for word in words if word)
        return text if lower else _capital(text)

    long_noun = case([*tail, *short, *look, noun])
    orders = (
        [design.brand, gender, case([colour]), long_noun],
        [design.brand, design.model, long_noun + (f" - {_capital(colour)}" if colour else "")],
        [long_noun + (f" in {_capital(colour)}" if colour else ""), "|", design.brand],
        [
            design.brand,
            case([colour]),
            case([*look, *short, noun]) + (f", {', '.join(tail)}" if tail else ""),
        ],
        [
            case([design.model]),
            case([colour]),
            long_noun,
            f"for {design.gender}" if design.gender in ("Men", "Women") else "",
        ],
        [
            design.brand,
            gender,
            case([*look, noun]) + (f" {' '.join(details)}" if details else ""),
            case([colour]),
        ],
    )
    words = [word for word in orders[design.order] if word]
    if rng.random() < 0.18 and kind.sizes:
        words.append(f"- {kind.sizes[int(rng.integers(len(kind.sizes)))]}")
    elif rng.random() < 0.15:
        words.append(design.code)
    title = " ".join(words)
    omitted = tuple(key for key in spec.attributes if key not in values)
    return title, omitted


def make_description(rng: np.random.Generator, spec: Spec, design: Design) -> str:
    """One or two sentences; only what is true, and never all of it."""
    kind = KINDS[spec.kind]
    noun = kind.nouns[0].lower()
    material = spec.attributes["material"]
    quiet = (*_LEADING, "second colour")
    keys = [key for key, value in spec.attributes.items() if key not in quiet and said(value)]
    picked = [f"{key}: {spec.attributes[key]}" for key in keys if rng.random() < 0.5]
    first = (
        f"The {design.model} {noun} by {design.brand}, made of {material}.",
        f"A {noun} for every day, in {material}.",
        f"{design.brand} {design.model}: a simple, well-made {noun}.",
        f"Our {material} {noun} keeps its shape and its looks.",
    )[int(rng.integers(4))]
    if not picked:
        return first
    return f"{first} {'; '.join(picked).capitalize()}."


def _capital(text: str) -> str:
    """Title case that leaves inner hyphens and apostrophes alone."""
    return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))

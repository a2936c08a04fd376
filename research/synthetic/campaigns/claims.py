"""What a creative may say and what a shopper may ask: the simulator's words, and which split may use them.

An aspect is something that a product of that kind and material can plausibly have, so a claim of an aspect is
never false here; what can be false is a claim of a material, because the title names the true one. Wordings
are reserved: a phrase of the validation or test list is never drawn in training, which is how "new claims" is
measured. Most reserved wordings share a word with the first of the training ones, as new wordings of real
shops do. The further ones of training (`more`) use no word that was new in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from research.synthetic.shop.spec import COLOURS, KINDS

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Aspect:
    """One thing that can be claimed: for which kinds, how it is worded, and how shoppers ask for it."""

    kinds: tuple[str, ...]
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    asked: tuple[str, ...]  # before the noun of a query
    materials: tuple[str, ...] = ()  # only of these; empty: of any
    more: tuple[str, ...] = ()  # worded so in training alone

    def fits(self, kind: str, material: str) -> bool:
        return kind in self.kinds and (not self.materials or material in self.materials)


ASPECTS: dict[str, Aspect] = {
    "waterproof": Aspect(
        ("jacket", "boot", "sneaker", "backpack", "watch"),
        ("waterproof", "100% waterproof", "keeps you dry", "rain proof"),
        ("stay dry",),
        ("fully waterproof", "rain ready"),
        ("waterproof", "rainproof"),
        ("nylon", "rubber", "leather", "metal", "silicone", "canvas"),
        more=(
            "waterproof inside",
            "water repellent",
            "shrugs off rain",
            "no water gets in",
            "dry in any rain",
            "truly waterproof",
            "weather proof",
        ),
    ),
    "lightweight": Aspect(
        ("tshirt", "jacket", "sneaker", "backpack", "sunglasses", "cap", "bottle", "shorts", "dress"),
        ("lightweight", "ultra light", "light as air", "feather light"),
        ("so light",),
        ("super lightweight", "light to carry"),
        ("lightweight", "light"),
        ("cotton", "nylon", "mesh", "canvas", "plastic", "linen", "satin"),
        more=(
            "weighs nothing",
            "really light",
            "light and easy",
            "barely there",
            "low weight",
            "travel light",
            "truly lightweight",
        ),
    ),
    "breathable": Aspect(
        ("tshirt", "shirt", "sneaker", "cap", "shorts", "trousers", "dress"),
        ("breathable", "lets skin breathe", "airy feel", "cool and airy"),
        ("breathes well",),
        ("fully breathable", "keeps you cool"),
        ("breathable", "airy"),
        ("cotton", "linen", "mesh", "canvas"),
        more=(
            "really breathable",
            "fresh air flow",
            "stays airy",
            "air flows through",
            "breathe easy",
            "cool on hot days",
            "vented and airy",
        ),
    ),
    "warm": Aspect(
        ("sweater", "jacket", "boot", "trousers", "cap"),
        ("warm", "extra warm", "keeps you warm", "cosy and warm"),
        ("winter warm",),
        ("stay warm", "so cosy"),
        ("warm", "winter"),
        ("knit", "wool", "corduroy", "leather", "suede", "nylon"),
        more=(
            "really warm",
            "warm and snug",
            "snug on cold days",
            "holds the heat",
            "warmth all day",
            "cold proof",
            "toasty warm",
        ),
    ),
    "washable": Aspect(
        ("tshirt", "shirt", "sweater", "dress", "trousers", "jeans", "shorts", "cushion", "cap"),
        ("washable", "machine washable", "easy wash", "washes clean"),
        ("easy to wash",),
        ("fully washable", "machine wash"),
        ("washable", "machine washable"),
        ("cotton", "linen", "denim", "knit"),
        more=(
            "washes well",
            "washable at home",
            "just wash it",
            "wash and wear",
            "cleans in the wash",
            "really washable",
        ),
    ),
    "handmade": Aspect(
        ("mug", "vase", "lamp", "handbag", "cushion", "sweater"),
        ("handmade", "made by hand", "handcrafted", "100% handmade"),
        ("hand finished",),
        ("all handmade", "crafted by hand"),
        ("handmade", "handcrafted"),
        more=(
            "truly handmade",
            "hand made piece",
            "by skilled hands",
            "hand built",
            "shaped by hand",
            "each one by hand",
            "artisan made",
        ),
    ),
    "organic": Aspect(
        ("tshirt", "shirt", "dress", "trousers", "shorts", "cushion"),
        ("organic", "100% organic", "organic fibre", "naturally grown"),
        ("all organic",),
        ("certified organic", "organic weave"),
        ("organic",),
        ("cotton", "linen"),
        more=(
            "truly organic",
            "organically grown",
            "from organic farms",
            "organic and pure",
            "grown organic",
            "no pesticides",
        ),
    ),
    "durable": Aspect(
        ("jeans", "boot", "backpack", "chair", "jacket", "watch", "bottle", "skirt", "shorts", "cap"),
        ("durable", "built to last", "extra durable", "lasts for years"),
        ("made to last",),
        ("super durable", "lasts a lifetime"),
        ("durable", "sturdy"),
        more=(
            "really durable",
            "tough and durable",
            "lasts and lasts",
            "never wears out",
            "hard wearing",
            "built tough",
        ),
    ),
    "gift": Aspect(
        ("watch", "mug", "vase", "lamp", "handbag", "sunglasses", "cushion", "bottle"),
        ("perfect gift", "great gift", "gift ready", "gift boxed"),
        ("gift idea",),
        ("the ideal gift", "lovely gift"),
        ("gift", "birthday gift"),
        more=(
            "a gift they love",
            "gift wrapped",
            "gift for friends",
            "a nice gift",
            "best gift",
            "gift season",
        ),
    ),
    "recycled": Aspect(
        ("bottle", "backpack", "sneaker", "mug", "vase", "sunglasses", "chair", "lamp"),
        ("recycled", "eco friendly", "100% recycled", "made greener"),
        ("recycled parts",),
        ("fully recycled", "eco made"),
        ("recycled", "eco friendly"),
        ("plastic", "glass", "canvas", "nylon", "mesh", "metal"),
        more=(
            "from recycled waste",
            "eco minded",
            "truly recycled",
            "green choice",
            "less waste",
            "kind to nature",
            "second life",
        ),
    ),
    "stain resistant": Aspect(
        ("trousers", "chair", "cushion", "sneaker", "shirt", "skirt"),
        ("stain resistant", "stain proof", "wipes clean", "no more stains"),
        ("resists stains",),
        ("stain free", "wipe clean"),
        ("stain resistant", "stain proof"),
        more=(
            "stains come off",
            "stays clean",
            "spill proof",
            "stains wash out",
            "stain guard",
            "shrugs off stains",
        ),
    ),
    "anti slip": Aspect(
        ("boot", "sneaker", "heel"),
        ("anti slip", "non slip sole", "firm grip", "no slipping"),
        ("slip resistant",),
        ("non slip", "extra grip"),
        ("non slip", "anti slip"),
        more=("grips well", "sure grip", "strong grip", "no more slips", "holds on ice", "grippy sole"),
    ),
    "comfortable": Aspect(
        ("heel", "sneaker", "boot", "chair", "jeans", "skirt", "sunglasses", "dress", "trousers", "shirt"),
        ("comfortable", "all day comfort", "comfort fit", "so comfortable"),
        ("pure comfort",),
        ("extra comfortable", "comfort first"),
        ("comfortable", "comfy"),
        more=(
            "comfort you feel",
            "really comfortable",
            "soft and comfy",
            "comfort inside",
            "easy comfort",
            "comfy all day",
        ),
    ),
    "dishwasher safe": Aspect(
        ("mug", "bottle"),
        ("dishwasher safe", "dishwasher proof", "safe to dishwash"),
        ("dishwasher ok",),
        ("dishwasher friendly",),
        ("dishwasher safe",),
        ("ceramic", "stoneware", "glass", "plastic"),
        more=("dishwasher ready", "loves dishwashers", "for the dishwasher", "dishwasher tested"),
    ),
    "uv protection": Aspect(
        ("sunglasses", "cap"),
        ("uv protection", "full uv shield", "blocks uv rays", "uv 400"),
        ("uv safe",),
        ("uv blocking", "total uv shield"),
        ("uv protection",),
        more=(
            "stops uv light",
            "uv guard",
            "real uv protection",
            "uv filter",
            "sun protection",
            "keeps uv out",
        ),
    ),
    "large": Aspect(
        ("backpack", "handbag", "mug", "bottle", "vase", "lamp", "cushion", "chair"),
        ("extra large", "roomy", "big size", "plenty of room"),
        ("large size",),
        ("extra roomy", "so big"),
        ("large", "big"),
        more=(
            "really big",
            "big and roomy",
            "oversized",
            "room for more",
            "holds a lot",
            "a large one",
            "wide and big",
        ),
    ),
}
SIZE = "large"  # the aspect that a picture can answer too, by showing the product large

# how the material is claimed; "{}" is the material, true or not
_MATERIAL: dict[Split, tuple[str, ...]] = {
    "train": ("real {}", "100% {}", "pure {}", "made of {}"),
    "validation": ("all {}",),
    "test": ("genuine {}", "finest {}"),
}
_MORE_MATERIAL = ("truly {}", "only {}", "{} made", "solid {}", "natural {}", "crafted in {}", "quality {}")
_IRRELEVANT: dict[Split, tuple[str, ...]] = {
    "train": ("free shipping", "since 1987", "as seen on tv", "shop now", "click here", "follow us"),
    "validation": ("fast shipping", "since 1954"),
    "test": ("free returns", "as seen online", "since 2003"),
}
_MORE_IRRELEVANT = (
    "best seller", "limited edition", "new season", "order today", "top rated", "in stores now", "since 1998",
    "since 2011", "open daily", "members only", "join the club", "loved by many", "pay later",
)  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """What one query asks for, beyond the noun: `kind` is colour, material, aspect or nothing."""

    kind: Literal["colour", "material", "aspect", "nothing"]
    value: str = ""


def _reserved(
    table: Mapping[Split, tuple[str, ...]], more: tuple[str, ...], split: Split, new: bool
) -> tuple[str, ...]:
    if split == "train":
        return table["train"] + more
    return table[split] if new else table["train"]


def aspect_phrases(aspect: str, split: Split, new: bool) -> tuple[str, ...]:
    """Wordings of an aspect: those reserved for the split (`new`), or those of training."""
    entry = ASPECTS[aspect]
    table: dict[Split, tuple[str, ...]] = {
        "train": entry.train, "validation": entry.validation, "test": entry.test,
    }  # fmt: skip
    return _reserved(table, entry.more, split, new)


def material_phrases(material: str, split: Split, new: bool) -> tuple[str, ...]:
    return tuple(phrase.format(material) for phrase in _reserved(_MATERIAL, _MORE_MATERIAL, split, new))


def irrelevant_phrases(split: Split, new: bool) -> tuple[str, ...]:
    return _reserved(_IRRELEVANT, _MORE_IRRELEVANT, split, new)


def aspects_of(kind: str, material: str) -> tuple[str, ...]:
    """Aspects that a product of this kind and material has."""
    return tuple(name for name, aspect in ASPECTS.items() if aspect.fits(kind, material))


def materials_of(kind: str) -> tuple[str, ...]:
    return tuple(KINDS[kind].materials)


def all_phrases(split: Split) -> Iterator[tuple[str, str]]:
    """(claim, wording) of everything that only this split (or training) words so."""
    for name in ASPECTS:
        for phrase in aspect_phrases(name, split, True):
            yield name, phrase
    for material in sorted({m for kind in KINDS.values() for m in kind.materials}):
        for phrase in material_phrases(material, split, True):
            yield material, phrase
    for phrase in irrelevant_phrases(split, True):
        yield "", phrase


def _vocabulary() -> dict[str, Ask]:
    words: dict[str, Ask] = {colour: Ask("colour", colour) for colour in COLOURS}
    words |= {m: Ask("material", m) for kind in KINDS.values() for m in kind.materials}
    words |= {said: Ask("aspect", name) for name, aspect in ASPECTS.items() for said in aspect.asked}
    return words


_WORDS = _vocabulary()


def read_query(query: str) -> Ask:
    """What a query of the simulator asks for: its longest beginning that is a known word, else nothing.

    Reading the words, instead of keeping what was meant, lets a query be exchanged (the shuffled-interest
    test) and its truth be computed again.
    """
    words = query.lower().split()
    for length in range(min(3, len(words) - 1), 0, -1):
        ask = _WORDS.get(" ".join(words[:length]))
        if ask is not None:
            return ask
    return Ask("nothing")


def queries_for(ask: Ask, noun: str) -> tuple[str, ...]:
    """How shoppers word an ask."""
    if ask.kind == "nothing":
        return (noun,)
    words = ASPECTS[ask.value].asked if ask.kind == "aspect" else (ask.value,)
    return tuple(f"{word} {noun}" for word in words)

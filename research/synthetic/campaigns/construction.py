"""A creative as a list of choices: what is advertised, how it is shown, and what is therefore true of it.

A `Construction` holds one value for every factor and draws to one picture (`compose.draw`), so the truth
about a creative is read from it and never guessed from pixels. It is plain data, and a simulated creative
carries it as JSON in `facts["construction"]`; the other facts are short words, the evidence that a judge can
be held to. `edit` changes one named factor; `placebos` lists what can be changed without effect on clicks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import numpy as np

from moonshelf.errors import UserError
from research.synthetic.campaigns.claims import SPLITS, Split, all_phrases, aspects_of
from research.synthetic.shop.spec import KINDS, Spec, sample_group
from research.synthetic.shop.words import make_design, make_title

FACTORS: dict[str, tuple[str, ...]] = {
    "scale": ("small", "medium", "large"),
    "crop": ("whole", "cropped"),
    "position": ("left", "centre", "right"),
    "background": ("white", "plain", "gradient", "scene", "busy", "dark"),
    "props": ("none", "few", "clutter"),
    "legible": ("clear", "faint", "none"),
    "covers": ("no", "yes"),
    "badge": ("none", "sale", "new", "-30%"),
    "format": ("1:1", "4:5", "1.91:1"),
    "font": ("regular", "bold", "capitals"),
    "ink": ("neutral", "accent"),
}
# Short words that are true of a creative. "construction" comes beside them and is for programs.
FACTS = (
    "says", "claim", "claim_truth", "legible", "covers", "badge", "colour", "scale", "crop", "position",
    "background", "props", "format", "font", "ink", "new",
)  # fmt: skip

# tints, patterns and scenes of each background; the last ones are kept for validation and test
_STYLES: dict[str, tuple[int, int]] = {  # background -> (all, reserved for each of the two)
    "white": (6, 1),
    "plain": (16, 3),
    "gradient": (20, 4),
    "scene": (24, 5),
    "busy": (30, 5),
    "dark": (10, 2),
}
DRAWN = 1000  # … and from here on, those that are drawn from their number, all of training; scenes have none,
_MANY = 280  # for their tints and boards are few, so that one would come out as one that is reserved


@lru_cache(maxsize=32)
def styles(background: str, split: Split) -> Sequence[int]:
    """Numbers of the styles that a split may use; the splits share none."""
    count, reserved = _STYLES[background]
    train = count - 2 * reserved
    if split == "train":
        return (*range(train), *(range(DRAWN, DRAWN + _MANY) if background != "scene" else ()))
    return range(train, train + reserved) if split == "validation" else range(train + reserved, count)


@dataclass(frozen=True)
class Item:
    """A product of the simulator: one design in several colours, under the title of the first."""

    id: str
    specs: tuple[Spec, ...]
    title: str
    noun: str
    titled: str  # colour that the title names, "" where it names none
    yaw: float  # how its photos are taken, degrees

    @property
    def kind(self) -> str:
        return self.specs[0].kind

    @property
    def material(self) -> str:
        return self.specs[0]["material"]

    @property
    def colours(self) -> tuple[str, ...]:
        return tuple(spec["colour"] for spec in self.specs)

    @property
    def aspects(self) -> tuple[str, ...]:
        return aspects_of(self.kind, self.material)

    def spec(self, colour: str) -> Spec:
        return self.specs[self.colours.index(colour)]


@lru_cache(maxsize=4096)
def item(seed: int, split: Split, number: int) -> Item:
    """Product `number`: it follows from the arguments alone, and no product is in two splits."""
    code = SPLITS.index(split)
    kinds = list(KINDS)
    turn = np.random.default_rng([seed, 31, code, number // len(kinds)]).permutation(len(kinds))
    rng = np.random.default_rng([seed, 32, code, number])
    specs = sample_group(rng, kinds[int(turn[number % len(kinds)])], int(rng.integers(2, 5)))
    design = make_design(rng, specs[0])
    # titles name the material always and the colour mostly: claims and colours are checked against them
    titled = rng.random() < 0.8
    mentioned = [key for key in design.mentioned if key not in ("colour", "material", "second colour")][:1]
    named = ["colour"] * titled + mentioned + ["material"]
    title, _ = make_title(rng, specs[0], replace(design, mentioned=tuple(named)))
    noun = KINDS[specs[0].kind].nouns[0].lower()
    colour = specs[0]["colour"] if titled else ""
    yaw = float(rng.uniform(-6, 6))
    return Item(f"sim-{split}-{seed}-p{number:05}", tuple(specs), title, noun, colour, yaw)


@dataclass(frozen=True)
class Construction:
    """Every choice that makes up one creative. `style` … `seed` have no effect in the click model."""

    item: tuple[int, Split, int]  # arguments of `item`
    colour: str
    scale: str = "medium"
    crop: str = "whole"
    position: str = "centre"
    background: str = "white"
    props: str = "none"
    says: str = ""
    claim: str = ""  # aspect or material; "" where nothing is said or it is irrelevant
    claim_truth: str = "none"  # true, false, irrelevant, none
    legible: str = "none"
    covers: str = "no"
    font: str = "regular"
    ink: str = "neutral"
    badge: str = "none"
    format: str = "1:1"
    style: int = 0  # tint, pattern or scene of the background
    place: str = "top"  # of the words, where they do not cover the product: top, bottom
    band: bool = False  # words on a plate of their own
    corner: str = "right"  # of the badge
    seed: int = 0  # its thousands: arrangement of props; the rest: shifts by a few pixels, accent colour

    def __post_init__(self) -> None:
        for factor, values in FACTORS.items():
            if getattr(self, factor) not in values:
                raise UserError(
                    f"{getattr(self, factor)!r} is no {factor} of a creative; there are {', '.join(values)}"
                )
        if (self.legible == "none") != (not self.says):
            raise UserError("a creative without words has legible 'none', one with words clear or faint")

    @property
    def product(self) -> Item:
        return item(*self.item)

    @property
    def overlay(self) -> str:
        """All words on the picture, the badge last: `keeps you dry | sale`."""
        badge = "" if self.badge == "none" else self.badge
        return " | ".join(words for words in (self.says, badge) if words)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Construction:
        row = json.loads(text)
        seed, split, number = row.pop("item")
        return cls(item=(int(seed), split, int(number)), **row)

    def facts(self) -> dict[str, str]:
        """Short words that are true of the picture (`FACTS`), and the construction itself."""
        row = {key: str(getattr(self, key)) for key in FACTS if key != "new"}
        if not self.says:
            row |= {"says": "nothing", "font": "none", "ink": "none"}
        row["new"] = "yes" if self.says and self.says not in _trained() else "no"
        return {**row, "construction": self.to_json()}


@lru_cache(maxsize=1)
def _trained() -> frozenset[str]:
    return frozenset(phrase for _, phrase in all_phrases("train"))


def construction_of(facts: Mapping[str, str]) -> Construction:
    """The construction of a simulated creative from its facts; `UserError` where it was not simulated."""
    if "construction" not in facts:
        raise UserError("the creative was not drawn by the simulator: its facts hold no construction")
    return Construction.from_json(facts["construction"])


def edit(construction: Construction, factor: str, value: str) -> Construction:
    """The same creative with one factor changed, and only what must follow it.

    `factor` is one of `FACTORS`, "colour", or "says" (a wording of the product's claims, "" to remove the
    words). The arrangement, the place of the words and the seed stay. Raises `UserError`.
    """
    if factor == "says":
        return _reworded(construction, value)
    if factor == "colour":
        colours = construction.product.colours
        if value not in colours:
            raise UserError(f"the product is not sold in {value!r}, only in {', '.join(colours)}")
        return replace(construction, colour=value)
    if factor not in FACTORS:
        raise UserError(
            f"{factor!r} is no factor of a creative; there are {', '.join(FACTORS)}, colour, says"
        )
    if factor == "legible" and value == "none":
        return _reworded(construction, "")
    if factor in ("legible", "covers") and not construction.says:
        raise UserError(f"{factor!r} cannot be changed: the creative shows no words")
    if factor == "background":
        choices = styles(value, construction.item[1])
        return replace(construction, background=value, style=choices[construction.seed % len(choices)])
    return replace(construction, **{factor: value})  # type: ignore[arg-type]  # FACTORS are all words


def _reworded(construction: Construction, says: str) -> Construction:
    if not says:
        return replace(construction, says="", claim="", claim_truth="none", legible="none", covers="no")
    for split in SPLITS:
        for claim, phrase in all_phrases(split):
            if phrase == says:
                truth = truth_of(construction.product, claim)
                legible = construction.legible if construction.says else "clear"
                return replace(construction, says=says, claim=claim, claim_truth=truth, legible=legible)
    raise UserError(f"the simulator has no claim worded {says!r}")


def truth_of(product: Item, claim: str) -> str:
    """Whether a claim is true of a product: irrelevant for "", false for another material."""
    if not claim:
        return "irrelevant"
    return "true" if claim == product.material or claim in product.aspects else "false"


def placebos(construction: Construction) -> Iterator[Construction]:
    """The same with one thing changed that has no effect: tint, arrangement, place, plate, corner, shift."""
    c = construction
    yield from (replace(c, style=style) for style in styles(c.background, c.item[1]) if style != c.style)
    if c.props != "none":
        yield from (replace(c, seed=c.seed + 1000 * step) for step in (1, 2, 3))
    beside = c.format == "1.91:1" and c.position != "centre"  # the words have the other half
    if c.says and c.covers == "no" and not beside:
        yield replace(c, place="bottom" if c.place == "top" else "top")
    if c.legible == "clear":
        yield replace(c, band=not c.band)
    if c.badge != "none":
        yield replace(c, corner="left" if c.corner == "right" else "right")
    yield replace(c, seed=shifted(c.seed, 1))


def shifted(seed: int, step: int) -> int:
    """Another seed that keeps the arrangement and the accent colour, and moves things by a few pixels."""
    return seed // 1000 * 1000 + (seed % 1000 + 5 * step) % 1000  # five accents, see `compose`

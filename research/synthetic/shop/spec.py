"""What the shop can sell: categories, colours, materials, details, and how one design is drawn by lot.

`KINDS` is the vocabulary and the only place that lists it. Every value of `Spec.attributes` is drawn so
that it shows in the main photo; nothing that a photo cannot show (gender, size, washing) is an attribute.
Keys are the canonical ones of `moonshelf.attributes`, plus plain names for details that only one category
has (`toe`, `brim`, `shade`). A group is one design in several colours; everything but the colours is equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from research.synthetic.shop.draw import RGB


def _hex(code: str) -> RGB:
    return int(code[0:2], 16) / 255, int(code[2:4], 16) / 255, int(code[4:6], 16) / 255


COLOURS: dict[str, RGB] = {
    "black": _hex("26262a"),
    "white": _hex("f4f3f0"),
    "grey": _hex("8f9296"),
    "beige": _hex("dccbb0"),
    "brown": _hex("6b4127"),
    "tan": _hex("bd8150"),
    "red": _hex("cc2229"),
    "maroon": _hex("6d1527"),
    "pink": _hex("f09ab6"),
    "orange": _hex("ec7a1c"),
    "yellow": _hex("f4cd3c"),
    "green": _hex("2f8a4c"),
    "olive": _hex("6f7038"),
    "teal": _hex("168488"),
    "blue": _hex("2f6fcb"),
    "navy blue": _hex("1f2c55"),
    "purple": _hex("6f3f97"),
    "lavender": _hex("b9a6dc"),
    "gold": _hex("d3a645"),
    "silver": _hex("bfc4c9"),
    "copper": _hex("bd6b42"),
}
METALS = ("silver", "gold", "copper", "black")
_CLOTH = tuple(name for name in COLOURS if name not in ("gold", "silver", "copper"))
_SKIN = ("black", "brown", "tan", "maroon", "red", "navy blue", "white", "beige", "olive", "pink")  # leather
_WOODS = ("brown", "tan", "beige", "black", "white")
_GLASS = ("green", "blue", "brown", "grey", "pink", "orange", "teal", "purple")
_DENIM = ("blue", "navy blue", "black", "grey", "white")
_BRIGHT = tuple(name for name in _CLOTH if name not in ("maroon", "brown"))

PRINTS = ("striped", "checked", "dotted", "floral", "geometric", "colour blocked")


@dataclass(frozen=True)
class Kind:
    """One category: where it hangs in the tree, what it is called, and what it varies in."""

    category: tuple[str, str, str]
    nouns: tuple[str, ...]
    materials: Mapping[str, tuple[str, ...]]  # material -> its colours
    details: Mapping[str, tuple[str, ...]]
    patterns: tuple[str, ...] = ("solid",)
    printed: tuple[str, ...] = ("cotton",)  # materials that carry a pattern
    genders: tuple[str, ...] = ()
    prices: tuple[float, float] = (10.0, 60.0)
    sizes: tuple[str, ...] = ()


# fmt: off
_ADULT = ("S", "M", "L", "XL")
_FEET = ("UK 5", "UK 6", "UK 7", "UK 8", "EU 39", "EU 41")

KINDS: dict[str, Kind] = {
    "tshirt": Kind(
        ("Apparel", "Topwear", "Tshirts"), ("T-shirt", "Tee", "Tshirt"), {"cotton": _CLOTH},
        {"neckline": ("round neck", "v-neck", "polo collar"),
         "sleeve": ("short sleeve", "long sleeve", "sleeveless")},
        ("solid", *PRINTS, "camouflage"), genders=("Men", "Women", "Unisex"), prices=(8, 35), sizes=_ADULT,
    ),
    "shirt": Kind(
        ("Apparel", "Topwear", "Shirts"), ("Shirt", "Button-Up Shirt"),
        {"cotton": _CLOTH, "linen": ("white", "beige", "olive", "blue", "pink", "teal", "tan"),
         "denim": _DENIM,
         "satin": _BRIGHT},
        {"neckline": ("spread collar", "band collar"), "sleeve": ("short sleeve", "long sleeve"),
         "pocket": ("no pocket", "chest pocket")},
        ("solid", "striped", "checked", "dotted", "floral"), genders=("Men", "Women"), prices=(18, 75),
        sizes=_ADULT,
    ),
    "sweater": Kind(
        ("Apparel", "Topwear", "Sweaters"), ("Sweater", "Pullover", "Jumper"), {"knit": _CLOTH},
        {"neckline": ("round neck", "v-neck", "turtleneck"), "sleeve": ("long sleeve", "sleeveless")},
        ("solid", "striped", "geometric", "colour blocked"), ("knit",), ("Men", "Women"), (25, 95), _ADULT,
    ),
    "jacket": Kind(
        ("Apparel", "Topwear", "Jackets"), ("Jacket",),
        {"denim": _DENIM, "leather": ("black", "brown", "tan", "maroon"), "nylon": _BRIGHT},
        {"neckline": ("stand collar", "spread collar", "hood"), "closure": ("zip", "buttons")},
        genders=("Men", "Women"), prices=(45, 180), sizes=_ADULT,
    ),
    "dress": Kind(
        ("Apparel", "Dress", "Dresses"), ("Dress",),
        {"cotton": _CLOTH, "satin": _CLOTH, "knit": _CLOTH},
        {"neckline": ("round neck", "v-neck", "square neck"),
         "sleeve": ("sleeveless", "short sleeve", "long sleeve"),
         "length": ("mini", "midi", "maxi")},
        ("solid", *PRINTS), ("cotton",), ("Women",), (25, 120), _ADULT,
    ),
    "trousers": Kind(
        ("Apparel", "Bottomwear", "Trousers"), ("Trousers", "Pants"),
        {"cotton": _CLOTH, "corduroy": ("brown", "tan", "olive", "navy blue", "maroon", "beige", "black"),
         "wool": ("grey", "navy blue", "brown", "black", "beige")},
        {"leg": ("slim leg", "straight leg", "wide leg"), "length": ("full length", "cropped")},
        ("solid", "checked", "striped"), ("cotton", "wool"), ("Men", "Women"), (22, 85), _ADULT,
    ),
    "jeans": Kind(
        ("Apparel", "Bottomwear", "Jeans"), ("Jeans",), {"denim": _DENIM},
        {"leg": ("slim leg", "straight leg", "flared leg"), "finish": ("plain", "ripped")},
        genders=("Men", "Women"), prices=(28, 95), sizes=("W28", "W30", "W32", "W34"),
    ),
    "shorts": Kind(
        ("Apparel", "Bottomwear", "Shorts"), ("Shorts",), {"cotton": _CLOTH, "denim": _DENIM},
        {"waist": ("drawstring", "belt loops"), "hem": ("plain hem", "turned-up hem")},
        ("solid", "striped", "checked", "floral", "camouflage"), ("cotton",), ("Men", "Women"), (12, 45),
        _ADULT,
    ),
    "skirt": Kind(
        ("Apparel", "Bottomwear", "Skirts"), ("Skirt",),
        {"cotton": _CLOTH, "denim": _DENIM, "leather": ("black", "brown", "red", "tan"), "satin": _BRIGHT},
        {"shape": ("a-line", "pencil", "pleated"), "length": ("mini", "midi", "maxi")},
        ("solid", "checked", "dotted", "floral", "striped"), ("cotton",), ("Women",), (18, 75), _ADULT,
    ),
    "sneaker": Kind(
        ("Footwear", "Shoes", "Casual Shoes"), ("Sneakers", "Casual Shoes", "Trainers"),
        {"canvas": _CLOTH, "leather": ("white", "black", "brown", "tan", "navy blue", "red"),
         "mesh": _BRIGHT},
        {"closure": ("lace-up", "velcro", "slip-on"), "shape": ("low top", "high top"),
         "sole": ("white sole", "gum sole", "black sole")},
        ("solid", "colour blocked", "checked", "floral"), ("canvas",), ("Men", "Women", "Unisex"), (30, 130),
        _FEET,
    ),
    "heel": Kind(
        ("Footwear", "Shoes", "Heels"), ("Heels", "Pumps"),
        {"leather": (*_SKIN, "purple", "teal"), "suede": _CLOTH,
         "patent leather": ("black", "red", "beige", "pink",
         "navy blue", "white", "purple")},
        {"heel": ("stiletto", "block heel", "wedge"), "toe": ("pointed toe", "round toe", "open toe"),
         "strap": ("no strap", "ankle strap")},
        genders=("Women",), prices=(35, 140), sizes=_FEET,
    ),
    "boot": Kind(
        ("Footwear", "Shoes", "Boots"), ("Boots",),
        {"leather": ("black", "brown", "tan", "maroon", "olive", "white"),
         "suede": ("tan", "brown", "grey", "black",
         "beige", "navy blue", "olive"), "rubber": ("yellow", "green", "red", "navy blue", "black", "pink")},
        {"shaft": ("ankle", "knee high"), "heel": ("flat", "block heel"),
         "closure": ("lace-up", "zip", "pull-on")},
        genders=("Men", "Women"), prices=(45, 190), sizes=_FEET,
    ),
    "backpack": Kind(
        ("Accessories", "Bags", "Backpacks"), ("Backpack", "Rucksack"),
        {"canvas": _CLOTH, "nylon": _BRIGHT, "leather": ("black", "brown", "tan", "maroon")},
        {"closure": ("zip", "flap"), "pocket": ("front pocket", "no pocket", "two pockets")},
        ("solid", "checked", "camouflage", "geometric", "colour blocked"), ("canvas",), prices=(25, 120),
    ),
    "handbag": Kind(
        ("Accessories", "Bags", "Handbags"), ("Handbag", "Bag"),
        {"leather": (*_SKIN, "green", "yellow", "teal"), "canvas": _CLOTH,
         "straw": ("beige", "tan", "brown", "black"),
         "suede": ("tan", "brown", "maroon", "navy blue", "olive", "pink")},
        {"handle": ("top handle", "chain strap", "double handles"), "closure": ("flap", "open top", "zip"),
         "shape": ("trapeze", "rectangular", "half moon")},
        ("solid", "striped", "checked", "floral", "dotted"), ("canvas",), ("Women",), (30, 220),
    ),
    "watch": Kind(
        ("Accessories", "Watches", "Watches"), ("Watch", "Wrist Watch"),
        {"leather": ("black", "brown", "tan", "navy blue", "red", "beige"),
         "metal": ("silver", "gold", "copper",
         "black"), "silicone": _BRIGHT},
        {"shape": ("round", "square"), "dial": ("white dial", "black dial", "blue dial"),
         "markers": ("bars", "numerals", "dots")},
        genders=("Men", "Women", "Unisex"), prices=(35, 320),
    ),
    "sunglasses": Kind(
        ("Accessories", "Eyewear", "Sunglasses"), ("Sunglasses", "Shades"),
        {"plastic": ("black", "brown", "red", "white", "navy blue", "green", "pink", "yellow", "purple"),
         "metal": METALS, "wood": ("brown", "tan", "black")},
        {"shape": ("aviator", "round", "square", "cat eye"), "lens": ("dark lens", "brown lens",
                "blue lens")},
        genders=("Men", "Women", "Unisex"), prices=(15, 160),
    ),
    "cap": Kind(
        ("Accessories", "Headwear", "Caps"), ("Cap", "Baseball Cap"),
        {"cotton": _CLOTH, "denim": _DENIM, "corduroy": ("brown", "tan", "olive", "navy blue", "maroon",
                                                         "beige", "green"),
         "wool": ("grey", "navy blue", "black", "maroon")},
        {"brim": ("curved brim", "flat brim"), "emblem": ("no emblem", "star", "mountain", "letter")},
        ("solid", "colour blocked", "checked", "camouflage", "striped"), ("cotton",),
        ("Men", "Women", "Unisex"), (10, 40),
    ),
    "mug": Kind(
        ("Home", "Kitchen & Dining", "Mugs"), ("Mug", "Coffee Mug"),
        {"ceramic": _CLOTH, "stoneware": ("white", "beige", "grey", "teal", "olive", "navy blue", "tan"),
         "enamel": _BRIGHT, "glass": _GLASS},
        {"handle": ("round handle", "square handle"), "shape": ("straight", "tapered", "barrel")},
        ("solid", "striped", "dotted", "floral", "geometric", "colour blocked"), ("ceramic",), prices=(6, 28),
    ),
    "bottle": Kind(
        ("Home", "Kitchen & Dining", "Water Bottles"), ("Water Bottle", "Bottle", "Flask"),
        {"metal": ("silver", "copper", "black", "blue", "green", "red", "pink", "teal", "purple", "gold"),
         "glass": _GLASS, "plastic": _BRIGHT},
        {"lid": ("screw lid", "loop lid", "straw lid"), "shape": ("slim", "wide mouth", "shouldered")},
        ("solid", "colour blocked", "striped", "geometric"), ("plastic",), prices=(9, 38),
    ),
    "lamp": Kind(
        ("Home", "Lighting", "Table Lamps"), ("Table Lamp", "Lamp", "Desk Lamp"),
        {"ceramic": _CLOTH, "wood": _WOODS, "metal": METALS, "glass": _GLASS},
        {"shade": ("cone shade", "drum shade", "dome shade"),
         "base": ("round base", "column base", "gourd base"),
         "shade colour": ("white", "beige", "black")},
        prices=(25, 140),
    ),
    "chair": Kind(
        ("Home", "Furniture", "Chairs"), ("Chair", "Dining Chair"),
        {"wood": _WOODS, "plastic": _BRIGHT, "metal": METALS, "velvet": _CLOTH,
         "leather": ("black", "brown", "tan",
         "white", "maroon", "olive")},
        {"back": ("slatted back", "solid back", "open back"), "arms": ("no arms", "armrests"),
         "legs": ("tapered legs", "hairpin legs", "sled base")},
        prices=(45, 260),
    ),
    "cushion": Kind(
        ("Home", "Furnishing", "Cushions"), ("Cushion", "Throw Pillow", "Cushion Cover"),
        {"cotton": _CLOTH, "velvet": _CLOTH, "linen": ("white", "beige", "olive", "blue", "pink", "teal",
                                                       "tan", "grey"),
         "knit": _CLOTH},
        {"shape": ("square", "rectangular", "round"), "edge": ("plain edge", "piped edge", "tassels",
                "fringe")},
        ("solid", *PRINTS), ("cotton",), prices=(9, 48),
    ),
    "vase": Kind(
        ("Home", "Decor", "Vases"), ("Vase", "Flower Vase"),
        {"ceramic": _CLOTH, "stoneware": ("white", "beige", "grey", "teal", "olive", "tan"), "glass": _GLASS,
         "metal": ("gold", "silver", "copper", "black")},
        {"shape": ("bottle", "bulb", "cylinder", "amphora"), "handle": ("no handle", "two handles")},
        ("solid", "striped", "dotted", "geometric", "colour blocked", "floral"), ("ceramic",),
        prices=(14, 85),
    ),
}
# fmt: on

# kinds, materials or shapes that cannot have a detail: (kind, condition) -> value that replaces it
_CONFLICTS: tuple[tuple[str, dict[str, str], dict[str, str]], ...] = (
    ("boot", {"material": "rubber"}, {"closure": "pull-on", "heel": "flat"}),
    ("sneaker", {"closure": "slip-on"}, {"shape": "low top"}),
    ("jacket", {"material": "nylon"}, {"closure": "zip"}),
    ("jacket", {"material": "leather", "neckline": "hood"}, {"neckline": "stand collar"}),
    ("tshirt", {"sleeve": "sleeveless", "neckline": "polo collar"}, {"neckline": "round neck"}),
    ("handbag", {"shape": "half moon", "closure": "flap"}, {"closure": "zip"}),
    ("handbag", {"material": "straw"}, {"closure": "open top"}),
    ("chair", {"material": "velvet", "back": "slatted back"}, {"back": "solid back"}),
    ("chair", {"material": "leather", "back": "slatted back"}, {"back": "solid back"}),
    ("cushion", {"shape": "round", "edge": "tassels"}, {"edge": "piped edge"}),
    ("skirt", {"material": "denim", "shape": "pleated"}, {"shape": "a-line"}),
    ("skirt", {"material": "leather", "shape": "pleated"}, {"shape": "a-line"}),
    ("shorts", {"material": "denim"}, {"waist": "belt loops"}),
    ("vase", {"shape": "amphora"}, {"handle": "two handles"}),
)


@dataclass(frozen=True)
class Spec:
    """One product to draw: its kind, what is true of it, and the seed of its proportions."""

    kind: str
    attributes: Mapping[str, str]  # canonical key -> value, all visible in the main photo
    style: int = 0  # seed of proportions and texture; one for a whole group
    category: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "category", KINDS[self.kind].category)

    def __getitem__(self, key: str) -> str:
        return self.attributes[key]

    @property
    def rgb(self) -> RGB:
        return COLOURS[self.attributes["colour"]]

    @property
    def rgb2(self) -> RGB:
        """Colour of the pattern; the main colour where there is none."""
        return COLOURS[self.attributes.get("second colour", self.attributes["colour"])]


def contrast(one: str, other: str) -> float:
    """How well two named colours can be told apart, 0 … about 1.7 (Euclidean in sRGB)."""
    return float(np.linalg.norm(np.subtract(COLOURS[one], COLOURS[other])))


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def sample_group(rng: np.random.Generator, kind: str, variants: int) -> list[Spec]:
    """One design in up to `variants` different colours."""
    entry = KINDS[kind]
    material = _choose(rng, tuple(entry.materials))
    attributes = {"colour": "", "pattern": "solid", "material": material}
    if material in entry.printed and len(entry.patterns) > 1 and rng.random() < 0.62:
        attributes["pattern"] = _choose(rng, entry.patterns[1:])
    if entry.patterns == ("solid",):
        del attributes["pattern"]
    attributes |= {key: _choose(rng, values) for key, values in entry.details.items()}
    for name, condition, change in _CONFLICTS:
        if name == kind and all(attributes.get(key) == value for key, value in condition.items()):
            attributes |= change
    style = int(rng.integers(1 << 30))
    order = [entry.materials[material][i] for i in rng.permutation(len(entry.materials[material]))]
    specs = []
    for colour in order[:variants]:
        mine = {**attributes, "colour": colour}
        if mine.get("pattern", "solid") != "solid":
            others = [c for c in COLOURS if c not in METALS[:3] and contrast(c, colour) > 0.55]
            favourites = [c for c in ("white", "black", "beige", "navy blue") if c in others]
            pool = favourites if rng.random() < 0.5 else others
            mine["second colour"] = _choose(rng, tuple(pool))
        specs.append(Spec(kind, mine, style))
    return specs

"""Campaigns with known truth: drawn creatives, clicks from a stated model, and the reasons that follow.

This is a simulation, and whatever is measured on it says so. A product gets an interest (queries as shoppers
type them) and creatives that share some choices and differ in others; impressions and clicks are drawn from
the click model (`clicks`). Every question of the protocol has a true answer that follows from the
construction, so rationales are exact, and so is the ceiling: even the true rates cannot foretell which
creative got more clicks by chance. Row k depends on the seed, the split and k alone.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from moonshelf.creatives import known
from moonshelf.creatives.known import pairs as pairs
from moonshelf.creatives.schema import Assessment, Campaign, Creative, Known, Pair
from moonshelf.errors import UserError
from moonshelf.product import ImageRef
from research.synthetic.campaigns import clicks
from research.synthetic.campaigns.claims import (
    SPLITS,
    Ask,
    Split,
    aspect_phrases,
    irrelevant_phrases,
    material_phrases,
    materials_of,
    queries_for,
    read_query,
)
from research.synthetic.campaigns.compose import draw
from research.synthetic.campaigns.construction import (
    FACTS,
    Construction,
    Item,
    construction_of,
    item,
    placebos,
    shifted,
    styles,
    truth_of,
)

SOURCE = "simulated"
OTHERS = 8  # interests of each campaign under which its truth is told too
# how often each value is drawn; ours, so that every question decides often enough to be learnt
_ODDS: dict[str, dict[str, float]] = {
    "scale": {"small": 0.24, "medium": 0.42, "large": 0.34},
    "crop": {"whole": 0.86, "cropped": 0.14},
    "position": {"left": 0.2, "centre": 0.6, "right": 0.2},
    "background": {"white": 0.2, "plain": 0.18, "gradient": 0.13, "scene": 0.2, "busy": 0.17, "dark": 0.12},
    "props": {"none": 0.5, "few": 0.28, "clutter": 0.22},
    "legible": {"clear": 0.74, "faint": 0.26},
    "covers": {"no": 0.78, "yes": 0.22},
    "badge": {"none": 0.67, "sale": 0.11, "new": 0.11, "-30%": 0.11},
    "format": {"1:1": 0.6, "4:5": 0.25, "1.91:1": 0.15},
    "font": {"regular": 0.5, "bold": 0.3, "capitals": 0.2},
    "ink": {"neutral": 0.6, "accent": 0.4},
}
_WORDED = 0.66  # share of creatives with words on them
_ASKED = 0.6  # of the claims, where an aspect or a material is asked for: those that answer it
_ANSWERED = 0.5  # of the campaigns that are asked for something: what could answer it is drawn anew surely
_TRIES = 12  # other interests, of which the one that moves the creatives' rates most is taken
_NEW = 0.6  # of the wordings in validation and test: those that training never saw
# what two creatives of a campaign may differ in; a group changes as one
_GROUPS: tuple[tuple[str, ...], ...] = (
    ("colour",),
    ("scale",),
    ("crop",),
    ("position",),
    ("background", "style"),
    ("props", "seed"),
    ("says", "claim", "claim_truth", "legible", "covers"),
    ("legible", "covers"),
    ("font", "ink", "place", "band"),
    ("badge", "corner"),
)
_WORDS = 6  # of these, the one that says something


def simulate(
    n_campaigns: int,
    *,
    creatives: int = 2,
    seed: int = 0,
    split: Split = "train",
    interest: bool = True,
    start: int = 0,
    per_product: int = 4,
    same: float = 0.03,
    alike: float = 0.04,
    impressions: float = 3000.0,
    least: int = 1000,
    other_interest: float = 0.0,
) -> Iterator[Campaign]:
    """Campaigns `start` … `start + n_campaigns - 1`, one after another; memory stays flat.

    `per_product` campaigns in a row advertise one product (with other interests and creatives). Without
    `interest` shoppers ask for nothing, and click as if they had not. `same` and `alike` are the shares of
    creatives that are a copy, or nearly one, of an earlier creative of their campaign. `impressions` is the
    median of a creative's, `least` their minimum. Images are JPEG bytes. Raises `UserError`.

    Of the share `other_interest` of every second campaign the creatives are those of the one before, shown to
    shoppers who ask for something else: from the pictures alone the two cannot be told apart, so that who
    learns from them has to read the queries (ours; counterfactual pairs, as for visual question answering).
    """
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}; there are {', '.join(SPLITS)}")
    if creatives < 2 or n_campaigns < 0 or start < 0 or per_product < 1 or least < 1:
        raise UserError("a campaign needs two creatives or more, and counts cannot be negative")
    for number in range(start, start + n_campaigns):
        yield _campaign(
            number, creatives, seed, split, interest, per_product, same, alike, impressions, least,
            other_interest,
        )  # fmt: skip


def _campaign(
    number: int, count: int, seed: int, split: Split, interest: bool, per_product: int,
    same: float, alike: float, impressions: float, least: int, other_interest: float,
) -> Campaign:  # fmt: skip
    rng, anew = (np.random.default_rng([seed, stream, SPLITS.index(split), number]) for stream in (41, 43))
    key: tuple[int, Split, int] = (seed, split, number // per_product)
    product = item(*key)
    second = interest and number % 2 and (number - 1) // per_product == key[2]
    again = second and anew.random() < other_interest
    design = np.random.default_rng([seed, 41, SPLITS.index(split), number - 1]) if again else rng
    queries = _interest(design, product) if interest else ()
    drawn = _constructions(design, key, queries, count, same, alike)
    if again:
        queries = _other_interest(anew, product, [construction for construction, _ in drawn], queries)
    noises: dict[Construction, float] = {}
    made, rates = [], []
    name = f"sim-{split}-{seed}-{number:06}"
    for place, (construction, model) in enumerate(drawn):
        if construction not in noises:
            # near-copies get nearly the same clicks: what is idiosyncratic lies in what they share
            near = noises.get(model) if model is not None else None
            step = rng.standard_normal()
            noises[construction] = known.UNSEEN * step if near is None else near + 0.01 * step
        facts = construction.facts()
        rate = clicks.rate(clicks.utilities(facts, queries, product.titled), noises[construction])
        shown, clicked = clicks.draw_outcome(rng, rate, impressions, least)
        data = _jpeg(draw(construction))
        made.append(
            Creative(
                id=f"{name}-{place}",
                image=ImageRef(data=data),
                sha256=hashlib.sha256(data).hexdigest(),
                impressions=shown,
                clicks=clicked,
                text=construction.overlay,
                facts=facts,
            )
        )
        rates.append(rate)
    others = np.random.default_rng([seed, 47, SPLITS.index(split), number])
    other_interests = tuple(_interest(others, product) for _ in range(OTHERS))
    made = [
        one.model_copy(
            update={
                "known": told(one, queries),
                "known_otherwise": tuple(told(one, other)["query"] for other in other_interests),
            }
        )
        for one in made
    ]
    return Campaign(
        id=name,
        product_id=product.id,
        title=product.title,
        category=product.specs[0].category,
        interest=queries,
        other_interests=other_interests,
        exposure={"randomised": "yes", "simulated": "yes"},
        source=SOURCE,
        creatives=tuple(made),
        true_rates=tuple(rates),
    )


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=87, subsampling=0)  # full colour resolution: red letters stay sharp
    return buffer.getvalue()


# --- what is drawn --------------------------------------------------------------------------------------


def _pick(rng: np.random.Generator, odds: Mapping[str, float]) -> str:
    return str(rng.choice(list(odds), p=np.array(list(odds.values())) / sum(odds.values())))


def _one(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _interest(rng: np.random.Generator, product: Item) -> tuple[str, ...]:
    """One to three queries that lead to this product, each for something else."""
    queries: list[str] = []
    asked: set[tuple[str, str]] = set()
    for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.28, 0.12]))):
        kind = _pick(rng, {"aspect": 0.46, "colour": 0.28, "material": 0.12, "nothing": 0.14})
        value = ""
        if kind == "aspect":
            value = _one(rng, product.aspects)
        elif kind == "colour":
            value = _one(rng, product.colours)
        elif kind == "material":
            others = materials_of(product.kind)
            value = product.material if rng.random() < 0.75 else _one(rng, others)
        if (kind, value) not in asked:
            asked.add((kind, value))
            ask = Ask(kind, value)  # type: ignore[arg-type]  # the keys above are its kinds
            queries.append(_one(rng, queries_for(ask, product.noun)))
    return tuple(queries)


def _other_interest(
    rng: np.random.Generator, product: Item, drawn: Sequence[Construction], before: Sequence[str]
) -> tuple[str, ...]:
    """Queries under which these creatives do otherwise, against each other, than under those `before`."""

    def rates(queries: Sequence[str]) -> np.ndarray:
        terms = (clicks.utilities(one.facts(), queries, product.titled) for one in drawn)
        return np.log([clicks.rate(each) for each in terms])

    known = rates(before)
    options = [_interest(rng, product) for _ in range(_TRIES)]
    return max(options, key=lambda queries: float(np.ptp(rates(queries) - known)))


def _claim(
    rng: np.random.Generator, product: Item, split: Split, asks: Sequence[Ask]
) -> tuple[str, str, str]:
    """Words for a creative: (wording, claim, truth)."""
    new = split != "train" and rng.random() < _NEW
    wanted = [ask.value for ask in asks if ask.kind in ("aspect", "material")]
    others = [material for material in materials_of(product.kind) if material != product.material]
    if wanted and rng.random() < _ASKED:
        claim = _one(rng, wanted)
    else:
        kind = _pick(
            rng, {"aspect": 0.45, "material": 0.13, "other": 0.2 if others else 0.0, "nothing": 0.22}
        )
        claim = {
            "aspect": _one(rng, product.aspects),
            "material": product.material,
            "other": _one(rng, others) if others else "",
            "nothing": "",
        }[kind]
    if not claim:
        phrases = irrelevant_phrases(split, new)
    elif claim in product.aspects:
        phrases = aspect_phrases(claim, split, new)
    else:
        phrases = material_phrases(claim, split, new)
    return _one(rng, phrases), claim, truth_of(product, claim)


def _construction(rng: np.random.Generator, key: tuple[int, Split, int], asks: Sequence[Ask]) -> Construction:
    product, split = item(*key), key[1]
    chosen = {factor: _pick(rng, odds) for factor, odds in _ODDS.items()}
    asked = [ask.value for ask in asks if ask.kind == "colour" and ask.value in product.colours]
    fate = rng.random()
    if asked and fate < 0.5:
        colour = asked[0]
    else:
        colour = product.colours[0] if fate < 0.7 else _one(rng, product.colours)
    says, claim, truth = _claim(rng, product, split, asks)
    if rng.random() >= _WORDED:
        says, claim, truth = "", "", "none"
        chosen |= {"legible": "none", "covers": "no"}
    tints = styles(chosen["background"], split)
    return Construction(
        item=key, colour=colour, says=says, claim=claim, claim_truth=truth,
        style=tints[int(rng.integers(len(tints)))], place="top" if rng.random() < 0.65 else "bottom",
        band=bool(rng.random() < 0.4), corner="right" if rng.random() < 0.6 else "left",
        seed=int(rng.integers(1 << 30)), **chosen,
    )  # fmt: skip


def _constructions(
    rng: np.random.Generator, key: tuple[int, Split, int], queries: Sequence[str], count: int,
    same: float, alike: float,
) -> list[tuple[Construction, Construction | None]]:  # fmt: skip
    """The creatives of a campaign in random order, each with the one that it nearly copies, if any.

    All start from one design and change some groups of choices, so that a pair differs in few respects or in
    many, and each respect is seen both alone and among others.
    """
    asks = [read_query(query) for query in queries]
    base = _construction(rng, key, asks)
    made: list[tuple[Construction, Construction | None]] = [(base, None)]
    while len(made) < count:
        fate, model = rng.random(), made[int(rng.integers(len(made)))][0]
        if fate < same:
            made.append((model, None))
        elif fate < same + alike:
            made.append((_near(rng, model), model))
        else:
            made.append((_changed(rng, base, key, asks), None))
    order = rng.permutation(count)
    if not any(model for _, model in made):
        return [made[int(i)] for i in order]
    return made  # a near-copy comes after what it copies


def _changed(
    rng: np.random.Generator, base: Construction, key: tuple[int, Split, int], asks: Sequence[Ask]
) -> Construction:
    """Another creative of the campaign: one to eight groups drawn anew, something visible among them."""
    before = base.facts()
    while True:
        fresh = _construction(rng, key, asks)
        taken = {int(i) for i in rng.permutation(len(_GROUPS))[: int(rng.integers(1, 9))]}
        if asks and asks[0].kind != "nothing" and rng.random() < _ANSWERED:
            taken.add(_GROUPS.index(("colour",)) if asks[0].kind == "colour" else _WORDS)
        change = {name: getattr(fresh, name) for i in sorted(taken) for name in _GROUPS[i]}
        if rng.random() < 0.1:
            change["format"] = fresh.format
        says = change.get("says", base.says)
        if not says:
            change |= {"legible": "none", "covers": "no"}
        elif change.get("legible", base.legible) == "none":
            change |= {"legible": "clear", "covers": "no"}
        made = replace(base, **change)
        after = made.facts()
        if any(after[name] != before[name] for name in FACTS):
            return made


def _near(rng: np.random.Generator, model: Construction) -> Construction:
    """The same design, shifted by a few pixels and a shade: see `Construction.seed`."""
    return replace(model, seed=shifted(model.seed, int(rng.integers(1, 200))))


# --- truth ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What follows from the construction of a creative for a given interest."""

    facts: Mapping[str, str]
    terms: Mapping[str, float]  # of `clicks.utilities`
    product: Item
    asks: tuple[Ask, ...]

    @property
    def rate(self) -> float:
        """Click-through rate without the idiosyncratic part: what can be seen."""
        return clicks.rate(self.terms)


def truth(creative: Creative, interest: Sequence[str]) -> Truth:
    """Truth of a simulated creative under these queries, which need not be those of its campaign."""
    product = construction_of(creative.facts).product
    terms = clicks.utilities(creative.facts, interest, product.titled)
    return Truth(creative.facts, terms, product, tuple(read_query(query) for query in interest))


def visible_rates(pair: Pair) -> tuple[float, float]:
    """Rates of A and B without what cannot be seen: the best that any judge of the pictures could know."""
    return truth(pair.a, pair.interest).rate, truth(pair.b, pair.interest).rate


def told(creative: Creative, interest: Sequence[str]) -> dict[str, Known]:
    """What is known of a simulated creative under these queries: worth and evidence by question."""
    mine = truth(creative, interest)
    found = {key: Known(worth=worth, reason=_reason(key, mine)) for key, worth in mine.terms.items()}
    return found | {"base": Known(worth=clicks.BASE)}


def assess(pair: Pair) -> Assessment:
    """True answers, evidence and verdict of a simulated pair under its interest."""
    sides = {
        name: one.model_copy(update={"known": told(one, pair.interest)})
        for name, one in (("a", pair.a), ("b", pair.b))
    }
    return known.assess(pair.model_copy(update=sides))


def _reason(key: str, mine: Truth) -> str:
    """Evidence of one side in a few words: what is there, in the vocabulary of the facts.

    It does not depend on the other side, so it can be written with one picture in sight. What is there is
    named, then what was looked for (a small model echoes what it has just read), then whether the one is the
    other: a label of the pair alone did not teach that relation (docs/experiments.md).
    """
    f = mine.facts
    if key == "query":
        said = [
            f"{_spoken_to(f, ask)} wants {ask.value} {_yes(clicks.answers(f, ask) > 0)}"
            for ask in mine.asks
            if ask.kind != "nothing"
        ]
        return " and ".join(said) or "nothing asked"
    if key == "title":
        titled, material = mine.product.titled, mine.product.material
        colour = f"shows {f['colour']}"
        said = [f"{colour} titled {titled} {_yes(titled == f['colour'])}" if titled else colour]
        if f["claim"] in materials_of(mine.product.kind):
            said.append(f"says {f['claim']} titled {material} {_yes(material == f['claim'])}")
        return " and ".join(said)
    if key == "text":
        words = "no words" if f["legible"] == "none" else f"{f['legible']} words"
        words = {"false": "untrue ", "irrelevant": "off topic "}.get(f["claim_truth"], "") + words
        words = f"{words} {f['claim']}".strip()
        return words if f["badge"] == "none" else f"{words} and badge"
    if key == "props":
        return {"none": "no props", "few": "few props", "clutter": "clutter"}[f["props"]]
    if key == "layout":
        flaws = {("no", "whole"): "", ("no", "cropped"): "cut off", ("yes", "whole"): "words over product"}
        flaw = flaws.get((f["covers"], f["crop"]), "covered cut off")
        if f["position"] == "centre":
            return flaw or "centred"
        return f"{flaw} {f['position']}".strip()
    return {"subject": f["scale"], "background": f["background"]}.get(key, "")


def _yes(so: bool) -> Literal["yes", "no"]:
    return "yes" if so else "no"


def _spoken_to(facts: Mapping[str, str], ask: Ask) -> str:
    """What a creative has to say to a query, whether it is what was asked for or not."""
    if ask.kind == "colour":
        return f"shows {facts['colour']}"
    said = facts["claim"] or ("nothing" if facts["legible"] == "none" else "off topic")
    said = f"untrue {said}" if facts["claim_truth"] == "false" else said
    sized = ask.value == clicks.SIZE and facts["claim"] != ask.value
    return f"shown {facts['scale']}" if sized else f"says {said}"


# --- counterfactuals ------------------------------------------------------------------------------------


def changed_area(one: Construction, other: Construction) -> float:
    """Share of the picture that differs visibly (by over 12 of 255 in a channel); 1 for another format."""
    if one.format != other.format:
        return 1.0
    first, second = (np.asarray(draw(c), dtype=np.int16) for c in (one, other))
    return float((np.abs(first - second).max(axis=2) > 12).mean())


def placebo(
    construction: Construction, rng: np.random.Generator, like: Construction | None = None
) -> Construction:
    """The same creative with something changed that has no effect on clicks.

    With `like` (the creative with a named factor edited), of all such changes the one whose changed area is
    nearest to that edit's. A test of explanations: the verdict may move with the edit, not with the placebo.
    """
    options = list(placebos(construction))
    options = [options[int(i)] for i in rng.permutation(len(options))]
    if like is None:
        return options[0]
    area = changed_area(construction, like)
    tints = [option for option in options if option.style != construction.style]
    options = [*tints[:3], *(option for option in options if option.style == construction.style)]
    return min(options, key=lambda option: abs(changed_area(construction, option) - area))

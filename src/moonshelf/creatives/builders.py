"""Campaigns to pairs, by filters that are named and counted, and pairs to splits that do not leak.

Every pair of creatives of a campaign either comes out or is counted under the first reason that held it
back, so that a data set's size explains itself. The defaults are Creative4U's filter: more than 1,000
impressions each and rates more than 60% apart. Which creative becomes A is drawn, from a hash of the ids:
a data set in which A always wins teaches the place.

Splits go by product, by a hash of its id, so that a product stays where it is when others come or go. The
same picture can be in two products' campaigns; pairs whose pictures nearly equal one of a later split
(train gives way to validation, validation to test) are taken out.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np

from moonshelf import images
from moonshelf.creatives.outcomes import JEFFREYS, Prior, gap, posterior, stratum
from moonshelf.creatives.pair import Campaign, Creative, Pair, Stratum
from moonshelf.errors import UserError

# Keyword arguments of `build_pairs`. JD's CAIG keeps pairs that hardly differ, so that even the true order
# of the rates explains little of its labels: see `outcomes.label_ceiling`.
PRESETS: dict[str, dict[str, Any]] = {
    "creative4u": {"min_impressions": 1000, "min_gap": 0.6},
    "caig": {"min_impressions": 1000, "min_gap": 0.05, "max_gap": 0.2},
    "all": {"min_impressions": 0, "min_gap": None},
}
SHARES: dict[str, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}


def build_pairs(
    campaigns: Iterable[Campaign],
    *,
    min_impressions: int = 1000,
    min_gap: float | None = 0.6,
    max_gap: float | None = None,
    max_pairs_per_product: int | None = None,
    strata: Collection[Stratum] | None = None,
    prior: Prior = JEFFREYS,
    identical: Literal["drop", "tie"] = "drop",
    seed: int = 0,
) -> tuple[list[Pair], dict[str, int]]:
    """Pairs within campaigns, and how many were dropped for which reason.

    Kept are pairs with more than `min_impressions` on both sides, whose rates are more than `min_gap` and at
    most `max_gap` apart (the higher over the lower, minus 1; None is no bound), whose stratum under `prior`
    is one of `strata`. A pair with the same image twice is dropped, or kept with the label "tie" whatever
    its counts. Beyond `max_pairs_per_product` the kept ones are drawn. Pairs are in the order of the
    campaigns; kept and dropped together are all pairs that there were.
    """
    dropped: Counter[str] = Counter()
    kept: list[Pair] = []
    for campaign in campaigns:
        key = _remembered(content_key)
        for i, j in combinations(range(len(campaign.creatives)), 2):
            pair = _pair(campaign, i, j, seed)
            reason = _refused(pair, min_impressions, min_gap, max_gap)
            if (identical == "tie" or not reason) and key(pair.a) == key(pair.b):
                reason = "the same image"
                if identical == "tie":
                    kept.append(pair.model_copy(update={"label": "tie"}))
                    continue
            if not reason and strata is not None and (p := posterior(pair, prior)) is not None:
                reason = "" if stratum(p) in strata else f"stratum {stratum(p)}"
            if reason:
                dropped[reason] += 1
            else:
                kept.append(pair)
    if max_pairs_per_product is not None:
        before = len(kept)
        kept = _capped(kept, max_pairs_per_product, seed)
        if before > len(kept):
            dropped[f"more than {max_pairs_per_product} pairs of the product"] = before - len(kept)
    return kept, dict(dropped)


def _refused(pair: Pair, min_impressions: int, min_gap: float | None, max_gap: float | None) -> str:
    apart = gap(pair.a, pair.b)
    if apart is None:
        return "no impressions"
    if min(pair.a.impressions or 0, pair.b.impressions or 0) <= min_impressions:
        return f"at most {min_impressions:,} impressions"
    if min_gap is not None and apart <= min_gap:
        return f"rates at most {min_gap:.0%} apart"
    if max_gap is not None and apart > max_gap:
        return f"rates more than {max_gap:.0%} apart"
    return ""


def _pair(campaign: Campaign, i: int, j: int, seed: int) -> Pair:
    names = (campaign.id, campaign.creatives[i].id, campaign.creatives[j].id)
    if _drawn(seed, *names) < 0.5:
        i, j = j, i
    rates = campaign.true_rates
    return Pair(
        **campaign.model_dump(exclude={"id", "creatives", "true_rates"}),
        id=pair_id(*names),
        a=campaign.creatives[i],
        b=campaign.creatives[j],
        true_rates=(rates[i], rates[j]) if rates else None,
    )


def pair_id(campaign: str, a: str, b: str) -> str:
    """The three ids in one; a digest where they are too long to be read."""
    joined = f"{campaign}:{a}:{b}"
    return joined if len(joined) <= 120 else hashlib.sha256(joined.encode()).hexdigest()[:32]


def content_key(creative: Creative) -> str:
    """SHA-256 (hex) of the image bytes; of the reference, where they cannot be read without fetching."""
    if creative.sha256:
        return creative.sha256.lower()
    try:
        return hashlib.sha256(images.read_bytes(creative.image)).hexdigest()
    except images.ImageError:  # the selector abstains on it; here it only needs a name
        return hashlib.sha256(b"reference:" + creative.image.name.encode()).hexdigest()


def _remembered(of: Callable[[Creative], Any]) -> Callable[[Creative], Any]:
    """`of`, once a creative id: only for the creatives of one campaign."""
    seen: dict[str, Any] = {}

    def remembered(creative: Creative) -> Any:
        if creative.id not in seen:
            seen[creative.id] = of(creative)
        return seen[creative.id]

    return remembered


def _capped(pairs: Sequence[Pair], most: int, seed: int) -> list[Pair]:
    by_product: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_product[pair.product_id].append(pair)
    taken = {
        pair.id
        for group in by_product.values()
        for pair in sorted(group, key=lambda pair: _drawn(seed, "cap", pair.id))[:most]
    }
    return [pair for pair in pairs if pair.id in taken]


def _drawn(seed: int, *names: str) -> float:
    """A number in [0, 1) that depends on nothing but the seed and the names."""
    digest = hashlib.sha256("\n".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@dataclass
class Split:
    """Pairs by split, and what was taken out of which split for which reason."""

    parts: dict[str, list[Pair]]
    dropped: dict[str, int] = field(default_factory=dict)
    not_compared: int = 0  # creatives whose image could not be read, or is flat: kept, on their hash alone


def split_by_product(
    pairs: Sequence[Pair],
    shares: Mapping[str, float] = SHARES,
    seed: int = 0,
    *,
    same_picture: int = images.SAME_PICTURE,
) -> Split:
    """Pairs into named splits, no product and no picture in two of them.

    `shares` are of the products, on average: where one goes depends on its id and the seed alone. Splits
    are given in the order in which they give way: a pair goes if one of its images equals one of a later
    split, or differs from it by at most `same_picture` bits of the perceptual hash (-1: only equal bytes
    count). Raises UserError for shares that are not positive.
    """
    if not shares or any(not share > 0 for share in shares.values()):
        raise UserError("the shares of the splits must be positive numbers, such as train 0.8 and test 0.2.")
    bounds = np.cumsum(list(shares.values())) / sum(shares.values())
    names = list(shares)
    parts: dict[str, list[Pair]] = {name: [] for name in names}
    for pair in pairs:
        place = int(np.searchsorted(bounds, _drawn(seed, pair.product_id), side="right"))
        parts[names[min(place, len(names) - 1)]].append(pair)
    seen: dict[str, int | None] = {}  # content -> perceptual hash
    keys = {
        name: [(_look(pair.a, seen), _look(pair.b, seen)) for pair in part] for name, part in parts.items()
    }
    dropped: Counter[str] = Counter()
    for place, name in enumerate(names[:-1]):
        for later in names[place + 1 :]:
            theirs = {key for two in keys[later] for key in two}
            leaked = _near({key for two in keys[name] for key in two}, theirs, seen, same_picture)
            rest = [i for i, two in enumerate(keys[name]) if not leaked.intersection(two)]
            if gone := len(keys[name]) - len(rest):
                dropped[f"{name}: a picture of {later}"] += gone
            parts[name] = [parts[name][i] for i in rest]
            keys[name] = [keys[name][i] for i in rest]
    return Split(parts, dict(dropped), sum(value is None for value in seen.values()))


def _look(creative: Creative, seen: dict[str, int | None]) -> str:
    """Key of a creative's content, whose perceptual hash is put into `seen`."""
    key = content_key(creative)
    if key not in seen:
        try:
            seen[key] = images.perceptual_hash(images.load(creative.image, max_side=256))
        except images.ImageError:
            seen[key] = None
    return key


def _near(ours: set[str], theirs: set[str], seen: Mapping[str, int | None], bits: int) -> set[str]:
    """Those of `ours` that are one of `theirs`, or within `bits` of one."""
    found = ours & theirs
    mine = [(key, value) for key in sorted(ours - found) if (value := seen[key]) is not None]
    other = np.array([value for key in theirs if (value := seen[key]) is not None], dtype=np.uint64)
    if not mine or not len(other) or bits < 0:
        return found
    hashes = np.array([value for _, value in mine], dtype=np.uint64)
    for start in range(0, len(mine), 1024):
        block = hashes[start : start + 1024, None] ^ other[None]
        near = (np.bitwise_count(block) <= bits).any(axis=1)
        found |= {key for (key, _), hit in zip(mine[start : start + 1024], near, strict=True) if hit}
    return found

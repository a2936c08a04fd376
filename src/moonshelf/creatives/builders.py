"""Campaigns to pairs, by filters that are named and counted.

Every pair of creatives of a campaign either comes out or is counted under the first reason that held it
back, so that a data set's size explains itself. The defaults are Creative4U's filter: more than 1,000
impressions each and rates more than 60% apart. Which creative becomes A is drawn, from a hash of the ids:
a data set in which A always wins teaches the place.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import combinations
from typing import Any, Literal

from moonshelf import images
from moonshelf.creatives.outcomes import JEFFREYS, Prior, gap, posterior, stratum
from moonshelf.creatives.pair import Campaign, Creative, Pair, Stratum

# Keyword arguments of `build_pairs`. JD's CAIG keeps pairs that hardly differ, so that even the true order
# of the rates explains little of its labels: see `outcomes.label_ceiling`.
PRESETS: dict[str, dict[str, Any]] = {
    "creative4u": {"min_impressions": 1000, "min_gap": 0.6},
    "caig": {"min_impressions": 1000, "min_gap": 0.05, "max_gap": 0.2},
    "all": {"min_impressions": 0, "min_gap": None},
}


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

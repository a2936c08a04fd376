"""Judgements from clicks: how likely a place is looked at, and what a product is worth once it is seen.

The assumption is the position-based model (Craswell, Zoeter, Taylor and Ramsey, 2008): a click needs a look
and a product that is wanted, and the look depends on the place alone. Looks are told from worth by products
that were shown at several places for one query: given how many clicks such a pair had, they spread over the
places as shown times looked at, whatever the product is worth. `_fit` maximises that conditional likelihood
(of a Poisson model). A place that no such pair links to the first counts as the nearest one before it.

The test: queries with many and with few clicks an impression must give the same looks, as they would not
where people stop at the first good answer. It is a likelihood ratio, conditional on what the split is by.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from moonshelf.errors import Problem, UserError
from moonshelf.evaluation.data.judgements import Judgements, checked
from moonshelf.training.sources.click_log import Asked, stream_click_log

UNSEEN = 10.0  # looks without a click that each pair is given, so that one lucky click is no certainty
DOUBT = 0.01  # p below which the assumption is said not to hold
NO_PRODUCT = "the product's id is empty"  # as of a search or a filter among UBI's events
LEAST = 50  # clicks of each half of the test
_STEPS, _CLOSE = 500, 1e-9
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class PositionBias:
    """`looked[i]` is how likely `places[i]` is looked at, the first 1; `linked`: it could be told."""

    places: Sequence[int]
    looked: Floats
    linked: Bools
    p: float | None = None  # of the test; None where a half has too little to say

    def __str__(self) -> str:
        if self.linked.sum() < 2:
            return "not corrected for places: no clicked product was shown at two places for one query"
        told = zip(self.places, self.looked, self.linked, strict=True)
        shown = ", ".join(f"{place}: {look:.2f}" for place, look, ok in list(told)[:10] if ok)
        test = "too few clicks to test it" if self.p is None else f"test of it: p = {self.p:.2g}"
        if self.p is not None and self.p < DOUBT:
            test += ", so it does NOT hold here: trust these figures less than their intervals"
        return f"corrected for places, if a look depends on the place alone ({test}); looks by place: {shown}"


def read_clicks(
    paths: Sequence[Path], known: Collection[str], asked: Mapping[str, Asked] | None = None
) -> Judgements:
    """Grades from click logs, of the products `known`: weight of what was chosen a look (`EVENTS`).

    `asked` are queries by id, with what was shown where no event says so. A log that does not say what was
    shown gives sums of weights. Raises UserError where a log cannot be read or nothing in it was chosen.
    """
    cells: dict[tuple[str, str, int], list[float]] = defaultdict(lambda: [0.0, 0.0])  # shown, clicks
    weights: dict[tuple[str, str], float] = defaultdict(float)
    left_out: dict[str, list[Problem]] = defaultdict(list)
    for row in (row for path in paths for row in stream_click_log(path, known, asked)):
        if isinstance(row, Problem):
            left_out[row.reason].append(row)
        elif row.query.text:
            query = row.query.text.casefold()
            cell = cells[query, row.product_id, -1 if row.position is None else row.position]
            cell[0], cell[1] = cell[0] + row.shown, cell[1] + row.clicks
            weights[query, row.product_id] += row.weight
    if not any(shown for shown, _ in cells.values()):
        for one in (asked or {}).values():
            for place, product in enumerate(one.hits, 1):
                if product in known:
                    cells[one.text.casefold(), product, place][0] += 1
    looks: Mapping[tuple[str, str], float] = Counter()
    note = "not corrected for places: the log does not say what was shown, so clicks are added up"
    if any(shown for shown, _ in cells.values()):
        bias, looks = correct(cells)
        note = str(bias)
    grades: dict[str, dict[str, float]] = defaultdict(dict)
    for (query, product), weight in weights.items():
        grades[query][product] = weight / (looks[query, product] + UNSEEN) if looks else weight
    if not any(weights.values()):
        raise UserError(f"{paths[0].name}: nothing was clicked or bought, so there is nothing to judge by.")
    problems = [
        replace(some[0], reason=f"{why} ({len(some):,} rows, this is the first)", fatal=why != NO_PRODUCT)
        for why, some in left_out.items()
    ]
    return checked(Judgements(dict(grades), problems, [note]), known)


def correct(
    cells: Mapping[tuple[str, str, int], Sequence[float]],
) -> tuple[PositionBias, dict[tuple[str, str], float]]:
    """The looks of each place, and how often each pair of query and product was looked at.

    `cells` maps (query, product, place) to how often that was shown and clicked; place -1 is not known.
    """
    pairs = {pair: i for i, pair in enumerate(dict.fromkeys(key[:2] for key in cells))}
    names, place = np.unique([key[2] for key in cells], return_inverse=True)
    pair = np.array([pairs[key[:2]] for key in cells])
    shown, clicks = np.array(list(cells.values()), np.float64).T
    shown = np.maximum(shown, clicks)  # a click says that it was shown
    there = (np.bincount(pair, clicks) > 0)[pair] & (names[place] >= 0)
    linked = np.arange(len(names)) == (place[there].min() if there.any() else 0)
    for _ in names:  # from the first place on, by pairs that were shown at a linked place and at another
        linked[place[there & np.isin(pair, pair[there & linked[place]])]] = True
    looked: Floats = np.ones(len(names))
    p: float | None = None
    if linked.sum() > 1:
        use = there & linked[place]
        looked, together = _fit(pair[use], place[use], shown[use], clicks[use], linked)
        query = np.unique([key[0] for key in cells], return_inverse=True)[1]
        rate = np.bincount(query, clicks) / np.maximum(1, np.bincount(query, shown))
        many = (rate > np.median(rate[np.unique(query[use])]))[query]
        halves = [use & many, use & ~many]
        if min(clicks[half].sum() for half in halves) >= LEAST:
            apart = sum(_fit(pair[h], place[h], shown[h], clicks[h], linked)[1] for h in halves)
            p = float(chi2.sf(max(0.0, 2 * (apart - together)), linked.sum() - 1))
    seen = np.bincount(pair, shown * looked[place])
    bias = PositionBias(names.tolist(), looked, linked, p)
    return bias, {key: float(seen[i]) for key, i in pairs.items()}


def _fit(pair: Ints, place: Ints, shown: Floats, clicks: Floats, linked: Bools) -> tuple[Floats, float]:
    """(places,) looks, the first linked place 1, by alternating updates; and their log-likelihood."""
    looked, wanted = np.ones(len(linked)), np.bincount(place, clicks, len(linked))
    for _ in range(_STEPS):
        worth = np.bincount(pair, clicks) / np.maximum(np.bincount(pair, shown * looked[place]), 1e-300)
        fresh = wanted / np.maximum(np.bincount(place, shown * worth[pair], len(linked)), 1e-300)
        fresh = np.where(linked, fresh / (fresh[linked][0] or 1.0), 0.0)
        change, looked = np.abs(fresh - looked).max(), fresh
        if change < _CLOSE:
            break
    due = shown * looked[place]
    share = due / np.maximum(np.bincount(pair, due), 1e-300)[pair]
    likelihood = float((clicks * np.log(np.maximum(share, 1e-300))).sum())
    return looked[np.maximum.accumulate(np.where(linked, np.arange(len(linked)), 0))], likelihood

"""What only drawn campaigns allow: the best that eyes can do, whether the interest speaks, pictures edited.

The oracle knows the click model and all that can be seen of both creatives, but neither the idiosyncratic
part of their rates nor the draw of the clicks: what it reaches is the ceiling for a judge of pictures, below
the label ceiling, which also knows the true rates. An edit makes one question's answer worse for one side
and leaves the others as even as any change can; its placebo has no effect in the click model and changes
about as much of the picture.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist

import numpy as np

from moonshelf.creatives import clicks
from moonshelf.creatives.claims import irrelevant_phrases
from moonshelf.creatives.compose import draw
from moonshelf.creatives.construction import FACTORS, Construction, construction_of, edit
from moonshelf.creatives.pair import Creative, Pair
from moonshelf.creatives.protocol import Judgement, Side
from moonshelf.creatives.simulator import SOURCE, placebo, truth, visible_rates
from moonshelf.errors import UserError
from moonshelf.product import ImageRef

ORACLE = "all that can be seen"
_STYLE = ("font", "ink", "format")  # factors of no question


def drawn(pair: Pair) -> bool:
    """The pair is the simulator's: its constructions are known."""
    return pair.source.startswith(SOURCE) and all("construction" in one.facts for one in (pair.a, pair.b))


def gap(pair: Pair, interest: Sequence[str]) -> float:
    """Difference of the log rates of A and B as far as it can be seen, for shoppers with this interest."""
    return math.log(truth(pair.a, interest).rate / truth(pair.b, interest).rate)


def oracle(pairs: Sequence[Pair]) -> list[Judgement]:
    """A judgement a pair by the visible rates.

    Its probability is the posterior that the clicks will leave on average, since that is what it is scored
    against: Φ(gap / √(2σ² + 2s²)), σ the idiosyncratic deviation of a log rate and s² = 1/clicks A +
    1/clicks B, clicks as the visible rates let expect them (a normal approximation, ours).
    """
    found = []
    for pair in pairs:
        rates = visible_rates(pair)
        seen = [
            one.impressions * rate
            for one, rate in zip((pair.a, pair.b), rates, strict=True)
            if one.impressions
        ]
        noise = sum(1 / clicked for clicked in seen)
        spread = math.sqrt(2 * clicks.IDIOSYNCRATIC**2 + 2 * noise)
        same = bool(pair.a.sha256) and pair.a.sha256 == pair.b.sha256
        p = 0.5 if same else NormalDist().cdf(math.log(rates[0] / rates[1]) / spread)
        found.append(Judgement(pair_id=pair.id, p=p, p_first=p, p_second=p))
    return found


def interest_speaks(pair: Pair) -> bool:
    """One of the two answers the interest better: with it the visible gap is another than without."""
    return abs(gap(pair, pair.interest) - gap(pair, ())) > clicks.TIE


def edited(pair: Pair, side: Side, question: str) -> tuple[Pair, Pair] | None:
    """The pair with `question` made worse for `side`, and its placebo; None where nothing can make it worse.

    Of all single changes that lower the question's term by more than a tie, the one that moves the terms of
    the other questions least is taken; of equal ones the one that lowers it most.
    """
    creative = pair.a if side == "A" else pair.b
    known = construction_of(creative.facts)
    terms = _terms(known, pair.interest)
    best: tuple[tuple[float, float], Construction] | None = None
    for changed in _changes(known):
        after = _terms(changed, pair.interest)
        fall = terms[question] - after[question]
        aside = sum(abs(after[key] - terms[key]) for key in terms if key != question)
        if fall > clicks.TIE and (best is None or (round(aside, 9), -fall) < best[0]):
            best = (round(aside, 9), -fall), changed
    if best is None:
        return None
    seed = int.from_bytes(hashlib.sha256(f"{pair.id} {question}".encode()).digest()[:4], "big")
    try:
        other = placebo(known, np.random.default_rng(seed), like=best[1])
    except (IndexError, ValueError):  # nothing can be changed without an effect
        return None
    name = "a" if side == "A" else "b"
    one, two = (
        pair.model_copy(
            update={name: _drawn_again(creative, construction), "label": None, "assessment": None}
        )
        for construction in (best[1], other)
    )
    return one, two


def _terms(construction: Construction, interest: Sequence[str]) -> Mapping[str, float]:
    return clicks.utilities(construction.facts(), interest, construction.product.titled)


def _changes(construction: Construction) -> Iterator[Construction]:
    """Everything that one edit can make of a creative."""
    wanted = [
        (factor, value) for factor, values in FACTORS.items() for value in values if factor not in _STYLE
    ]
    wanted += [("colour", colour) for colour in construction.product.colours]
    wanted += [("says", words) for words in ("", irrelevant_phrases("train", False)[0])]
    for factor, value in wanted:
        if getattr(construction, factor) != value:
            try:
                yield edit(construction, factor, value)
            except UserError:  # words cannot be faint, or cover the product, where there are none
                continue


def _drawn_again(creative: Creative, construction: Construction) -> Creative:
    file = io.BytesIO()
    # as the simulator saves, so that the edit alone tells the pictures apart
    draw(construction).save(file, "JPEG", quality=87, subsampling=0)
    data = file.getvalue()
    return Creative(
        id=creative.id, image=ImageRef(data=data), sha256=hashlib.sha256(data).hexdigest(),
        text=construction.overlay, facts=construction.facts(),
    )  # fmt: skip

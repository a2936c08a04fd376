"""Drawn pairs edited: a test of whether the reasons that a selector gives are what its verdict rests on.

An edit makes one question's answer worse for one side and leaves the others as even as any change can; its
placebo has no effect in the click model and changes about as much of the picture.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from moonshelf.creatives.known import TIE
from moonshelf.creatives.schema import Creative, Pair, Side
from moonshelf.errors import UserError
from moonshelf.product import ImageRef
from research.synthetic.campaigns import clicks
from research.synthetic.campaigns.claims import irrelevant_phrases
from research.synthetic.campaigns.compose import draw
from research.synthetic.campaigns.construction import FACTORS, Construction, construction_of, edit
from research.synthetic.campaigns.simulator import placebo

_STYLE = ("font", "ink", "format")  # factors of no question


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
        if fall > TIE and (best is None or (round(aside, 9), -fall) < best[0]):
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

"""Pairs with small pictures, and judges whose every answer is known."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from moonshelf.creatives.backends.base import PairInput, PairPrediction, PairwiseBackend
from moonshelf.creatives.schema import (
    KEYS,
    QUESTIONS,
    AspectAnswer,
    Assessment,
    Campaign,
    Creative,
    Judgement,
    Pair,
)
from moonshelf.product import ImageRef

XSS = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7 * 7 }}"
BIDI = "left‮right"


def jpeg(seed: int, size: int = 40, **save) -> bytes:
    """A picture with something on it."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)  # finer ones would be noise
    file = io.BytesIO()
    Image.fromarray(blocks).resize((size, size), Image.Resampling.NEAREST).save(file, "JPEG", **save)
    return file.getvalue()


def creative(name: str, clicks: int | None = None, seed: int = 0, **more) -> Creative:
    shown = None if clicks is None else 2000
    return Creative(id=name, image=ImageRef(data=jpeg(seed)), impressions=shown, clicks=clicks, **more)


def pair(number: int, better: str = "A", gap: int = 40, **more) -> Pair:
    """A pair of product number // 2, decisive unless the gap in clicks is small."""
    clicks = (60 + gap, 60) if better == "A" else (60, 60 + gap)
    known = {"product_id": f"product {number // 2}", "title": f"mug {number}", "category": ("mugs",)}
    known |= {"id": f"pair {number}", "interest": (f"query {number}",), "source": "a shop"} | more
    return Pair(
        a=known.pop("a", None) or creative(f"{number} a", clicks[0], 2 * number),
        b=known.pop("b", None) or creative(f"{number} b", clicks[1], 2 * number + 1),
        **known,
    )


def pairs(n: int, **more) -> list[Pair]:
    """Winners in turn."""
    return [pair(i, "AB"[i % 2], **more) for i in range(n)]


def campaign(number: int, rates: Sequence[float], **more) -> Campaign:
    made = [
        creative(f"c{number}-{i}", round(2000 * rate), 1000 + 10 * number + i) for i, rate in enumerate(rates)
    ]
    return Campaign(
        id=f"campaign {number}",
        product_id=f"product {number}",
        creatives=tuple(made),
        source="a shop",
        **more,
    )


def assessment(default: str = "A=B", verdict=None, reasons=("", ""), **answers: str) -> Assessment:
    gates = {question.key for question in QUESTIONS if not question.compares}
    return Assessment(
        findings=tuple(
            AspectAnswer(
                question=key,
                answer=answers.get(key, "no" if key in gates else default),
                reason_a=reasons[0] if key not in gates else "",
                reason_b=reasons[1] if key not in gates else "",
            )
            for key in KEYS
        ),
        verdict=verdict,
    )


def judgement(id: str = "x", p: float = 0.5, **more) -> Judgement:
    return Judgement(pair_id=id, **{"p": p, "p_first": p, "p_second": p, **more})


class Judge(PairwiseBackend):
    """Says what a function of the ask says, and counts what it was asked."""

    temperature = None

    def __init__(self, name: str, says: Callable[[PairInput], float | PairPrediction]) -> None:
        self.name, self.says = name, says
        self.asked: list[PairInput] = []

    def predict(self, asks: Sequence[PairInput]) -> list[PairPrediction]:
        self.asked += asks
        found = [self.says(ask) for ask in asks]
        return [one if isinstance(one, PairPrediction) else PairPrediction(one) for one in found]


def by_clicks(ask: PairInput, sure: float = 0.9) -> float:
    """Peeks at the counts, which no real judge sees; one half without them."""
    first, second = ask.first.rate or 0.0, ask.second.rate or 0.0
    return 0.5 if first == second else sure if first > second else 1 - sure

"""Pairs with real pictures and backends whose predictions are known, for the tests of this room."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence

from moonshelf.creatives.backends.base import PairInput, PairPrediction, PairwiseBackend
from moonshelf.creatives.prompt import CreativePrompt
from moonshelf.creatives.schema import QUESTIONS, AspectAnswer, Assessment, Creative, Pair
from moonshelf.product import ImageRef
from tiny import picture


def creative(seed: int, **more: object) -> Creative:
    return Creative(id=f"c{seed}", image=ImageRef(data=picture(seed)), **more)


def pair(a: int = 1, b: int = 2, **more: object) -> Pair:
    fields = {"product_id": "p", "title": "red running shoe", "interest": ("red shoe",), **more}
    return Pair(id=f"{a}-{b}", a=creative(a), b=creative(b), **fields)


def assessment(seed: int) -> Assessment:
    """Answers and reasons drawn from the seed."""
    rng = random.Random(seed)
    findings = []
    for question in QUESTIONS:
        answers = ("A>B", "A=B", "A<B") if question.compares else ("yes", "no")
        told = question.compares and rng.random() < 0.7
        findings.append(
            AspectAnswer(
                question=question.key,
                answer=rng.choice(answers),
                reason_a=rng.choice(("says waterproof", "large", "busy")) if told else "",
                reason_b=rng.choice(("says nothing", "small", "plain")) if told else "",
            )
        )
    return Assessment(findings=tuple(findings))


class Fixed(PairwiseBackend):
    """p(first) is a function of the two images' bytes, and every ask is remembered."""

    name = "fixed"
    prompt = CreativePrompt()

    def __init__(self, p: Callable[[PairInput], float | None]) -> None:
        self.p, self.asked = p, []

    def predict(self, asks: Sequence[PairInput]) -> list[PairPrediction]:
        self.asked += asks
        return [PairPrediction(self.p(ask), tokens=3) for ask in asks]


def by_content(ask: PairInput) -> float:
    """A taste and a lean that follow from the images: neither symmetric nor near one half."""
    return 0.02 + 0.96 * _unit(ask.first, ask.second)


def taste(ask: PairInput) -> float:
    """The image with the larger hash wins, whatever the order."""
    return 0.9 if _unit(ask.first) > _unit(ask.second) else 0.1


def _unit(*creatives: Creative) -> float:
    digest = hashlib.sha256(b"".join(c.image.data or b"" for c in creatives)).digest()
    return int.from_bytes(digest[:6], "big") / 2**48

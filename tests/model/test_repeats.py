"""What repeats itself is taken back while it is written, and nothing else changes."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshelf.model.repeats import Repeats, repeated
from moonshelf.product import Product
from moonshelf.prompts import read_rationale


class Letters:
    """A tokenizer of words, marks and spaces: a token is a place in `known`."""

    def __init__(self) -> None:
        self.known = ["</think>"]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = []
        for piece in re.findall(r" ?[\w'&,-]+| ?[;:>]|\s", text):
            if piece not in self.known:
                self.known.append(piece)
            ids.append(self.known.index(piece))
        return ids

    def decode(self, ids: list[int]) -> str:
        return "".join(self.known[i] for i in ids)


def write(said: str) -> str:
    """What is left of a text that a model wants to write, each time that it is stopped."""
    tokenizer = Letters()
    repeats = Repeats(tokenizer, 0)
    ids: list[int] = []
    for token in [*tokenizer.encode(said), 0]:
        if (found := repeats.kept(ids, token)) is not None:
            return tokenizer.decode(ids[: found[0]]) + (" END" if found[1] else "")
        ids.append(token)
    return tokenizer.decode(ids[:-1])


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("category: baby > baby' clothes > baby' clothes > toys", "category: baby > baby' clothes"),
        ("category: a > b > A; colour: red", "category: a > b"),
        ("mechanism: quartz; Mechanism: analog", "mechanism: quartz END"),
        ("colour: red; edge", "colour: red END"),
        ("colour: red; edge: ; size: s", "colour: red END"),
        ("category: care > body care and body care and body care", "category: care > body care"),
        ("name: tropicana juice juice; packaged: yes", "name: tropicana juice"),
        ("category: home > mugs & dining & dining & cups", "category: home > mugs & dining"),
        ("use: on the road or at home on the road; x: y", "use: on the road or at home"),
    ],
)
def test_what_repeats_is_taken_back(said, left):
    assert write(said) == left


@pytest.mark.parametrize(
    "said",
    [
        "category: home > home decor > decor & light; colour: red",
        "category: furnishing > cushions; use: furnishing; style: furnishing",
        "size: 2 2; code: 10 10; neck: round; neckline: round neck",
        "colour: black and white; pattern: white and black",
        "category: mug",
    ],
)
def test_what_does_not_repeat_stays(said):
    assert write(said) == said


WORDS = st.sampled_from(["a", "b", "mug", "&", "care", "body"])
PARTS = st.lists(st.lists(WORDS, min_size=1, max_size=6).map(" ".join), min_size=1, max_size=4).map(
    " > ".join
)
PAIRS = st.lists(st.tuples(st.sampled_from(["category", "colour", "use"]), PARTS), min_size=1, max_size=4)


@given(PAIRS)
def test_what_is_left_does_not_repeat(pairs):
    said = "; ".join(f"{key}: {value}" for key, value in pairs)
    left = write(said)
    body = left.removesuffix(" END")
    assert said.startswith(body) and body
    if left != said:
        assert read_rationale(body) is not None and write(body) == body
    for mark in ";>":
        assert repeated(body, mark) is None
    kept = [part.partition(":")[0].strip() for part in body.split(";")]
    assert len(set(kept)) == len(kept)


def test_the_starter_stops_and_its_cache_follows():
    """Alone and in a batch it writes the same, and the vector is that of what is left of its text."""
    from moonshelf import MoonModel

    model = MoonModel.from_pretrained("starter")
    model.prompt = model.prompt.model_copy(update={"least_confidence": 0.0})  # all that it would write
    titles = (
        "Ceramic coffee mug", "JMD Printed Cushions Cover", "Analog watch for men black dial quartz",
        "Fragrance and body care combo set", "red leather running shoe",
    )  # fmt: skip
    products = [Product(id=str(i), title=title) for i, title in enumerate(titles)]
    together = model.encode(products, reason="on")
    assert together.valid.all()
    for text in together.rationales:
        for value in (read_rationale(text) or {}).values():
            parts = [part.strip() for part in value.split(">")]
            assert len(set(parts)) == len(parts)
    alone = [model.encode([product], reason="on") for product in products]  # guesses ahead
    assert [one.rationales[0] for one in alone] == together.rationales
    given = model.encode(products, reason="off", rationales=together.rationales)
    np.testing.assert_allclose(given.vectors, together.vectors, atol=2e-4)
    np.testing.assert_allclose([one.vectors[0] for one in alone], together.vectors, atol=2e-4)

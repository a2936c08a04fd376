"""Confidence of pairs against the model's own probabilities, and rationales without their doubtful pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from moonshelf import MoonModel, Product
from moonshelf.model.confidence import Confidence
from moonshelf.prompts import read_rationale

TITLES = (
    "Ceramic coffee mug", "JMD Printed Cushions Cover", "Analog watch for men black dial quartz",
    "Usb hub with four ports", "red leather running shoe", "Silver ring", "Milk chocolate with nuts 100 g",
)  # fmt: skip
PRODUCTS = [Product(id=str(i), title=title) for i, title in enumerate(TITLES)]


def starter(least: float = 0.0) -> MoonModel:
    model = MoonModel.from_pretrained("starter")
    plain = {"least_confidence": least, "calibration": (1.0, 0.0)}
    model.prompt = model.prompt.model_copy(update=plain)
    return model


@pytest.fixture(scope="module")
def sure() -> MoonModel:
    return starter()


class Letters:
    """A tokenizer of single characters."""

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def test_pairs_and_their_values_are_found_in_tokens() -> None:
    body = "a: b; c: de;f"
    found = [
        (body[s.start : s.end], body[s.value : s.stop]) for s in Confidence(Letters()).spans(body.encode())
    ]
    assert found == [("a: b;", " b"), (" c: de;", " de"), ("f", "f")]
    assert Confidence(Letters()).spans([]) == []


@pytest.mark.parametrize(
    ("doubted", "left"),
    [("ac", "e: f"), ("c", "a: b; e: f"), ("e", "a: b; c: d"), ("ce", "a: b"), ("ace", "")],
)
def test_doubtful_pairs_go_with_their_semicolons(doubted: str, left: str) -> None:
    body = "a: b; c: d; e: f"
    values = {"a": "b", "c": "d", "e": "f"}
    likely = [math.log(0.3) if letter in {values[k] for k in doubted} else 0.0 for letter in body]
    places = set(Confidence(Letters(), 0.5).doubtful([*body.encode()], likely))
    assert "".join(c for i, c in enumerate(body) if i not in places).strip() == left


def test_calibration_is_a_line_over_the_log_odds() -> None:
    body, likely = "a: b; c: d", [0.0] * 10
    likely[3], likely[9] = math.log(0.8), math.log(0.5)  # of the spaces before b and of d
    np.testing.assert_allclose(Confidence(Letters()).of([*body.encode()], likely), [0.8, 0.5])
    fitted = Confidence(Letters(), calibration=(2.0, -1.0)).of([*body.encode()], likely)
    np.testing.assert_allclose(fitted, [1 / (1 + math.exp(-(2 * math.log(4) - 1))), 1 / (1 + math.e)])


def test_confidence_is_what_the_model_gives_the_value(sure: MoonModel) -> None:
    """Against one pass over prompt and rationale, without a cache."""
    encoded = sure.encode(PRODUCTS, reason="on")
    prepare, tokenizer = sure.prepare, sure.processor.tokenizer
    for product, text, confidence in zip(PRODUCTS, encoded.rationales, encoded.confidence, strict=True):
        body = tokenizer(text[len("<think>") : -len("</think>")], add_special_tokens=False)["input_ids"]
        ids = prepare.text_ids([sure.prompt.text_of(product)])
        batch = prepare.batch(ids, [[]], [[prepare.think, *body, prepare.end_think, prepare.emb]])
        with torch.no_grad():
            likely = sure.logits(sure.read(batch).states[0]).float().log_softmax(-1)
        first = batch.input_ids[0].tolist().index(prepare.think) + 1
        own = [float(likely[first + n - 1, token]) for n, token in enumerate(body)]
        assert len(confidence) == len(read_rationale(text) or {})
        # Markup is never written, so the rest has a little more; it is rarely likely.
        np.testing.assert_allclose(confidence, Confidence(tokenizer).of(body, own), atol=0.02)


def test_what_is_less_sure_is_not_written(sure: MoonModel) -> None:
    before = sure.encode(PRODUCTS, reason="on")
    least = float(np.median(np.concatenate(before.confidence)))
    shy = starter(least)
    after = shy.encode(PRODUCTS, reason="on")
    assert after.valid.all()
    shorter = 0
    for old, sureness, new in zip(before.rationales, before.confidence, after.rationales, strict=True):
        pairs = read_rationale(old) or {}
        kept = {k: v for (k, v), c in zip(pairs.items(), sureness, strict=True) if c >= least}
        assert (read_rationale(new) or {}) == kept
        shorter += len(kept) < len(pairs)
    assert shorter
    alone = [shy.encode([product], reason="on") for product in PRODUCTS]  # guesses ahead
    assert [one.rationales[0] for one in alone] == after.rationales
    np.testing.assert_allclose([one.vectors[0] for one in alone], after.vectors, atol=2e-4)
    # Where only the last pairs went, the vector is that of the text that is left.
    ends = [
        i for i, (old, new) in enumerate(zip(before.rationales, after.rationales, strict=True))
        if new and old.startswith(new.removesuffix("</think>"))
    ]  # fmt: skip
    given = shy.encode([PRODUCTS[i] for i in ends], rationales=[after.rationales[i] for i in ends])
    np.testing.assert_allclose(given.vectors, after.vectors[ends], atol=2e-4)


def test_a_rationale_of_which_nothing_is_left_is_empty() -> None:
    encoded = starter(0.999999).encode(PRODUCTS, reason="on")
    assert "" in encoded.rationales and encoded.valid[[not r for r in encoded.rationales]].all()
    np.testing.assert_allclose(np.linalg.norm(encoded.vectors, axis=1), 1, atol=1e-5)

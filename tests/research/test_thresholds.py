"""`auto` at any threshold is what the engine does at its own, and its ends are direct and reasoned."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation_fakes import FakeEncoder, unit
from moonshelf.evaluation.contract import TEXT
from moonshelf.evaluation.tasks import Labelling, Retrieval
from moonshelf.product import Product
from research.studies.curves import AtThreshold, calibrate, margins

LABELS = ("red", "blue")
N = 40
DIRECT = {f"p{i}": (np.cos(i / N * 1.4), np.sin(i / N * 1.4)) for i in range(N)}  # from red to blue


def encode(encoder, products):
    return encoder.encode(products)


def direct_vector(product: Product) -> np.ndarray:
    x, y = {"red": (1, 0), "blue": (0, 1)}.get(product.title) or DIRECT[product.id]
    return unit(np.array([x, y, 0.1]))


def reasoned_vector(product: Product) -> np.ndarray:
    """Knows the truth: the first half is red."""
    if product.title in LABELS:
        return direct_vector(product)
    return unit(np.array([1.0, 0, 0] if int(product.id[1:]) < N // 4 else [0, 1.0, 0]))


@pytest.fixture
def encoders():
    return FakeEncoder(direct_vector, "m direct", "d"), FakeEncoder(
        reasoned_vector, "m reasoned", "r", writes=True, rationale=lambda p: f"<think>{p.id}</think>"
    )


def labelling() -> Labelling:
    products = [Product(id=id) for id in DIRECT]
    truth = ["red" if i < N // 4 else "blue" for i in range(N)]
    return Labelling(
        "toy", "colour", "text", products, truth, LABELS, list(DIRECT), TEXT, "colour",
        methods=("zero-shot classification",), metrics=("accuracy",),
    )  # fmt: skip


def test_margins():
    labels = np.eye(3)[:2]
    assert margins(np.array([[1.0, 0, 0], [0.6, 0.8, 0]]), labels) == pytest.approx([1.0, 0.2])
    assert margins(np.eye(3), labels[:1]).tolist() == [0, 0, 0]


def test_the_ends_are_direct_and_reasoned_and_the_middle_is_a_mixture(encoders):
    direct, reasoned = encoders
    points = calibrate([labelling()], direct, reasoned, encode, LABELS, default=0.05)
    assert [p.threshold for p in points] == sorted(p.threshold for p in points)
    assert [p.share for p in points] == sorted(p.share for p in points)
    own = {
        name: labelling().run(e, encode)[0].value for name, e in (("direct", direct), ("reasoned", reasoned))
    }
    assert (points[0].share, points[0].value) == (0, own["direct"])
    assert (points[-1].share, points[-1].value) == (1, own["reasoned"]) and own["reasoned"] == 1
    assert own["direct"] < points[5].value < 1
    assert [p.threshold for p in points if p.default] == [0.05]
    assert len({p.share for p in points}) == len(points) == 12


def test_only_the_unsure_are_asked_to_reason(encoders):
    direct, reasoned = encoders
    labels = direct.encode([Product(id=f"label {n}", title=n) for n in LABELS]).vectors
    mixed = AtThreshold(direct, reasoned, encode, labels, 0.2)
    products = [Product(id=id) for id in DIRECT]
    out, unsure = mixed.encode(products), mixed.unsure(products)
    assert reasoned.seen == [p.id for p, asked in zip(products, unsure, strict=True) if asked]
    assert 0 < unsure.sum() < N
    assert [bool(text) for text in out.rationales] == unsure.tolist()
    np.testing.assert_array_equal(out.vectors[~unsure], direct.encode(products).vectors[~unsure])


def test_a_corpus_takes_part(encoders):
    direct, reasoned = encoders
    products = [Product(id=id) for id in DIRECT]
    keys = list(DIRECT)
    task = Retrieval(
        "toy", "find", "text", products[:5], products, keys, [{k: 1.0} for k in keys[:5]], keys[:5],
        TEXT, TEXT, ("R@1",),
    )  # fmt: skip
    points = calibrate([task], direct, reasoned, encode, LABELS, default=0.05)
    assert points[0].value == 1 and points[-1].value == pytest.approx(1 / (N // 4))

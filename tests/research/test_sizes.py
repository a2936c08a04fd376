"""Shorter and coarser vectors: what the codes keep, and what a curve says about it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation_fakes import FakeEncoder, unit
from moonshelf.evaluation.contract import BOTH, IMAGE, TEXT
from moonshelf.evaluation.tasks import Retrieval
from moonshelf.product import Product
from research.studies.curves import PRECISIONS, compress, curves, halves, markdown, stored_bytes

WIDE = 64


def vectors(n: int, seed: int = 0, width: int = WIDE) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, width)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 7, 32, 64]), st.sampled_from(PRECISIONS))
def test_compressed_vectors_are_unit_and_do_not_depend_on_their_neighbours(seed, dims, precision):
    rows = vectors(5, seed)
    rows[2] = 0
    out = compress(rows, dims, precision)
    assert out.shape == (5, dims) and out.dtype == np.float32
    norms = np.linalg.norm(out, axis=1)
    assert norms[2] == 0 and np.allclose(np.delete(norms, 2), 1, atol=1e-5)
    np.testing.assert_array_equal(compress(rows[3:4], dims, precision)[0], out[3])
    np.testing.assert_allclose(compress(4 * rows, dims, precision), out, atol=1e-6)


def test_what_each_precision_keeps():
    rows = vectors(40)
    whole = compress(rows, WIDE)
    np.testing.assert_allclose(whole, rows, atol=1e-6)
    np.testing.assert_allclose(compress(rows, 16), unit(rows[:, :16]), atol=1e-6)
    assert np.abs(compress(rows, WIDE, "int8") @ rows.T - rows @ rows.T).max() < 0.01
    signs = rows > 0
    differing = (signs[:, None] != signs[None]).sum(axis=2)
    bits = compress(rows, WIDE, "binary")
    np.testing.assert_allclose(bits @ bits.T, 1 - 2 * differing / WIDE, atol=1e-5)
    codes = compress(rows, WIDE, "int8")
    codes = 127 * codes / np.abs(codes).max(axis=1, keepdims=True)
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)


def test_mistakes_are_refused():
    for dims in (0, 65):
        with pytest.raises(ValueError, match="cannot be cut"):
            compress(vectors(2), dims)
    with pytest.raises(ValueError, match="precision must be one of"):
        compress(vectors(2), 8, "int4")


def test_bytes_and_sizes():
    assert [stored_bytes(256, p) for p in PRECISIONS] == [1024, 256, 32]
    assert stored_bytes(9, "binary") == 2
    assert halves(256) == (256, 128, 64, 32) and halves(100) == (100, 50) and halves(33) == (33,)


def direct(encoder, products):
    return encoder.encode(products)


def retrieval(n: int = 60, reads=BOTH) -> Retrieval:
    products = [Product(id=str(i), title=f"thing {i}") for i in range(n)]
    keys = [p.id for p in products]
    queries = [p.model_copy(update={"description": "asked"}) for p in products]
    return Retrieval(
        "toy", "find", "text", queries, products, keys, [{k: 1.0} for k in keys], keys, reads, reads,
        ("R@1",),
    )  # fmt: skip


def test_a_curve_falls_with_size_and_precision_and_its_whole_is_the_plain_result():
    rows, noise = vectors(60), vectors(60, 1)
    encoder = FakeEncoder(lambda p: unit(rows[int(p.id)] + (0.6 * noise[int(p.id)] if p.description else 0)))
    points = curves([retrieval()], encoder, direct, dims=(128, 64, 32, 8))
    found = {(p.dims, p.precision): p for p in points}
    assert set(found) == {(d, p) for d in (64, 32, 8) for p in PRECISIONS}
    assert found[64, "float32"].value == retrieval().run(encoder, direct)[0].value
    assert found[64, "float32"].value >= found[32, "float32"].value > found[8, "float32"].value
    assert found[8, "float32"].value > found[8, "binary"].value
    assert (found[64, "float32"].bytes, found[64, "float32"].n, found[64, "float32"].corpus) == (256, 60, 60)
    assert all(p.low <= p.value <= p.high for p in points)


def test_what_an_encoder_cannot_do_has_no_points():
    reader = FakeEncoder(lambda p: np.ones(8), reads=TEXT)
    assert curves([retrieval(reads=IMAGE)], reader, direct) == []


def test_points_are_a_table():
    encoder = FakeEncoder(lambda p: np.ones(8), reads=TEXT)
    lines = markdown(curves([retrieval()], encoder, direct, dims=(8,))).splitlines()
    assert len(lines) == 2 + 3 and "float32" in lines[2] and "R@1" in lines[2]

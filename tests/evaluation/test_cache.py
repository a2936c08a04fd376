"""The cache gives back what was computed, for equal content only, and survives what happens to files."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evaluation_fakes import FakeEncoder, words_vector
from moonshelf.errors import UserError
from moonshelf.evaluation.contract import BOTH, IMAGE, TEXT
from moonshelf.evaluation.encoders import cache as cache_module
from moonshelf.evaluation.encoders.cache import EmbeddingCache
from moonshelf.product import ImageRef, Product


def by_title(product: Product) -> np.ndarray:
    return words_vector(product.title)


def png(colour: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(data, "PNG")
    return data.getvalue()


PRODUCTS = [Product(id=f"p{i}", title=f"title {i}") for i in range(7)]


def written(product: Product) -> str:
    return f"<think>category: ünïcode {product.id}</think>"


def test_a_second_run_computes_nothing_and_gives_the_same(tmp_path):
    first = FakeEncoder(by_title, writes=True, rationale=written)
    out = EmbeddingCache(tmp_path).encode(first, PRODUCTS)
    again = FakeEncoder(by_title, writes=True, rationale=written)
    cache = EmbeddingCache(tmp_path)
    kept = cache.encode(again, PRODUCTS[::-1])
    assert again.seen == []
    np.testing.assert_array_equal(kept.vectors, out.vectors[::-1])
    assert kept.rationales == out.rationales[::-1] and kept.valid.all() and kept.ok.all()
    assert cache.timings["fake"].from_cache == 7 and cache.timings["fake"].items_per_second is None


def test_content_and_fingerprint_decide_and_names_do_not(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(png("red"))
    one = Product(id="one", title="shoe", images=(ImageRef(path=str(path)),))
    EmbeddingCache(tmp_path / "c").encode(FakeEncoder(by_title), [one])

    def computed(product: Product, encoder: FakeEncoder | None = None) -> bool:
        encoder = encoder or FakeEncoder(by_title)
        EmbeddingCache(tmp_path / "c").encode(encoder, [product])
        return bool(encoder.seen)

    assert not computed(one.model_copy(update={"id": "two"}))
    assert not computed(one.model_copy(update={"images": (ImageRef(data=png("red")),)}))  # moved, not changed
    assert computed(one.model_copy(update={"title": "boot"}))
    assert computed(one, replace(FakeEncoder(by_title), fingerprint="fake-2"))
    path.write_bytes(png("blue"))  # the same name, another picture
    assert computed(one.model_copy(update={"images": (ImageRef(path=str(path)),)}))


def test_equal_products_are_computed_once_and_order_is_kept():
    encoder = FakeEncoder(by_title)
    twice = [PRODUCTS[0], PRODUCTS[1], PRODUCTS[0].model_copy(update={"id": "again"})]
    out = EmbeddingCache().encode(encoder, twice)
    assert encoder.seen == ["p0", "p1"]
    np.testing.assert_array_equal(out.vectors[0], out.vectors[2])
    np.testing.assert_array_equal(out.vectors, [by_title(p) for p in twice])


def test_a_picture_in_two_views_is_one_to_an_encoder_that_reads_pictures_alone():
    picture = (ImageRef(data=png("red")),)
    views = [Product(id="a", images=picture), Product(id="a", title="red shoe", images=picture)]
    shown = []
    for reads in (IMAGE, TEXT, BOTH):
        encoder = FakeEncoder(by_title, fingerprint=f"reads {reads}", reads=reads)
        EmbeddingCache().encode(encoder, views)
        shown.append(len(encoder.seen))
    assert shown == [1, 2, 2]  # for words, a view without a title is another text


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "PART", 3)

    def stops(product: Product) -> np.ndarray:
        if product.id == "p4":
            raise KeyboardInterrupt
        return by_title(product)

    with pytest.raises(KeyboardInterrupt):
        EmbeddingCache(tmp_path).encode(FakeEncoder(stops), PRODUCTS)
    encoder = FakeEncoder(by_title)
    out = EmbeddingCache(tmp_path).encode(encoder, PRODUCTS)
    assert encoder.seen == ["p3", "p4", "p5", "p6"]
    np.testing.assert_array_equal(out.vectors, [by_title(p) for p in PRODUCTS])


def test_broken_products_are_reported_and_tried_again(tmp_path):
    cache = EmbeddingCache(tmp_path)
    out = cache.encode(FakeEncoder(by_title, broken=frozenset({"p2"})), PRODUCTS)
    assert out.ok.tolist() == [True, True, False, True, True, True, True]
    assert not out.vectors[2].any()
    assert cache.problems["fake", "p2"].reason == "broken"
    later = FakeEncoder(by_title)
    assert EmbeddingCache(tmp_path).encode(later, PRODUCTS).ok.all() and later.seen == ["p2"]


def test_tokens_are_kept_and_an_older_part_is_read_without(tmp_path):
    class Counting(FakeEncoder):
        def encode(self, products):
            return replace(super().encode(products), tokens=np.arange(len(products)))

    first = EmbeddingCache(tmp_path)
    first.encode(Counting(by_title), PRODUCTS)
    assert first.timings["fake"].tokens == sum(range(7))
    kept = EmbeddingCache(tmp_path)
    assert kept.encode(Counting(by_title), PRODUCTS).tokens.tolist() == list(range(7))
    assert kept.timings["fake"].tokens is None  # none were written in this run
    [part] = tmp_path.glob("*/*.npz")
    with np.load(part) as content:
        arrays = {name: content[name] for name in content if name != "tokens"}
    np.savez(part, **arrays)
    old = EmbeddingCache(tmp_path)
    assert (old.encode(Counting(by_title), PRODUCTS).tokens == -1).all() and not old.unreadable


def test_a_vector_that_is_not_finite_is_never_kept(tmp_path):
    def wrong(product: Product) -> np.ndarray:
        return by_title(product) + (np.inf if product.id == "p6" else 0)

    with pytest.raises(UserError, match=r"fake gives vectors that are not finite \(1 of 7\)"):
        EmbeddingCache(tmp_path).encode(FakeEncoder(wrong), PRODUCTS)
    assert not list(tmp_path.glob("*/*.npz"))


def test_what_is_cheap_is_forgotten_between_data_sets():
    cache = EmbeddingCache()
    dear, cheap = FakeEncoder(by_title, "a", "1"), FakeEncoder(by_title, "b", "2", cheap=True)
    for _ in range(2):
        cache.encode(dear, PRODUCTS)
        cache.encode(cheap, PRODUCTS)
        cache.release()
    assert (len(dear.seen), len(cheap.seen)) == (7, 14)


@pytest.mark.parametrize("damage", ["truncated", "empty", "not finite", "pickle"])
def test_a_damaged_part_is_computed_again(tmp_path, damage):
    EmbeddingCache(tmp_path).encode(FakeEncoder(by_title), PRODUCTS)
    [part] = tmp_path.glob("*/*.npz")
    with np.load(part) as content:
        arrays = dict(content)
    if damage == "truncated":
        part.write_bytes(part.read_bytes()[:-300])
    elif damage == "empty":
        part.write_bytes(b"")
    elif damage == "not finite":
        arrays["vectors"][0, 0] = np.nan
        np.savez(part, **arrays)
    else:
        np.savez(part, **{**arrays, "keys": np.array([{"a": 1}] * 7, dtype=object)})
    encoder, cache = FakeEncoder(by_title), EmbeddingCache(tmp_path)
    out = cache.encode(encoder, PRODUCTS)
    assert len(encoder.seen) == 7 and cache.unreadable == [part.name]
    np.testing.assert_array_equal(out.vectors, [by_title(p) for p in PRODUCTS])


def test_cheap_encoders_are_not_written(tmp_path):
    EmbeddingCache(tmp_path).encode(FakeEncoder(by_title, cheap=True), PRODUCTS)
    assert not list(tmp_path.iterdir())

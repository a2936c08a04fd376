"""An index that caught up gives what one built anew gives, after any sequence of upserts and removals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_model import FakeModel, product
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshelf.catalogue import Catalogue
from moonshelf.catalogue.commits import Writer
from moonshelf.catalogue.rows import build_row, key_of, prepare_row
from moonshelf.catalogue.vector_index import FLAT_ROWS, VectorIndex, build, load

DIM = 16
Hits = list[list[tuple[int, float]]]


def unit(rng: np.random.Generator, n: int) -> np.ndarray:
    vectors = rng.normal(size=(n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def same(found: Hits, expected: Hits) -> None:
    assert [[key for key, _ in row] for row in found] == [[key for key, _ in row] for row in expected]
    for a, b in zip(found, expected, strict=True):
        assert [score for _, score in a] == pytest.approx([score for _, score in b], abs=1e-5)


STEPS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 40), max_size=6, unique=True),  # put
        st.lists(st.integers(0, 40), max_size=6, unique=True),  # remove
    ),
    max_size=6,
)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(["flat", "hnsw"]), st.integers(1, 40), STEPS, st.integers(0, 2**32 - 1))
def test_catching_up_equals_building_anew(kind, n, steps, seed):
    rng = np.random.default_rng(seed)
    rows = dict(enumerate(unit(rng, n)))
    keys = {number: key_of(f"p{number}") for number in range(41)}
    index = VectorIndex.of(
        np.array([keys[i] for i in rows]), np.array(list(rows.values())), 100 if kind == "flat" else 0
    )
    assert index.kind == kind
    queries = unit(rng, 5)
    for put, removed in steps:
        before = index.search(queries, 10)
        put_now = [i for i in put if i not in removed]
        vectors = unit(rng, len(put_now))
        later = index.catch_up(
            np.array([keys[i] for i in put_now], np.int64),
            vectors,
            np.array([keys[i] for i in removed], np.int64),
        )
        assert index.search(queries, 10) == before, "readers of the old one see no change"
        index = later
        rows.update(zip(put_now, vectors, strict=True))
        for i in removed:
            rows.pop(i, None)
        held = np.array([keys[i] for i in rows], np.int64)
        fresh = VectorIndex.of(held, np.array(list(rows.values()), np.float32).reshape(-1, DIM))
        assert len(index) == len(fresh) == len(rows)
        for k in (1, 7, 100):
            same(index.search(queries, k), fresh.search(queries, k))
        some = rng.permutation(np.array([keys[i] for i in range(41)], np.int64))[:15]
        for allowed in (some, some[:0], held):
            same(index.search(queries, 10, allowed), fresh.search(queries, 10, allowed))


@pytest.mark.parametrize("flat_rows", [FLAT_ROWS, 0])
def test_a_loaded_index_catches_up_with_the_store(tmp_path: Path, monkeypatch, flat_rows):
    monkeypatch.setattr("moonshelf.catalogue.vector_index.FLAT_ROWS", flat_rows)
    model, rng = FakeModel(), np.random.default_rng(1)
    shelf = Catalogue.create(tmp_path / "shelf", model)
    shelf.embed([product(i) for i in range(40)])
    info = build(shelf.folder)
    assert info.kind == ("flat" if flat_rows else "hnsw")
    writer = Writer(shelf.store)
    for step in range(3):
        for number in rng.integers(0, 50, 5):
            one = product(int(number), title=f"thing {step} {number}")
            known = writer.store.hashes([one.id]).get(one.id)
            found = prepare_row(one, model.prompt, "off", known)
            if found.state in ("new", "changed"):
                vector = model.encode([found.product]).vectors[0]
                writer.commit([build_row(found, vector, (1, 0, 0), "", True, 0)])
        writer.commit(removed=[f"p{i}" for i in rng.integers(0, 50, 3)])
        index, note = load(shelf.store)
        assert index is not None and index.kind == info.kind and len(index) == len(shelf.store)
        keys, vectors = shelf.store.vectors()
        fresh = VectorIndex.of(keys, vectors)
        queries = vectors[rng.integers(0, len(vectors), 6)]
        for found_row, expected in zip(index.search(queries, 60), fresh.search(queries, 60), strict=True):
            assert {key for key, _ in found_row} == set(keys.tolist())
            assert [s for _, s in found_row] == pytest.approx([s for _, s in expected], abs=1e-5)
            best = dict(found_row)
            assert all(best[key] == pytest.approx(score, abs=1e-5) for key, score in expected)
        assert bool(note) == (index.changes > 8) and (not note or "moonshelf index" in note)
    build(shelf.folder)
    index, note = load(shelf.store)
    assert index is not None and (index.changes, note) == (0, "")


def test_very_many_changes_are_read_in_one_pass(tmp_path, monkeypatch):
    """The two ways of reading changed vectors agree."""
    model = FakeModel()
    shelf = Catalogue.create(tmp_path / "shelf", model)
    shelf.embed([product(i) for i in range(30)])
    keys = np.array([key_of(f"p{i}") for i in (3, 9, 27, 99)])
    few = shelf.store.vectors(keys)
    monkeypatch.setattr("moonshelf.catalogue.store._FEW", 0)
    many = shelf.store.vectors(keys)
    assert few[0].tolist() == many[0].tolist() == sorted(keys[:3].tolist())
    np.testing.assert_array_equal(few[1], many[1])


def test_what_was_removed_does_not_crowd_out_the_rest_of_a_graph():
    """All rows near a query gone, as when a category leaves; and filters that cut away what is near."""
    rng = np.random.default_rng(0)
    vectors = unit(rng, 4000)
    keys = rng.permutation(4000).astype(np.int64) * 10**12
    graph = VectorIndex.of(keys, vectors, flat_rows=0)
    queries = vectors[:5]
    for near in (20, 300, 3900):
        gone = np.unique(np.argsort(-(queries @ vectors.T), axis=1)[:, :near])
        rest = np.setdiff1d(np.arange(4000), gone)
        later = graph.catch_up(keys[:0], vectors[:0], keys[gone])
        exact = VectorIndex.of(keys[rest], vectors[rest])
        assert len(later) == len(rest)
        for index, allowed in ((later, None), (graph, keys[rest]), (later, keys[: len(keys) // 2])):
            found, expected = index.search(queries, 50, allowed), exact.search(queries, 50, allowed)
            for a, b in zip(found, expected, strict=True):
                assert len(a) == len(b) and len({key for key, _ in a} & {key for key, _ in b}) >= 0.9 * len(b)

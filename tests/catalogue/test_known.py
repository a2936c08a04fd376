"""What a run remembers of a feed's rows, against Python's own dictionary and set."""

from __future__ import annotations

import numpy as np
import pytest
from fake_model import FakeModel, product
from hypothesis import given
from hypothesis import strategies as st

from moonshelf.catalogue import Catalogue, commits
from moonshelf.catalogue.commits import Known, Seen
from moonshelf.catalogue.rows import key_of


def test_the_hashes_of_a_store_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(commits, "_BATCH", 7)  # many batches, the last one not full
    shelf = Catalogue.create(tmp_path / "shelf", FakeModel())
    products = [product(i) for i in range(30)]
    shelf.embed(products[:20])
    shelf.embed(products)
    found = Known.of(shelf.store)
    stored = shelf.store.hashes([one.id for one in products])
    assert len(stored) == 30 and {id: found.get(id) for id in stored} == stored
    assert found.get("another") is None
    assert (np.diff(found.keys) > 0).all()


@given(ids=st.lists(st.sampled_from([f"id {i}" for i in range(40)])), batch=st.integers(1, 9))
def test_an_id_is_new_once(ids, batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commits, "_BATCH", batch)
        seen, plain = Seen(), set()
        for id in ids:
            assert seen.add(id) == (id not in plain)
            plain.add(id)
        assert seen.keys.tolist() == sorted(map(key_of, plain))

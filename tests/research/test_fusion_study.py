"""The study's own arithmetic, by hand, and its queries of the packaged shop."""

from __future__ import annotations

from pathlib import Path

import pytest

from research.studies.fusion import by_ranks, ndcg, shop


def test_ndcg_and_ranks_by_hand():
    assert ndcg(["a", "x", "b"], {"a": 3.0, "b": 1.0}) == pytest.approx(3.5 / (3 + 1 / 1.584962500721156))
    assert ndcg(["x"], {"a": 1.0}) == 0
    assert by_ranks(["a", "b"], ["b", "c"], 0.5) == ["b", "a", "c"]
    assert by_ranks(["a", "b"], ["b", "c"], 0.0) == ["b", "c", "a"]


def test_the_shop_has_queries_in_words_with_grades():
    products, queries = shop(Path())
    ids = {product.id for product in products}
    assert len(queries) > 20
    assert all(set(gains) <= ids and max(gains.values()) == 3 for gains in queries.values())

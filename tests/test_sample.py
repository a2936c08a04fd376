"""What the package ships to look at: small, whole, and of one piece with its truth."""

from __future__ import annotations

import pytest

from moonshelf import sample
from moonshelf.creatives.io.readers import read_creatives
from moonshelf.creatives.known import is_known, pairs
from moonshelf.creatives.schema import Campaign
from moonshelf.errors import UserError
from moonshelf.feeds.check import check_feed


def test_it_is_small_and_every_picture_decodes(tmp_path) -> None:
    assert sum(file.stat().st_size for file in sample.FOLDER.glob("*.parquet")) <= 4e6
    checked = check_feed(sample.PRODUCTS, rejects=tmp_path / "rejects.jsonl")
    assert checked.products == checked.rows == sample.SIZE and checked.images["good"] == 3 * sample.SIZE


@pytest.mark.parametrize("limit", [12, sample.SIZE])
def test_queries_have_an_answer_among_the_products(limit: int) -> None:
    shop = sample.shop(limit)
    ids = [product.id for product in shop.products]
    assert list(shop.truth) == ids and len(ids) == limit
    for product in shop.products:
        truth = shop.truth[product.id]
        assert (truth.category, truth.attributes) == (product.category, product.attributes)
    assert {query.modality for query in shop.queries} >= {"text", "image"}
    for query in shop.queries:
        assert 3 in query.relevance.values() and set(query.relevance) <= set(ids)


@pytest.mark.parametrize("limit", [0, sample.SIZE + 1])
def test_more_than_there_is_cannot_be_asked_for(limit: int) -> None:
    with pytest.raises(UserError, match=f"the sample has {sample.SIZE} products"):
        sample.shop(limit)


def test_campaigns_carry_their_truth() -> None:
    campaigns = [row for row in read_creatives(sample.CAMPAIGNS) if isinstance(row, Campaign)]
    assert len(campaigns) == 12 and all(one.source == "simulated" and one.true_rates for one in campaigns)
    assert all(is_known(*one.creatives) for one in campaigns)
    assert all(pair.assessment for one in campaigns for pair in pairs(one))

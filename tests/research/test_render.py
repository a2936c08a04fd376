"""What the package ships is what `render` draws: the same products, pictures and campaigns."""

from __future__ import annotations

from itertools import islice

import numpy as np

from moonshelf import images, sample
from moonshelf.creatives.io.readers import read_creatives
from moonshelf.creatives.schema import Campaign
from research.synthetic import render
from research.synthetic.campaigns.simulator import simulate
from research.synthetic.shop import iter_products, iter_truth


def test_the_shop_is_the_drawn_one() -> None:
    shipped = sample.shop()
    drawn = iter_truth(sample.SIZE, sample.SEED)
    assert [sample.truth_record(one) for one in drawn] == [
        sample.truth_record(one) for one in shipped.truth.values()
    ]
    for mine, theirs in zip(iter_products(3, sample.SEED), shipped.products, strict=False):
        assert mine.model_copy(update={"images": ()}) == theirs.model_copy(update={"images": ()})
        for one, other in zip(mine.images, theirs.images, strict=True):
            assert one.role == other.role
            pixels = [np.asarray(images.load(ref), np.int16) for ref in (one, other)]
            assert np.abs(pixels[0] - pixels[1]).mean() < 3, "WebP blurs, and draws nothing else"


def test_the_campaigns_are_the_drawn_ones() -> None:
    shipped = [row for row in read_creatives(sample.CAMPAIGNS) if isinstance(row, Campaign)]
    drawn = simulate(2, creatives=render.CREATIVES, seed=sample.SEED, split="test", per_product=1)
    for one, other in zip(islice(drawn, 2), shipped, strict=False):
        assert (one.id, one.interest, one.true_rates) == (other.id, other.interest, other.true_rates)
        assert [c.known for c in one.creatives] == [c.known for c in other.creatives]

"""A ranking as a bandit's prior: it keeps the order, the base rate and the weight that is stated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshelf.creatives.export import bandit_prior, prior_means
from moonshelf.creatives.ranking import Ranking
from moonshelf.errors import UserError


def ranking(strengths: dict[str, float], name: str = "c") -> Ranking:
    order = tuple(sorted(strengths, key=lambda key: -strengths[key]))
    even = {key: 1 / len(order) for key in order}
    return Ranking(
        campaign_id=name, order=order, strengths=strengths, p_best=even,
        intervals={key: (value, value) for key, value in strengths.items()},
    )  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=20), st.floats(0.001, 0.5), st.floats(0, 5))
def test_prior_means_keep_the_order_and_the_base_rate(
    strengths: list[float], base: float, slope: float
) -> None:
    values = np.array(strengths)
    means = prior_means(values, base, slope)
    assert ((means >= 0) & (means < 1)).all()
    assert means.mean() <= base * (1 + 1e-9)
    order = np.argsort(values)
    assert (np.diff(means[order]) >= -1e-15).all()
    assert np.allclose(prior_means(values, base, 0.0), base)


def test_a_prior_is_a_beta_of_the_stated_weight() -> None:
    prior = bandit_prior(ranking({"a": 1.0, "b": -1.0}), base_rate=0.02, slope=0.5, weight=400)
    a, b = prior["arms"]
    assert (a["id"], b["id"]) == ("a", "b")
    assert a["alpha"] + a["beta"] == pytest.approx(400)
    assert a["alpha"] / b["alpha"] == pytest.approx(np.e)
    assert (a["alpha"] + b["alpha"]) / 2 == pytest.approx(0.02 * 400)
    assert "not a forecast" in prior["note"]
    for wrong in (0.0, 1.0, float("nan")):
        with pytest.raises(UserError, match="base rate"):
            bandit_prior(ranking({"a": 0.0}), base_rate=wrong)

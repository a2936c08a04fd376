"""The fit of confidences on drawn claims whose truth follows from a known line."""

from __future__ import annotations

import numpy as np

from moonshelf import MoonModel
from research.starter.confidence import Claim, calibration_error, claims, fit, same_value, sureness
from research.synthetic.feeds import write_products
from research.synthetic.shop import iter_products


def drawn(slope: float, offset: float, n: int = 20_000) -> list[Claim]:
    rng = np.random.default_rng(0)
    odds = rng.normal(1, 2, n)
    right = rng.random(n) < 1 / (1 + np.exp(-(slope * odds + offset)))
    return [Claim("f", "both", "colour", float(o), bool(r)) for o, r in zip(odds, right, strict=True)]


def test_the_line_is_found_and_calibrates() -> None:
    found = drawn(0.5, -1.0)
    right = np.array([claim.right for claim in found])
    slope, offset = fit(found)
    assert abs(slope - 0.5) < 0.05 and abs(offset + 1.0) < 0.05
    assert calibration_error(sureness(found, (slope, offset)), right) < 0.02
    assert calibration_error(sureness(found, (1.0, 0.0)), right) > 0.1


def test_claims_that_are_all_right_leave_confidence_as_it_is() -> None:
    assert fit([Claim("f", "both", "colour", 1.0, True)] * 3) == (1.0, 0.0)


def test_a_category_is_right_by_its_last_step() -> None:
    assert same_value("category", "a > mugs", "b > c > mugs")
    assert not same_value("colour", "a > mugs", "b > mugs")


def test_pairs_are_held_against_the_record(tmp_path) -> None:  # type: ignore[no-untyped-def]
    feed = tmp_path / "shop.parquet"
    write_products(feed, iter_products(4, 5, 1, 96))
    found = list(claims(MoonModel.from_pretrained("starter"), feed, most=4))
    assert {claim.shown for claim in found} == {"picture", "title", "both"}
    assert {claim.feed for claim in found} == {"shop"}
    assert any(claim.right for claim in found)

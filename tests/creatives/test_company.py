"""The shipped selector gives a pair one probability, whatever is judged beside it."""

from __future__ import annotations

import random
from functools import lru_cache

import pytest
import torch

from moonshelf.creatives.backends.model import CreativeModel
from moonshelf.creatives.backends.names import make_backend
from moonshelf.creatives.schema import Judgement, Pair
from moonshelf.creatives.selector import judge
from research.synthetic.campaigns.simulator import pairs, simulate


@lru_cache(maxsize=1)
def starter() -> CreativeModel:
    torch.set_num_threads(
        1
    )  # as all tests with a model: threads that wait for each other slow a busy machine
    backend = make_backend("starter")
    assert isinstance(backend, CreativeModel)
    return backend


def judged(asked: list[Pair], size: int) -> list[Judgement]:
    """Judged in requests of `size`, nothing being remembered between them."""
    found = []
    for start in range(0, len(asked), size):
        assert starter().told is not None
        starter().told.clear()  # type: ignore[union-attr]
        found += judge(starter(), asked[start : start + size])
    return found


@pytest.mark.parametrize(
    ("number", "sizes"), [(3, (3,)), pytest.param(160, (2, 7, 24, 64, 160), marks=pytest.mark.slow)]
)
def test_a_probability_does_not_depend_on_company(number: int, sizes: tuple[int, ...]) -> None:
    asked = [p for c in simulate(number, seed=7, split="validation") for p in pairs(c)]
    rng = random.Random(0)
    alone = {one.pair_id: one for one in judged(asked, 1)}
    back = {one.pair_id: one for one in judged([pair.swapped() for pair in asked], 1)}
    for size in sizes:
        mixed = [rng.choice((pair, pair.swapped())) for pair in rng.sample(asked, len(asked))]
        for pair, one in zip(mixed, judged(mixed, size), strict=True):
            same, other = (alone, back) if pair.a.id < pair.b.id else (back, alone)
            assert one.p == pytest.approx(same[pair.id].p, abs=1e-5)
            assert one.p + other[pair.id].p == pytest.approx(1, abs=1e-5)
            assert (one.abstained, one.assessment) == (same[pair.id].abstained, same[pair.id].assessment)


def test_a_selector_is_known_again_by_its_fingerprint() -> None:
    """What was judged before a run was stopped is kept for the same weights and settings alone."""
    again, pixels = make_backend("starter"), make_backend("starter:pixels")
    assert starter().fingerprint == again.fingerprint != pixels.fingerprint

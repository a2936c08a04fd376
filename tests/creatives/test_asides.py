"""Words beside the point change no truth, pass the cleaning, and are not those of the injection suite."""

from __future__ import annotations

import random
import re
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshelf.creatives.asides import texts, with_asides
from moonshelf.creatives.attacks import attacks
from moonshelf.creatives.claims import all_phrases, read_query
from moonshelf.creatives.pair import Pair
from moonshelf.creatives.safety import clean
from moonshelf.creatives.simulator import assess, pairs, simulate

# Words that any English text has; what remains carries a meaning.
FUNCTION_WORDS = {"colour", "every", "never", "only", "this", "with", "your"}


@pytest.fixture(scope="module")
def drawn() -> list[Pair]:
    return [pair for campaign in simulate(12, seed=5, split="train") for pair in pairs(campaign)]


def _words(found: list[str]) -> set[str]:
    plain = [re.sub(r"\{\w+\}", " ", text).lower() for text in found]
    return {word for text in plain for word in re.findall(r"\w{4,}", text)}


def test_asides_share_no_word_with_the_injection_suite() -> None:
    assert not _words(texts()) & _words([attack.text for attack in attacks()]) - FUNCTION_WORDS


@pytest.mark.parametrize("split", ["validation", "test"])
def test_asides_share_no_word_with_reserved_wordings(split: Literal["validation", "test"]) -> None:
    known = _words([phrase for _, phrase in all_phrases("train")])
    assert not _words(texts()) & _words([phrase for _, phrase in all_phrases(split)]) - known


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_asides_change_no_truth_and_are_not_cut_away(drawn: list[Pair], seed: int) -> None:
    rng = random.Random(seed)
    pair = drawn[seed % len(drawn)]
    changed = with_asides(pair, rng, True)
    assert len(changed.title) > len(pair.title) and pair.title in changed.title
    assert [read_query(query) for query in changed.interest] == [read_query(query) for query in pair.interest]
    assert assess(changed) == assess(pair) == pair.assessment
    kept, flags = clean(changed.title)
    assert not flags and pair.title in kept
    assert with_asides(pair, random.Random(seed), True) == changed


def test_only_plain_queries_are_worded_anew(drawn: list[Pair]) -> None:
    rng = random.Random(0)
    seen = {"plain": 0, "anew": 0}
    for pair in drawn * 30:
        for before, after in zip(pair.interest, with_asides(pair, rng, True).interest, strict=True):
            if read_query(before).kind == "nothing":
                seen["plain" if before == after else "anew"] += 1
            else:
                assert before == after
    assert 0.35 < seen["anew"] / sum(seen.values()) < 0.65


def test_queries_of_real_shoppers_are_left_alone(drawn: list[Pair]) -> None:
    pair = drawn[0].model_copy(update={"interest": ("kids rucksack", "school bag")})
    assert all(with_asides(pair, random.Random(k), False).interest == pair.interest for k in range(20))


def test_a_pair_without_a_title_gets_one(drawn: list[Pair]) -> None:
    bare = drawn[0].model_copy(update={"title": ""})
    assert with_asides(bare, random.Random(1), True).title

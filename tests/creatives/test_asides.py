"""Words beside the point change no truth, pass the cleaning, and are not those of the injection suite."""

from __future__ import annotations

import random
import re
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshelf.creatives.known import asked_anew
from moonshelf.creatives.safety.text import clean
from moonshelf.creatives.schema import Pair
from moonshelf.creatives.training.distractors import WORDS, with_distractors
from research.studies.attacks import attacks
from research.synthetic.campaigns.claims import all_phrases, read_query
from research.synthetic.campaigns.simulator import assess, pairs, simulate

# Words that any English text has; what remains carries a meaning.
FUNCTION_WORDS = {"colour", "every", "never", "only", "this", "with", "your"}


@pytest.fixture(scope="module")
def drawn() -> list[Pair]:
    return [pair for campaign in simulate(12, seed=5, split="train") for pair in pairs(campaign)]


def texts() -> list[str]:
    meaning = [word for name, pool in WORDS["pools"].items() if name != "colour" for word in pool]
    return [*WORDS["remarks"], *WORDS["sentences"], *WORDS["queries"], *meaning]


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
    changed = with_distractors(pair, rng)
    assert len(changed.title) > len(pair.title) and pair.title in changed.title
    assert [read_query(query) for query in changed.interest] == [read_query(query) for query in pair.interest]
    assert assess(changed) == assess(pair) == pair.assessment
    kept, flags = clean(changed.title)
    assert not flags and pair.title in kept
    assert with_distractors(pair, random.Random(seed)) == changed


def test_only_queries_that_ask_for_nothing_are_worded_anew(drawn: list[Pair]) -> None:
    rng = random.Random(0)
    seen = {"plain": 0, "anew": 0}
    anew = np.random.default_rng(0)
    for pair in (asked_anew(pair, anew) for pair in drawn * 60):
        asks = {read_query(query).kind for query in pair.interest}
        for before, after in zip(pair.interest, with_distractors(pair, rng).interest, strict=True):
            assert read_query(after) == read_query(before)
            if asks == {"nothing"}:
                seen["plain" if before == after else "anew"] += 1
            else:
                assert before == after
    assert 0.35 < seen["anew"] / sum(seen.values()) < 0.65


def test_queries_of_real_shoppers_are_left_alone(drawn: list[Pair]) -> None:
    side = drawn[0].a.model_copy(update={"known": {}})
    pair = drawn[0].model_copy(update={"interest": ("kids rucksack", "school bag"), "a": side, "b": side})
    assert all(with_distractors(pair, random.Random(k)).interest == pair.interest for k in range(20))


def test_a_pair_without_a_title_gets_one(drawn: list[Pair]) -> None:
    bare = drawn[0].model_copy(update={"title": ""})
    assert with_distractors(bare, random.Random(1)).title

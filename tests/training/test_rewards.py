"""Rewards: what they pay for, and every cheap way to be paid that we could think of."""

from __future__ import annotations

import functools
import inspect
import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshelf.prompts import write_rationale
from moonshelf.training.rewards import FREE_EXTRAS, LIMIT, LONG, REWARDS, ranks, read

END = "</think>"
TITLE = "Nike Red Leather Running Shoe: Men's"
TRUTH = {"category": "shoes > sports > running", "colour": "red", "material": "leather", "gender": "men"}
HONEST = "category: shoes > sports > running; colour: red; material: leather; gender: men" + END

KEYS = ("colour", "material", "pattern", "gender", "use", "style", "neckline", "heel", "shape", "handle")
WORDS = (
    "red",
    "blue",
    "wool",
    "cotton",
    "round",
    "plain",
    "casual",
    "stiletto",
    "men",
    "tie-dye",
    "off white",
)
records = st.tuples(
    st.lists(
        st.sampled_from(("shoes", "sports", "tops", "bags & belts")), min_size=1, max_size=4, unique=True
    ),
    st.dictionaries(st.sampled_from(KEYS), st.sampled_from(WORDS), max_size=6),
).filter(lambda record: len(set(record[1].values())) == len(record[1]))
# Anything that a model may write, much of it nearly right.
scraps = st.lists(
    st.one_of(
        st.sampled_from(
            (*KEYS, *WORDS, "category", ":", ": ", ";", "; ", " > ", ",", " ", END, "<think>", "<emb>")
        ),
        st.text(max_size=4),
    ),
    max_size=24,
).map("".join)


def one(name: str, completion: str = HONEST, **columns: Any) -> float | None:
    """A reward of one completion, with columns that pay in full unless others are given."""
    full = {
        "tokens": 20, "rank": 1, "candidates": 100, "truth": TRUTH, "title": TITLE,
        **columns,
    }  # fmt: skip
    (reward,) = REWARDS[name](
        [completion], **{key: [value] for key, value in full.items()}, trainer_state=None
    )
    return reward


def agreement(
    completion: str, truth: dict[str, str | None] | None = None, title: str = TITLE
) -> float | None:
    return one("attributes", completion + END, truth=TRUTH if truth is None else truth, title=title)


# ---- all of them ----------------------------------------------------------------------------------------

NOTHING = {
    "empty": "",
    "only the end": END,
    "blank": "  \n" + END,
    "copied title": TITLE,
    "copied title, closed": TITLE + END,
    "copied title, upper case": TITLE.upper() + END,
    "copied title under a key": f"category: {TITLE.replace(':', '')}{END}",
    "truncated": HONEST.removesuffix(END),
    "text after the end": HONEST + " and more",
    "two ends": "colour: red</think>; material: leather</think>",
    "an opening inside": "<think>" + HONEST,
    "an embedding token inside": "colour: red <emb>" + END,
    "no pairs": "a red leather running shoe" + END,
    "an empty value": "colour: red; material:" + END,
    "an empty key": ": red" + END,
    "a key twice": "colour: red; colour: red" + END,
    "a key under two names": "colour: red; Color: red" + END,
    "a key twice, other value": "colour: red; base_colour: blue" + END,
    "a value under many keys": "colour: red; material: red; pattern: red" + END,
    "a list member under many keys": "colour: red; material: red, wool; pattern: red, dots" + END,
    "a loop": "colour: red red red red" + END,
    "a loop of a list": "colour: red, red, red, red" + END,
    "signs only": "colour: -; material: ?!" + END,
}


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("completion", NOTHING.values(), ids=NOTHING)
def test_no_reward_for_saying_nothing_repeating_or_breaking_the_format(name: str, completion: str) -> None:
    assert one(name, completion) == 0.0


@pytest.mark.parametrize("name", REWARDS)
def test_an_honest_completion_is_paid(name: str) -> None:
    assert one(name) == 1.0


@pytest.mark.parametrize("name", REWARDS)
@settings(max_examples=60, deadline=None)
@given(
    completion=scraps,
    tokens=st.integers(0, 500),
    place=st.integers(1, 500),
    more=st.integers(0, 500),
    title=st.one_of(st.just(""), scraps),
)
def test_every_reward_keeps_its_range_whatever_is_written(
    name: str, completion: str, tokens: int, place: int, more: int, title: str
) -> None:
    columns = {"tokens": tokens, "rank": place, "candidates": place + more}
    reward = one(name, completion, **columns, title=title)
    assert reward is not None and 0.0 <= reward <= 1.0
    if read(completion, title) is None:
        assert reward == 0.0


@settings(max_examples=60, deadline=None)
@given(records, st.randoms(use_true_random=False))
def test_what_a_record_says_earns_format_and_agreement_in_full_in_any_order_and_case(
    record: tuple[list[str], dict[str, str]], order: random.Random
) -> None:
    path, facts = record
    truth = {"category": " > ".join(path), **facts}
    said = write_rationale(tuple(path), facts)
    pairs = said.split("; ")
    order.shuffle(pairs)
    for text in (said, "; ".join(pairs), said.upper(), said.title(), said.replace(" > ", ">")):
        assert one("format", text + END) == 1.0, text
        assert agreement(text, truth) == 1.0, text


@pytest.mark.parametrize("name", REWARDS)
def test_columns_of_another_length_are_refused(name: str) -> None:
    columns = {
        "tokens": [9], "rank": [1], "candidates": [2], "truth": [TRUTH],
        "title": [TITLE],
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"zip\(\)"):
        REWARDS[name]([HONEST, HONEST], **columns)


def test_rewards_are_plain_functions_under_their_own_names() -> None:
    assert all(inspect.isfunction(reward) and reward.__name__ == name for name, reward in REWARDS.items())


# ---- format and length ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "completion",
    [
        "category: shoes",
        "colour: red",
        "colour: black; dial color: black",
        "name: golden-delicious; colour: green",
    ],
)
def test_short_and_honest_keeps_the_format(completion: str) -> None:
    assert one("format", completion + END) == 1.0


def test_format_needs_no_title() -> None:
    assert REWARDS["format"]([HONEST, ""]) == [1.0, 0.0]


def test_length_rises_stays_and_falls() -> None:
    paid = [one("length", tokens=tokens) for tokens in range(100)]
    assert (
        paid[0] == 0.0 and paid[4] == 0.5 and paid[8] == paid[LONG] == 1.0 and paid[LIMIT] == paid[99] == 0.0
    )
    assert all(
        before > after for before, after in zip(paid[LONG:LIMIT], paid[LONG + 1 : LIMIT + 1], strict=True)
    )


def test_length_bounds_can_be_set() -> None:
    reward = functools.partial(REWARDS["length"], short=2, long=4, limit=6)
    assert reward([HONEST] * 4, tokens=[1, 4, 5, 6]) == [0.5, 1.0, 0.5, 0.0]


# ---- retrieval ------------------------------------------------------------------------------------------


def test_retrieval_is_one_at_the_top_none_at_the_end_and_falls_between() -> None:
    paid = [one("retrieval", rank=place, candidates=64) for place in range(1, 65)]
    assert paid[0] == 1.0 and paid[63] == pytest.approx(0.0, abs=1e-12) and paid[7] == pytest.approx(0.5)
    assert paid == sorted(paid, reverse=True)  # type: ignore[type-var]


def test_the_only_candidate_says_nothing() -> None:
    assert one("retrieval", rank=1, candidates=1) == 0.0


@pytest.mark.parametrize("place", [0, -1, 0.5, 11, math.nan])
def test_a_rank_beyond_the_candidates_is_refused(place: float) -> None:
    with pytest.raises(ValueError, match="rank"):
        one("retrieval", rank=place, candidates=10)


def test_a_mean_rank_may_be_rounded() -> None:
    assert one("retrieval", rank=0.9999999, candidates=7) == 1.0
    assert one("retrieval", rank=7.000001, candidates=7) == 0.0


def mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[sign == "x" for sign in row] for row in rows])


def test_ranks_leave_out_what_is_ignored_and_take_the_best_positive() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.9, 0.8, 0.7, 0.1]])
    rank, candidates = ranks(scores, mask("..x.", "..xx"), mask("x...", "...x"))
    assert rank.tolist() == [2, 3] and candidates.tolist() == [3, 3]


def test_a_constant_score_and_nan_come_last() -> None:
    nan = torch.nan
    scores = torch.tensor([[0.5, 0.5, 0.5], [nan, 0.1, 0.2], [0.5, nan, 0.2], [nan, nan, nan]])
    rank, candidates = ranks(scores, mask("x..", "x..", "x..", "x.."), mask("...", "...", "...", "..."))
    assert rank.tolist() == [3, 3, 2, 3] and candidates.tolist() == [3] * 4


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 10_000))
def test_ranks_are_those_of_a_sorted_list(rows: int, columns: int, seed: int) -> None:
    dice = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (rows, columns), generator=dice).float()  # many ties
    positive, ignore = torch.rand(2, rows, columns, generator=dice) < 0.4
    positive[:, 0] |= ~positive.any(1)
    rank, candidates = ranks(scores, positive, ignore)
    for r in range(rows):
        best = max(scores[r, positive[r]].tolist())
        rivals = scores[r, ~positive[r] & ~ignore[r]].tolist()
        assert rank[r] == 1 + sum(rival >= best for rival in rivals)
        assert candidates[r] == 1 + len(rivals)


def test_a_row_without_a_match_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1"):
        ranks(torch.zeros(2, 2), mask("x.", ".."), mask("..", ".."))
    with pytest.raises(ValueError, match="shape"):
        ranks(torch.zeros(2, 3), mask("x.", "x."), mask("..", ".."))


# ---- agreement with the catalogue -----------------------------------------------------------------------


def test_synonyms_hyphens_and_names_of_keys_do_not_matter() -> None:
    truth = {"category": "tops > t-shirts", "colour": "grey", "gender": "unisex", "pattern": "striped"}
    for said in (
        "category: tops > t-shirts; colour: grey; gender: unisex; pattern: striped",
        "Category: Tops > T Shirts; Color: Gray; ideal_for: Men, Women; print: stripes",
        "category: tops > t-shirts; baseColour: GRAY; gender: men and women; pattern: stripe",
    ):
        assert agreement(said, truth) == 1.0, said


def test_half_the_truth_and_a_wrong_value() -> None:
    assert agreement("colour: red; material: leather") == pytest.approx(2 * 2 / (2 + 4))
    assert agreement("colour: red; material: wool") == pytest.approx(2 * 1 / (2 + 4))


def test_no_truth_says_nothing_about_a_completion() -> None:
    empty: list[Any] = [None, {}, {"colour": None, "category": ""}]
    assert REWARDS["attributes"]([HONEST] * 3, truth=empty, title=[TITLE] * 3) == [None] * 3
    assert REWARDS["attributes"]([HONEST], truth=[{**TRUTH, "heel": None}], title=[None]) == [1.0]


def test_a_category_earns_its_common_beginning() -> None:
    truth: dict[str, str | None] = {"category": "shoes > sports > running"}
    paid = [
        agreement(f"category: {path}", truth)
        for path in (
            "shoes > sports > running", "shoes > sports", "shoes > sports > tennis", "shoes", "shoes > heels",
            "running", "bags > sports > running", "shoes, bags, tops", "running > sports > shoes",
        )
    ]  # fmt: skip
    assert paid == pytest.approx([1, 4 / 5, 4 / 6, 2 / 4, 2 / 5, 0, 0, 0, 0])


def test_many_values_under_one_key_earn_nothing() -> None:
    truth: dict[str, str | None] = {"colour": "red"}
    for value in ("red, blue", "red, blue, green, black", "red/blue", "red and blue", "red blue", "red, red"):
        assert agreement(f"colour: {value}", truth) == 0.0, value


def test_a_list_is_a_set_and_its_part_is_part_of_the_truth() -> None:
    truth: dict[str, str | None] = {"material": "cotton, polyester"}
    values = ("polyester, cotton", "cotton and polyester", "cotton", "cotton, wool", "cotton, cotton")
    assert [agreement(f"material: {value}", truth) for value in values] == [1, 1, 0.5, 0, 0]


def test_one_value_under_two_keys_counts_only_if_the_catalogue_has_it_under_both() -> None:
    assert agreement("colour: red; material: red", {"colour": "red", "material": "wool"}) == 0.0
    assert agreement("colour: red; shade: red", {"colour": "red"}) == 0.0
    assert agreement("category: red; colour: red", {"colour": "red", "category": "shoes"}) == 0.0
    assert agreement("use: casual; style: casual", {"use": "casual", "style": "casual"}) == 1.0


def test_keys_that_the_catalogue_lacks_cost_nothing_up_to_a_number() -> None:
    extra = [f"; extra {chr(97 + i)}: thing {chr(97 + i)}" for i in range(20)]
    honest = HONEST.removesuffix(END)
    paid = [agreement(honest + "".join(extra[:n])) for n in range(len(extra))]
    assert paid[: FREE_EXTRAS + 1] == [1.0] * (FREE_EXTRAS + 1)
    assert all(a > b for a, b in zip(paid[FREE_EXTRAS:], paid[FREE_EXTRAS + 1 :], strict=False))  # type: ignore[operator]
    assert agreement("".join(extra).removeprefix("; ")) == 0.0


def test_a_shotgun_earns_less_than_one_right_answer() -> None:
    words = ("red", "leather", "round", "plain", "casual", "silk", "v-neck", "long", "flat", "short")
    listed = [f"{key}: {word}" for key, word in zip(KEYS, words, strict=True)]
    listed = ["colour: red", *(pair for pair in listed if "colour" not in pair)]
    assert agreement("; ".join(listed), TRUTH) < agreement("colour: red", TRUTH)  # type: ignore[operator]
    every = "; ".join(f"{key}: red, leather, men, wool, blue, round" for key in TRUTH)
    assert agreement(every, TRUTH) == 0.0


@settings(max_examples=60, deadline=None)
@given(records, records)
def test_a_wrong_pair_more_never_pays(
    record: tuple[list[str], dict[str, str]], other: tuple[list[str], dict[str, str]]
) -> None:
    truth: dict[str, str | None] = {"category": " > ".join(record[0]), **record[1]}
    wrong = {key: value for key, value in other[1].items() if record[1].get(key) != value}
    said = {key: value for key, value in record[1].items() if key not in wrong}
    before = agreement(write_rationale(tuple(record[0]), said), truth, "")
    after = agreement(write_rationale(tuple(record[0]), {**said, **wrong}), truth, "")
    assert after <= before  # type: ignore[operator]


def test_a_truth_that_is_the_title_is_no_evidence() -> None:
    truth: dict[str, str | None] = {"name": "granny smith", "category": "fruit > apple"}
    assert agreement("name: granny smith", truth, "Granny-Smith") == 0.0
    assert agreement("category: fruit > apple; name: granny smith", truth, "Granny-Smith") == 1.0
    assert agreement("category: fruit > apple", truth, "Granny-Smith") == 1.0
    assert agreement("name: granny smith", truth, "") == pytest.approx(2 / 3)  # only the picture was shown
    assert agreement("name: granny smith", {"name": "granny smith"}, "Granny Smith") is None


def test_a_title_cut_into_pairs_earns_nothing() -> None:
    for said in (
        "nike: red; leather: running; shoe: men",
        "category: nike red leather; colour: running shoe men",
    ):
        assert agreement(said) == 0.0

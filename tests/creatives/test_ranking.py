"""Ranking: the optimum, what may not matter (order, names of equal images), and judges that misbehave."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from moonshelf.creatives.evaluation.figures import (
    normalised_regret,
    score_ranking,
)
from moonshelf.creatives.ranking import (
    PRIOR,
    Comparison,
    Ranking,
    default_budget,
    fit,
    intransitivity,
    rank,
    rank_many,
)
from moonshelf.creatives.schema import Campaign, Creative, Judgement, Pair
from moonshelf.errors import UserError
from moonshelf.product import ImageRef

Logit = Callable[[str, str], float]


def campaign(names: Sequence[str], images: dict[str, bytes] | None = None) -> Campaign:
    drawn = images or {}
    creatives = [Creative(id=name, image=ImageRef(data=drawn.get(name, name.encode() * 3))) for name in names]
    return Campaign(
        id="c", product_id="p", title="Shoe", source="simulated: test", creatives=tuple(creatives)
    )


def said(pair: Pair, p: float, abstained: str = "") -> Judgement:
    return Judgement(pair_id=pair.id, p=p, p_first=p, p_second=p, abstained=abstained)


def judge_of(logit: Logit, asked: list[Pair] | None = None) -> Callable[[Sequence[Pair]], list[Judgement]]:
    def judge(pairs: Sequence[Pair]) -> list[Judgement]:
        if asked is not None:
            asked.extend(pairs)
        return [said(pair, 1 / (1 + np.exp(-logit(pair.a.id, pair.b.id)))) for pair in pairs]

    return judge


def by_utility(utility: dict[str, float], noise: float = 0.0, seed: int = 0) -> Logit:
    names = sorted(utility)
    drawn = np.triu(np.random.default_rng(seed).normal(0, noise, (len(names), len(names))), 1)
    drawn = drawn - drawn.T
    place = {name: at for at, name in enumerate(names)}
    return lambda a, b: utility[a] - utility[b] + float(drawn[place[a], place[b]])


def letters(n: int) -> list[str]:
    return [chr(97 + at) for at in range(n)]


def test_strengths_are_the_optimum_of_the_regularised_likelihood() -> None:
    rng = np.random.default_rng(3)
    n = 6
    entries = [
        (i, j, float(rng.uniform(0.02, 0.98)), float(rng.uniform(0.5, 1.5)))
        for i, j in itertools.combinations(range(n), 2)
    ]

    def loss(strengths: np.ndarray) -> float:
        apart = np.subtract.outer(strengths, strengths)
        total = sum(
            w * (p * np.logaddexp(0, -apart[i, j]) + (1 - p) * np.logaddexp(0, apart[i, j]))
            for i, j, p, w in entries
        )
        upper = apart[np.triu_indices(n, 1)]
        return float(total + PRIOR / (n - 1) / 2 * (np.logaddexp(0, upper) + np.logaddexp(0, -upper)).sum())

    found = fit(entries, n)
    reference = minimize(loss, np.zeros(n), method="BFGS", options={"gtol": 1e-9}).x
    assert np.allclose(found, reference - reference.mean(), atol=1e-5)
    assert abs(found.mean()) < 1e-12


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_order_of_the_candidates_changes_no_number(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 9))
    names = letters(n)
    utility = {name: data.draw(st.floats(-2, 2)) for name in names}
    images = {name: bytes([data.draw(st.integers(0, 6))]) for name in names}  # some are identical
    shuffled = data.draw(st.permutations(names))
    judge = judge_of(by_utility(utility, noise=1.0))
    assert rank(campaign(names, images), judge) == rank(campaign(shuffled, images), judge)


def test_a_consistent_judge_is_followed_exactly() -> None:
    utility = {"a": 0.0, "b": 1.5, "c": -0.5, "d": 3.0}
    ranking = rank(campaign(list("abcd")), judge_of(by_utility(utility)))
    assert ranking.order == ("d", "b", "a", "c")
    assert ranking.winner == "d"
    assert ranking.stopped == "all compared"
    assert ranking.intransitivity == 0.0
    assert ranking.triples == 4
    for name in "abc":
        assert ranking.strengths["d"] - ranking.strengths[name] == pytest.approx(
            utility["d"] - utility[name], abs=0.15
        )
    assert sum(ranking.p_best.values()) == pytest.approx(1)
    assert all(low <= ranking.strengths[k] + 0.05 and ranking.strengths[k] - 0.05 <= high
               for k, (low, high) in ranking.intervals.items())  # fmt: skip


def test_json_there_and_back() -> None:
    ranking = rank(campaign(list("abc")), judge_of(by_utility({"a": 0, "b": 1, "c": 2}, noise=1)))
    assert Ranking.model_validate_json(ranking.model_dump_json()) == ranking


def test_of_two_the_judged_probability_is_that_of_being_the_best() -> None:
    ranking = rank(
        campaign(["a", "b"]), lambda pairs: [said(x, 0.8 if x.a.id == "a" else 0.2) for x in pairs]
    )
    assert ranking.winner == "a"
    assert ranking.p_best["a"] == pytest.approx(0.8, abs=0.01)
    assert ranking.intransitivity is None


def test_one_creative_and_only_equal_images_need_no_judge() -> None:
    def judge(pairs: Sequence[Pair]) -> list[Judgement]:
        raise AssertionError("there is nothing to ask")

    alone = rank(campaign(["a"]), judge)
    assert (alone.order, alone.winner, alone.p_best) == (("a",), "a", {"a": 1.0})
    assert alone.stopped == "nothing to compare"
    same = rank(campaign(["a", "b"], {"a": b"x", "b": b"x"}), judge)
    assert same.p_best == {"a": 0.5, "b": 0.5}
    assert same.identical == (("a", "b"),)
    assert same.winner == "a"


def test_identical_images_share_a_strength_and_cost_one_competitor() -> None:
    images = {"a": b"x", "b": b"y", "c": b"x", "d": b"z"}
    asked: list[Pair] = []
    utility = {"a": 2.0, "b": 0.0, "c": 2.0, "d": 1.0}
    ranking = rank(campaign(list("abcd"), images), judge_of(by_utility(utility), asked))
    assert len(asked) == 3
    assert ranking.strengths["a"] == ranking.strengths["c"]
    assert ranking.intervals["a"] == ranking.intervals["c"]
    assert ranking.order == ("a", "c", "d", "b")
    assert ranking.winner == "a"
    without = rank(campaign(list("abd"), images), judge_of(by_utility(utility)))
    assert without.strengths["b"] == ranking.strengths["b"]


def test_a_judge_that_contradicts_itself_is_counted_not_crashed() -> None:
    beats = {("a", "b"), ("b", "c"), ("c", "a")}
    circle = judge_of(lambda a, b: 50.0 if (a, b) in beats else -50.0)
    ranking = rank(campaign(list("abc")), circle)
    assert ranking.intransitivity == 1.0
    assert ranking.winner is None
    assert list(ranking.strengths.values()) == pytest.approx([0, 0, 0])
    assert max(high - low for low, high in ranking.intervals.values()) > 1  # it contradicts itself
    always_a = rank(campaign(letters(12)), lambda pairs: [said(pair, 1.0) for pair in pairs])
    assert np.isfinite(list(always_a.strengths.values())).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 7), st.integers(0, 999))
def test_cyclic_triples_are_counted_like_by_hand(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = {pair: float(rng.choice([0.2, 0.5, 0.9])) for pair in itertools.combinations(letters(n), 2)}
    comparisons = [
        Comparison(a=a, b=b, judgement=Judgement(pair_id="x", p=v, p_first=v, p_second=v))
        for (a, b), v in p.items()
    ]
    cyclic = total = 0
    for a, b, c in itertools.combinations(letters(n), 3):
        signs = [p[a, b] - 0.5, p[b, c] - 0.5, 0.5 - p[a, c]]
        if all(signs):
            total += 1
            cyclic += len({sign > 0 for sign in signs}) == 1
    share, triples = intransitivity(comparisons)
    assert triples == total
    assert share == (cyclic / total if total else None)


def test_abstentions_are_ties_and_are_kept() -> None:
    def judge(pairs: Sequence[Pair]) -> list[Judgement]:
        return [
            said(x, 0.9, "cannot be read")
            if "c" in (x.a.id, x.b.id)
            else said(x, 0.9 if x.a.id == "a" else 0.1)
            for x in pairs
        ]

    ranking = rank(campaign(list("abc")), judge)
    assert ranking.abstained == 2
    assert ranking.unjudged == ("c",)
    assert len(ranking.comparisons) == 3
    assert ranking.order == ("a", "c", "b")
    nothing = rank(campaign(list("abcd")), lambda pairs: [said(x, 0.7, "too close") for x in pairs])
    assert nothing.winner is None
    assert set(nothing.strengths.values()) == {0.0}


def test_orders_that_disagree_widen_the_interval() -> None:
    def width(apart: float) -> float:
        ranking = rank(
            campaign(["a", "b"]),
            lambda pairs: [
                Judgement(pair_id=x.id, p=0.7, p_first=0.7 + apart, p_second=0.7 - apart) for x in pairs
            ],
        )
        low, high = ranking.intervals["a"]
        return high - low

    assert width(0.0) == pytest.approx(0, abs=1e-4)
    assert width(0.2) > width(0.05) > 0.01


def test_sixteen_need_half_of_the_comparisons_for_the_same_winner() -> None:
    """Simulated judge, over 200 draws the winner of all pairs was found in 0.97."""
    same, drawn = 0, 12
    for seed in range(drawn):
        rng = np.random.default_rng(seed)
        names = [f"{at:02d}" for at in range(16)]
        logit = by_utility(dict(zip(names, rng.normal(0, 1.5, 16), strict=True)), noise=1.0, seed=seed)
        few = rank(campaign(names), judge_of(logit))
        every = rank(campaign(names), judge_of(logit), budget=120)
        assert len(few.comparisons) <= default_budget(16) == 64
        assert len(every.comparisons) == 120 or every.stopped == "clear"
        same += few.order[0] == every.order[0]
    assert same >= 0.9 * drawn


def test_a_clear_winner_ends_the_asking_early() -> None:
    names = [f"{at:02d}" for at in range(16)]
    ranking = rank(campaign(names), judge_of(lambda a, b: 7.0 * ((a == "07") - (b == "07"))))
    assert (ranking.winner, ranking.stopped) == ("07", "clear")
    assert len(ranking.comparisons) < 48
    assert ranking.clear


def test_no_pair_is_asked_twice_and_the_budget_is_kept() -> None:
    asked: list[Pair] = []
    ranking = rank(campaign(letters(9)), judge_of(lambda a, b: 0.0, asked), budget=20)
    assert len(asked) == len({frozenset((x.a.id, x.b.id)) for x in asked}) == 20
    assert ranking.stopped == "budget"
    assert all(pair.title == "Shoe" and pair.source == "simulated: test" for pair in asked)


def test_what_cannot_be_ranked_is_said() -> None:
    judge = judge_of(lambda a, b: 0.0)
    with pytest.raises(UserError, match="no creatives"):
        rank(campaign([]), judge)
    with pytest.raises(UserError, match="cannot connect 4"):
        rank(campaign(list("abcd")), judge, budget=2)
    with pytest.raises(ValueError, match="one judgement a pair"):
        rank(campaign(list("abc")), lambda pairs: judge(pairs)[:-1])


def test_scores_of_a_ranking() -> None:
    ranking = rank(campaign(list("abc")), judge_of(by_utility({"a": 2, "b": 1, "c": 0})))
    right = score_ranking(ranking.strengths, {"a": 0.03, "b": 0.02, "c": 0.01})
    assert (right.kendall, right.spearman, right.top1, right.regret) == (
        pytest.approx(1),
        pytest.approx(1),
        1,
        0,
    )
    wrong = score_ranking(ranking.strengths, {"a": 0.01, "b": 0.03, "c": 0.02})
    assert wrong.kendall == pytest.approx(-1 / 3)
    assert wrong.regret == pytest.approx(2 / 3)
    assert wrong.top1 == 0
    assert normalised_regret([right, wrong]) == pytest.approx(0.02 / 0.02)
    tied = score_ranking({"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 0.03, "b": 0.02, "c": 0.01})
    assert (tied.kendall, tied.top1, tied.picked_rate) == (None, pytest.approx(1 / 3), pytest.approx(0.02))
    assert normalised_regret([tied]) == pytest.approx(1)
    with pytest.raises(ValueError, match="no rate of c"):
        score_ranking(ranking.strengths, {"a": 0.1, "b": 0.1})


def test_many_campaigns_are_ranked_as_each_alone_in_fewer_calls() -> None:
    """Small ones, one that needs several rounds, one of a single image: each as if it were alone."""
    sizes = (4, 12, 1, 3)
    campaigns = [
        campaign(letters(n)).model_copy(update={"id": f"c{number}"}) for number, n in enumerate(sizes)
    ]
    logit = by_utility({name: at / 3 for at, name in enumerate(letters(12))}, noise=1.5, seed=4)
    calls: list[int] = []

    def judge(pairs: Sequence[Pair]) -> list[Judgement]:
        calls.append(len(pairs))
        return judge_of(logit)(pairs)

    alone = [rank(one, judge, seed=2) for one in campaigns]
    separate, calls[:] = len(calls), []
    assert rank_many(campaigns, judge, seed=2) == alone
    assert len(calls) < separate
    assert calls[0] >= 6 + 3 + 12, "the first round asks for all campaigns at once"
    assert rank_many([], judge) == []
    with pytest.raises(UserError, match="cannot connect 12"):
        rank_many(campaigns, judge, budget=5)

"""The replay of A/B tests: what a good prior saves, and how a bad one is left behind."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from moonshelf.errors import UserError
from research.studies.replay import (
    COLD,
    Belief,
    Outcome,
    Policy,
    Trial,
    difference,
    element_trials,
    flat,
    noise_for,
    one_hot,
    pair_accuracy,
    replay,
    simulated_belief,
)
from research.studies.replay_study import show, study
from research.synthetic.elements import Elements, read_elements

pytestmark = pytest.mark.research

AES = Path(__file__).parents[3] / "shared" / "data" / "alimama_aes"
EASY = np.array([0.01, 0.012, 0.011, 0.05, 0.009, 0.01, 0.013, 0.008])


def trials(beliefs: dict[str, Belief], rates: np.ndarray = EASY, n: int = 20) -> list[Trial]:
    return [Trial(tuple(map(str, range(len(rates)))), rates, beliefs=beliefs)] * n


def end(outcomes: list[Outcome]) -> dict[str, float]:
    return {one.policy.name: float(one.normalised[:, -1].mean()) for one in outcomes}


def test_every_bandit_beats_uniform_on_an_easy_table() -> None:
    outcomes = replay(trials({}), COLD, rounds=10, impressions=5000)
    regret = end(outcomes)
    assert regret["uniform"] == pytest.approx(1, abs=0.01)
    for name in ("epsilon-greedy", "thompson", "linucb"):
        assert regret[name] < 0.4
        one = next(x for x in outcomes if x.policy.name == name)
        assert (np.diff(one.regret, axis=1) >= 0).all()
        assert one.ctr[:, -1].mean() > EASY.mean()


@pytest.mark.parametrize("kind", ["thompson", "linucb"])
def test_a_right_prior_beats_a_flat_one_and_a_misleading_one_is_overruled(kind: str) -> None:
    wrong = EASY[::-1].copy()
    beliefs = {"flat": flat(EASY), "right": Belief(EASY, 1000), "wrong": Belief(wrong, 1000)}
    policies = [Policy(kind, name) for name in beliefs]  # type: ignore[arg-type]
    found = replay(trials(beliefs), policies, rounds=30, impressions=5000)
    regret = end(found)
    assert regret[f"{kind} + right"] < regret[f"{kind} + flat"] < 0.5
    misled = found[2]
    early, late = misled.regret[:, 0].mean(), (misled.regret[:, -1] - misled.regret[:, -2]).mean()
    assert late < 0.1 * early
    assert difference(found[1], found[0]).high < 0


def test_replays_repeat_and_do_not_depend_on_company() -> None:
    beliefs = {"flat": flat(EASY)}
    alone = replay(trials(beliefs), [Policy("thompson", "flat")], rounds=3, impressions=100, seed=4)
    both = replay(trials(beliefs), [*COLD, Policy("thompson", "flat")], rounds=3, impressions=100, seed=4)
    assert (alone[0].regret == both[-1].regret).all()
    json.dumps(alone[0].summary(), allow_nan=False)


def test_elements_help_linucb_where_they_decide() -> None:
    rng = np.random.default_rng(0)
    choices = np.array([[a, b, c] for a in range(4) for b in range(4) for c in range(4)])
    rates = 0.02 * np.exp(rng.normal(0, 0.5, 4)[choices[:, 0]] + rng.normal(0, 0.4, 4)[choices[:, 1]])
    ids = tuple(map(str, range(64)))
    few = [Trial(ids, rates, one_hot(choices))] * 10
    arms = [Trial(ids, rates)] * 10
    policy = [Policy("linucb")]
    assert end(replay(few, policy, rounds=5))["linucb"] < end(replay(arms, policy, rounds=5))["linucb"]
    elements = Elements(("a", "b", "c"), ids, choices, rates)
    held = element_trials(elements, 10)
    assert np.mean([pair_accuracy(t.beliefs["elements"].means, t.rates) for t in held]) > 0.95
    warm = end(replay(held, [Policy("thompson", "flat"), Policy("thompson", "elements")], rounds=5))
    assert warm["thompson + elements"] < 0.5 * warm["thompson + flat"]


@settings(max_examples=10, deadline=None)
@given(st.sampled_from((0.55, 0.6, 0.7, 0.8, 0.95)), st.integers(0, 99))
def test_simulated_selectors_have_the_accuracy_that_is_asked(accuracy: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.01, 0.03, 60)
    found = [pair_accuracy(simulated_belief(rates, accuracy, rng).means, rates) for _ in range(40)]
    assert np.mean(found) == pytest.approx(accuracy, abs=0.03)
    assert pair_accuracy(simulated_belief(rates, 1.0, rng).means, rates) == 1.0


def test_a_selector_that_knows_nothing_and_knows_it_begins_flat() -> None:
    belief = simulated_belief(EASY, 0.5, np.random.default_rng(0))
    assert np.allclose(belief.means, flat(EASY).means)
    assert belief.weight == pytest.approx(flat(EASY).weight)
    overconfident = simulated_belief(EASY, 0.5, np.random.default_rng(0), believed=0.8)
    assert np.ptp(overconfident.means) > 0
    with pytest.raises(ValueError):
        noise_for(10, 0.4)


def test_what_cannot_be_replayed_is_said() -> None:
    with pytest.raises(UserError, match="at least one trial"):
        replay([], COLD)
    with pytest.raises(UserError, match="rate between"):
        replay([Trial(("a", "b"), np.array([0.1, 1.5]))], COLD)
    with pytest.raises(UserError, match="no belief"):
        replay(trials({}), [Policy("thompson", "flat")])


@pytest.mark.skipif(not AES.is_dir(), reason="the alimama_aes data set is not beside this checkout")
def test_the_composed_creatives_of_alimama() -> None:
    elements = read_elements(AES)
    held = element_trials(elements, 20)
    assert all(len(trial.rates) == 100 for trial in held)
    accuracy = np.mean([pair_accuracy(trial.beliefs["elements"].means, trial.rates) for trial in held])
    assert 0.45 < accuracy < 0.55  # its elements tell nothing, measured on creatives that were held out
    everything = [
        Trial(
            elements.ids, elements.rates, one_hot(elements.choices),
            {
                "flat": flat(elements.rates),
                "0.80": simulated_belief(elements.rates, 0.8, np.random.default_rng(at)),
            },
        )
        for at in range(20)
    ]  # fmt: skip
    flat_start, warm = replay(everything, [Policy("thompson", "flat"), Policy("thompson", "0.80")])
    assert difference(warm, flat_start).high < 0


def test_the_study_has_every_figure_with_an_interval() -> None:
    rng = np.random.default_rng(0)
    choices = np.array([[a, b] for a in range(4) for b in range(5)])
    elements = Elements(("a", "b"), tuple(map(str, range(20))), choices, rng.uniform(0.01, 0.03, 20))
    record = study(elements, accuracies=(0.5, 0.9), rounds=3, impressions=2000, replicates=6)
    json.dumps(record, allow_nan=False)
    assert [half["creatives"] for half in (record["elements"], record["accuracy"])] == [10, 20]
    found = {one["policy"]: one for one in record["accuracy"]["policies"]}
    assert len(found["thompson"]["curve"]) == 3
    assert found["thompson + selector 0.50"]["against_flat"]["value"] == pytest.approx(0, abs=1e-9)
    assert found["thompson + selector 0.90"]["against_flat"]["high"] < 0
    assert found["thompson"]["normalised_regret"]["low"] < found["thompson"]["normalised_regret"]["high"]
    console = Console(file=io.StringIO(), width=140)
    show(record, console)
    said = console.file.getvalue()
    assert all(name in said for name in found) and "simulated" in said
    for wrong in ({"replicates": 1}, {"accuracies": (0.4,)}):
        with pytest.raises(UserError):
            study(elements, **wrong)

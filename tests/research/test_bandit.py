"""Bandit priors and the replay: what a good prior saves, and how a bad one is left behind."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from moonshelf.creatives.bandit import (
    MAX_SLOPE,
    UNCALIBRATED,
    BanditPrior,
    PriorScale,
    bandit_prior,
    calibrate_prior,
    prior_means,
)
from moonshelf.creatives.pair import Campaign, Creative
from moonshelf.creatives.published import Elements, read_elements
from moonshelf.creatives.ranking import Ranking
from moonshelf.errors import UserError
from moonshelf.product import ImageRef
from research.studies.replay import (
    COLD,
    Belief,
    Outcome,
    Policy,
    Trial,
    campaign_trials,
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

pytestmark = pytest.mark.research

AES = Path(__file__).parents[3] / "shared" / "data" / "alimama_aes"
EASY = np.array([0.01, 0.012, 0.011, 0.05, 0.009, 0.01, 0.013, 0.008])


def ranking(strengths: dict[str, float], name: str = "c") -> Ranking:
    order = tuple(sorted(strengths, key=lambda key: -strengths[key]))
    even = {key: 1 / len(order) for key in order}
    return Ranking(
        campaign_id=name, order=order, strengths=strengths, p_best=even,
        intervals={key: (value, value) for key, value in strengths.items()},
    )  # fmt: skip


def trials(beliefs: dict[str, Belief], rates: np.ndarray = EASY, n: int = 20) -> list[Trial]:
    return [Trial(tuple(map(str, range(len(rates)))), rates, beliefs=beliefs)] * n


def end(outcomes: list[Outcome]) -> dict[str, float]:
    return {one.policy.name: float(one.normalised[:, -1].mean()) for one in outcomes}


# ------------------------------------------------------------------------------------------- the prior


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=20), st.floats(0.001, 0.5), st.floats(0, MAX_SLOPE))
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
    prior = bandit_prior(
        ranking({"a": 1.0, "b": -1.0}), base_rate=0.02, scale=PriorScale(slope=0.5, weight=400)
    )
    a, b = prior.arms
    assert (a.id, b.id) == ("a", "b")
    assert a.alpha + a.beta == pytest.approx(400)
    assert a.mean / b.mean == pytest.approx(np.e)
    assert (a.mean + b.mean) / 2 == pytest.approx(0.02)
    assert BanditPrior.model_validate_json(prior.model_dump_json()) == prior
    assert "not a forecast" in json.loads(prior.model_dump_json())["note"]
    for wrong in (0.0, 1.0, float("nan")):
        with pytest.raises(UserError, match="base rate"):
            bandit_prior(ranking({"a": 0.0}), base_rate=wrong)


def drawn(slope: float, weight: float, n: int = 150, seed: int = 0) -> tuple[list[Ranking], list[Campaign]]:
    rng = np.random.default_rng(seed)
    rankings, campaigns = [], []
    for at in range(n):
        strengths = rng.normal(0, 1, 5)
        mean = prior_means(strengths, 0.03, slope)
        rates = rng.beta(mean * weight, (1 - mean) * weight)
        clicks = rng.binomial(3000, rates)
        rankings.append(ranking({str(k): float(v) for k, v in enumerate(strengths)}, f"c{at}"))
        campaigns.append(
            Campaign(
                id=f"c{at}", product_id="p",
                creatives=tuple(
                    Creative(id=str(k), image=ImageRef(data=b"x"), impressions=3000, clicks=int(v))
                    for k, v in enumerate(clicks)
                ),
            )
        )  # fmt: skip
    return rankings, campaigns


def test_calibration_finds_what_the_clicks_were_drawn_from() -> None:
    scale = calibrate_prior(*drawn(0.3, 1000), name="simulated: beta-binomial")
    assert scale.slope == pytest.approx(0.3, abs=0.05)
    assert 600 < scale.weight < 1800
    assert scale.calibrated_on == "simulated: beta-binomial: 150 campaigns"
    assert calibrate_prior(*drawn(0.0, 1000, seed=1)).slope < 0.05


def test_calibration_needs_clicks() -> None:
    rankings, campaigns = drawn(0.3, 1000, n=1)
    bare = campaigns[0].model_copy(
        update={"creatives": tuple(Creative(id=c.id, image=c.image) for c in campaigns[0].creatives)}
    )
    with pytest.raises(UserError, match="no ranked campaign has clicks"):
        calibrate_prior(rankings, [bare])
    with pytest.raises(UserError, match="no campaign c0"):
        calibrate_prior(rankings, [])
    assert UNCALIBRATED.calibrated_on == ""


# ------------------------------------------------------------------------------------------ the replay


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


def test_campaigns_are_replayed_with_the_prior_of_their_ranking() -> None:
    rates = (0.01, 0.03, 0.02)
    campaign = Campaign(
        id="c", product_id="p", true_rates=rates,
        creatives=tuple(Creative(id=name, image=ImageRef(data=b"x")) for name in "abc"),
    )  # fmt: skip
    prior = bandit_prior(
        ranking({"a": -1.0, "b": 1.0, "c": 0.0}), base_rate=0.02, scale=PriorScale(slope=0.5, weight=300)
    )
    (trial,) = campaign_trials([campaign], [prior])
    assert trial.rates.tolist() == list(rates)
    assert trial.beliefs["selector"].means.argmax() == 1
    assert trial.beliefs["flat"].weight == trial.beliefs["selector"].weight == 300
    policies = [Policy("thompson", "flat"), Policy("thompson", "selector")]
    warm = end(replay([trial] * 30, policies, rounds=5, impressions=300))
    assert warm["thompson + selector"] < warm["thompson + flat"]
    with pytest.raises(UserError, match="lacks a prior"):
        campaign_trials([campaign], [])


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

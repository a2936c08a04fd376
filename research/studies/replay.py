"""A/B tests replayed on rates that are taken as known: what a prior saves against bandits that begin cold.

A trial is a table of creatives with their rates; each round gives out impressions, clicks are drawn from the
rates, and a policy sees them before the next round. Regret is the clicks that the best creative would have
brought more, in expectation; normalised by the uniform policy's it is VAM-HBM's (1 is uniform, 0 perfect).
Policies work in batches, as logs arrive: Thompson sampling gives each of `SLICES` posterior draws its share
of a round; LinUCB (over one-hot elements) gives out as many shares, narrowing its bounds after each.

A policy can begin with a prior. The *flat* prior knows the base rate and how much creatives differ, but not
which is better; what a selector's prior saves is measured against it, since beginning at Beta(1, 1) is a
weakness of its own. LinUCB takes a prior as one more feature, with its weight spread over all arms.

alimama_aes has 200 composed creatives with their online rates and no pictures, so no selector can look at
them. There the prior comes from an additive model of the elements, fitted to half of the creatives and
replayed on the other, and from simulated selectors of a given pairwise accuracy.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from scipy import optimize, stats

from moonshelf.creatives.labels import MAX_WEIGHT, MIN_WEIGHT
from moonshelf.creatives.ranking import Floats
from moonshelf.errors import UserError
from research.synthetic.elements import Elements

ROUNDS, IMPRESSIONS, REPLICATES = 15, 20_000, 20
SLICES = 100  # shares of a round that a policy gives out one after another
EPSILON = 0.1
BONUS = 1.0  # LinUCB's bound, in standard deviations of its estimate
RIDGE = 1.0  # impressions that LinUCB's cold prior is worth, a parameter
Kind = Literal["uniform", "epsilon-greedy", "thompson", "linucb"]


@dataclass(frozen=True)
class Belief:
    """Mean rate that is expected of each arm (n,), and how many impressions that is worth."""

    means: Floats
    weight: float


@dataclass(frozen=True)
class Trial:
    """One replayed test: arms, their rates (n,), one-hot elements (n, d) if known, beliefs by name."""

    ids: tuple[str, ...]
    rates: Floats
    elements: Floats | None = None
    beliefs: Mapping[str, Belief] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """How a round is given out, and the belief it begins with; none is cold."""

    kind: Kind
    belief: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind} + {self.belief}" if self.belief else self.kind


COLD = tuple(Policy(kind) for kind in ("uniform", "epsilon-greedy", "thompson", "linucb"))


@dataclass(frozen=True)
class Figure:
    """A mean over trials with its 95 % interval (Student's t)."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Floats) -> Figure:
        mean, n = float(values.mean()), len(values)
        if n < 2:
            return cls(mean, math.nan, math.nan)
        half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n))
        return cls(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Outcome:
    """One policy over all trials. Arrays are (trials, rounds) and cumulative."""

    policy: Policy
    regret: Floats  # expected clicks lost
    normalised: Floats  # the same, as a share of what uniform allocation loses by then
    ctr: Floats  # expected rate of all impressions so far

    def summary(self) -> dict[str, Any]:
        """Figures after the last round, and the band of the normalised regret over rounds."""
        return {
            "policy": self.policy.name,
            "normalised_regret": vars(Figure.of(self.normalised[:, -1])),
            "regret_clicks": vars(Figure.of(self.regret[:, -1])),
            "ctr": vars(Figure.of(self.ctr[:, -1])),
            "curve": [vars(Figure.of(column)) for column in self.normalised.T],
        }


def replay(
    trials: Sequence[Trial],
    policies: Sequence[Policy],
    *,
    rounds: int = ROUNDS,
    impressions: int = IMPRESSIONS,
    seed: int = 0,
) -> list[Outcome]:
    """Each policy on each trial, once; trials of one size run together. `impressions` are of one round.

    Raises UserError for rates outside 0 … 1, fewer than two arms, or a belief that a trial lacks.
    """
    if not trials or rounds < 1 or impressions < 1:
        raise UserError("a replay needs at least one trial, one round and one impression")
    for trial in trials:
        if len(trial.rates) < 2 or not ((trial.rates >= 0) & (trial.rates <= 1)).all():
            raise UserError("a replay needs two creatives or more, each with a rate between 0 and 1")
    blocks: dict[tuple[int, int], list[int]] = {}
    for at, trial in enumerate(trials):
        width = 0 if trial.elements is None else trial.elements.shape[1]
        blocks.setdefault((len(trial.rates), width), []).append(at)
    outcomes = []
    for policy in policies:
        regret, ctr = np.empty((len(trials), rounds)), np.empty((len(trials), rounds))
        normalised = np.empty((len(trials), rounds))
        for size, members in sorted(blocks.items()):
            rng = np.random.default_rng([seed, *size, zlib.crc32(policy.kind.encode())])
            found = _run(policy, [trials[at] for at in members], rounds, impressions, rng)
            regret[members], normalised[members], ctr[members] = found
        outcomes.append(Outcome(policy, regret, normalised, ctr))
    return outcomes


def difference(one: Outcome, other: Outcome) -> Figure:
    """Normalised regret of one policy less another's after the last round, trial by trial."""
    return Figure.of(one.normalised[:, -1] - other.normalised[:, -1])


def _run(
    policy: Policy, trials: Sequence[Trial], rounds: int, impressions: int, rng: np.random.Generator
) -> tuple[Floats, Floats, Floats]:
    rates = np.stack([trial.rates for trial in trials])
    lost = rates.max(1, keepdims=True) - rates
    shown, clicked = np.zeros_like(rates), np.zeros_like(rates)
    chooser = _CHOOSERS[policy.kind](policy, trials)
    regret, earned = np.zeros((len(trials), rounds)), np.zeros((len(trials), rounds))
    for at in range(rounds):
        given = chooser.allocate(shown, clicked, impressions, rng)
        clicked += rng.binomial(given.astype(np.int64), rates)
        shown += given
        regret[:, at], earned[:, at] = (given * lost).sum(1), (given * rates).sum(1)
    total = impressions * np.arange(1, rounds + 1)
    regret, ctr = regret.cumsum(1), earned.cumsum(1) / total
    uniform = lost.mean(1, keepdims=True) * total
    return regret, np.divide(regret, uniform, out=np.zeros_like(regret), where=uniform > 0), ctr


def _shares(impressions: int) -> Floats:
    """(SLICES or fewer,) whole impressions that add up."""
    slices = min(SLICES, impressions)
    return np.diff(np.linspace(0, impressions, slices + 1).astype(np.int64)).astype(np.float64)


def _belief(policy: Policy, trials: Sequence[Trial]) -> tuple[Floats, Floats] | None:
    """Means (trials, n) and weights (trials, 1) of the policy's belief."""
    if not policy.belief:
        return None
    try:
        beliefs = [trial.beliefs[policy.belief] for trial in trials]
    except KeyError:
        raise UserError(f"a trial has no belief called {policy.belief!r}") from None
    return np.stack([one.means for one in beliefs]), np.array([[one.weight] for one in beliefs])


class _Counting:
    """Policies that know an arm by its clicks alone; cold they begin at Beta(1, 1)."""

    def __init__(self, policy: Policy, trials: Sequence[Trial]) -> None:
        belief = _belief(policy, trials)
        means, weights = belief if belief is not None else (np.full((1, 1), 0.5), np.full((1, 1), 2.0))
        self.alpha, self.beta = means * weights, (1 - means) * weights

    def allocate(self, shown: Floats, clicked: Floats, impressions: int, rng: np.random.Generator) -> Floats:
        raise NotImplementedError


class _Uniform(_Counting):
    def allocate(self, shown: Floats, clicked: Floats, impressions: int, rng: np.random.Generator) -> Floats:
        n = shown.shape[1]
        return rng.multinomial(impressions, np.full(n, 1 / n), size=len(shown)).astype(np.float64)


class _Greedy(_Counting):
    def allocate(self, shown: Floats, clicked: Floats, impressions: int, rng: np.random.Generator) -> Floats:
        trials, n = shown.shape
        explored = rng.binomial(impressions, EPSILON, size=trials)
        given = rng.multinomial(explored, np.full(n, 1 / n)).astype(np.float64)
        value = (self.alpha + clicked) / (self.alpha + self.beta + shown)
        value = value + rng.random(value.shape) * 1e-12  # the first of equal arms is no better than the rest
        given[np.arange(trials), value.argmax(1)] += impressions - explored
        return given


class _Thompson(_Counting):
    def allocate(self, shown: Floats, clicked: Floats, impressions: int, rng: np.random.Generator) -> Floats:
        trials, n = shown.shape
        alpha = np.broadcast_to(self.alpha, shown.shape) + clicked
        beta = np.broadcast_to(self.beta, shown.shape) + shown - clicked
        given = np.zeros((trials, n))
        for share in _shares(impressions):
            given[np.arange(trials), rng.beta(alpha, beta).argmax(1)] += share
        return given


class _LinUCB:
    """Ridge regression of the rate's distance from the base rate on an intercept and one-hot elements."""

    def __init__(self, policy: Policy, trials: Sequence[Trial]) -> None:
        belief = _belief(policy, trials)
        rows = [np.eye(len(t.rates)) if t.elements is None else t.elements for t in trials]
        x = np.concatenate([np.ones((len(trials), rows[0].shape[0], 1)), np.stack(rows)], axis=2)
        self.base = np.array([[trial.rates.mean()] for trial in trials])
        pseudo = np.zeros((len(trials), x.shape[1]))
        apart = np.zeros_like(pseudo)
        if belief is not None:
            means, weights = belief
            apart = means - self.base
            spread = apart.std(1, keepdims=True)
            scaled = np.divide(apart, spread, out=np.zeros_like(apart), where=spread > 1e-12)
            x = np.concatenate([x, scaled[:, :, None]], axis=2)
            pseudo += weights / x.shape[1]
        self.x = x
        self.inverse = np.linalg.inv(RIDGE * np.eye(x.shape[2]) + np.einsum("snd,sn,sne->sde", x, pseudo, x))
        self.target = np.einsum("snd,sn->sd", x, pseudo * apart)
        self.seen = np.zeros_like(pseudo)

    def allocate(self, shown: Floats, clicked: Floats, impressions: int, rng: np.random.Generator) -> Floats:
        rows = np.arange(len(shown))
        # what came in since the last round: its impressions are in `inverse`, its clicks are not
        target = self.target + np.einsum("snd,sn->sd", self.x, clicked - self.base * shown)
        value = np.einsum("snd,sde,se->sn", self.x, self.inverse, target)
        variance = np.einsum("snd,sde,sne->sn", self.x, self.inverse, self.x)
        noise = np.sqrt(self.base * (1 - self.base))
        given = np.zeros_like(shown)
        for share in _shares(impressions):
            bound = value + BONUS * noise * np.sqrt(np.maximum(variance, 0))
            arm = (bound + rng.random(bound.shape) * 1e-12).argmax(1)
            given[rows, arm] += share
            chosen = np.einsum("sde,se->sd", self.inverse, self.x[rows, arm])
            gain = share / (1 + share * variance[rows, arm])
            self.inverse -= gain[:, None, None] * chosen[:, :, None] * chosen[:, None, :]
            variance -= gain[:, None] * np.einsum("snd,sd->sn", self.x, chosen) ** 2
        return given


_CHOOSERS: dict[str, Any] = {
    "uniform": _Uniform, "epsilon-greedy": _Greedy, "thompson": _Thompson, "linucb": _LinUCB,
}  # fmt: skip


# -------------------------------------------------------------------------------------- trials, beliefs


def spread_weight(means: Floats, rates: Floats) -> float:
    """Pseudo-impressions of a belief with this error: the Beta whose variance is its mean square error."""
    error = float(((rates - means) ** 2).mean())
    base = float(rates.mean())
    weight = base * (1 - base) / error - 1 if error > 0 else MAX_WEIGHT
    return min(max(weight, MIN_WEIGHT), MAX_WEIGHT)


def flat(rates: Floats) -> Belief:
    """The base rate for every arm, at a weight that fits how much the rates differ."""
    means = np.full(len(rates), float(rates.mean()))
    return Belief(means, spread_weight(means, rates))


def one_hot(choices: np.ndarray) -> Floats:
    """(n, d) indicators of the (n, places) element numbers."""
    columns = [choices[:, [at]] == np.unique(choices[:, at])[None] for at in range(choices.shape[1])]
    return np.concatenate(columns, axis=1).astype(np.float64)


def pair_accuracy(scores: Floats, rates: Floats) -> float:
    """Share of the pairs with different rates that the scores put in their order; equal scores count half."""
    i, j = np.triu_indices(len(rates), 1)
    apart = np.sign(rates[i] - rates[j])
    right = (np.sign(scores[i] - scores[j]) * apart)[apart != 0]
    return float(((right + 1) / 2).mean()) if len(right) else math.nan


def element_trials(elements: Elements, replicates: int = REPLICATES, seed: int = 0) -> list[Trial]:
    """Halves drawn anew: an additive model of log rate fitted to one, its belief replayed on the other.

    Ridge with its strength by leave-one-out error. The weight follows from the error on the fitted half
    (leave-one-out); the flat belief knows the fitted half's mean and spread.
    """
    x, logs = one_hot(elements.choices), np.log(np.maximum(elements.rates, 1e-9))
    if len(logs) < 8:
        raise UserError(f"{len(logs)} composed creatives are too few to fit one half and replay the other")
    trials = []
    for at in range(replicates):
        order = np.random.default_rng([seed, at]).permutation(len(logs))
        fitted, held = order[: len(order) // 2], order[len(order) // 2 :]
        rates, base = elements.rates[fitted], float(elements.rates[fitted].mean())
        inside, outside = _additive(x[fitted], logs[fitted], x[held])
        scale = base / float(np.exp(inside).mean())
        means = np.exp(outside) * scale
        trials.append(
            Trial(
                ids=tuple(elements.ids[k] for k in held),
                rates=elements.rates[held],
                elements=x[held],
                beliefs={
                    "flat": Belief(np.full(len(held), base), flat(rates).weight),
                    "elements": Belief(means, spread_weight(np.exp(inside) * scale, rates)),
                },
            )
        )
    return trials


def _additive(x: Floats, y: Floats, new: Floats) -> tuple[Floats, Floats]:
    """Leave-one-out predictions of y, and predictions for `new`, of the ridge whose former err least."""
    best: tuple[float, Floats, Floats] | None = None
    mean = y.mean()
    for strength in np.geomspace(0.1, 1e4, 26):
        inverse = np.linalg.inv(x.T @ x + strength * np.eye(x.shape[1])) @ x.T
        leverage = np.einsum("nd,dn->n", x, inverse) + 1 / len(y)
        inside = y - (y - mean - x @ (inverse @ (y - mean))) / (1 - np.minimum(leverage, 0.99))
        error = float(((y - inside) ** 2).mean())
        if best is None or error < best[0]:
            best = error, inside, mean + new @ (inverse @ (y - mean))
    assert best is not None
    return best[1], best[2]


@lru_cache(maxsize=256)
def noise_for(n: int, accuracy: float) -> float:
    """Standard deviation of noise on n normal scores at which pairs are ordered rightly that often."""
    if not 0.5 < accuracy < 1:
        raise ValueError("an accuracy with noise lies between 0.5 and 1, both excluded")
    apart = np.abs(np.subtract.outer(_normal_scores(np.arange(n)), _normal_scores(np.arange(n))))
    apart = apart[np.triu_indices(n, 1)]

    def excess(log_noise: float) -> float:
        return float(stats.norm.cdf(apart / (math.sqrt(2) * math.exp(log_noise))).mean()) - accuracy

    return math.exp(optimize.brentq(excess, -12, 12))


def simulated_belief(
    rates: Floats, accuracy: float, rng: np.random.Generator, *, believed: float | None = None
) -> Belief:
    """Belief of a simulated selector that orders pairs rightly with probability `accuracy`, on average.

    It sees the normal score of each arm's rank, not its rate, plus noise: an arm far ahead of all others is
    no easier to spot than a best arm is anyway. Slope and weight are those that calibration on many campaigns
    like this one gives at accuracy `believed`, the selector's own if None. 0.5 knows nothing, 1 the order.
    """
    if rates.min() <= 0 or np.ptp(rates) == 0:
        raise UserError("a simulated selector needs rates above 0 that are not all equal")
    logs, base = np.log(rates), float(rates.mean())
    order = _normal_scores(rates)
    shape = float(np.corrcoef(logs, order)[0, 1])

    def reliability(level: float) -> float:
        """Share of the scores' variance that is not noise."""
        return 0.0 if level <= 0.5 else 1.0 if level >= 1 else 1 / (1 + noise_for(len(rates), level) ** 2)

    own, taken = reliability(accuracy), reliability(accuracy if believed is None else believed)
    scores = math.sqrt(own) * order + math.sqrt(1 - own) * rng.normal(size=len(rates))
    means = np.exp(math.sqrt(taken) * shape * float(logs.std()) * scores)
    means *= base / means.mean()
    error = float(rates.var()) * (1 - taken * shape**2)
    return Belief(means, min(max(base * (1 - base) / error - 1, MIN_WEIGHT), MAX_WEIGHT))


def _normal_scores(values: Floats | np.ndarray) -> Floats:
    """Standardised normal quantiles of the ranks; equal values share one."""
    scores = stats.norm.ppf((stats.rankdata(values) - 0.5) / len(values))
    return np.asarray((scores - scores.mean()) / scores.std())

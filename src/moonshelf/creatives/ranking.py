"""From pairs to an order: Bradley–Terry over a selector's pairwise probabilities, asked where it matters.

A comparison whose probability is p counts as p of a win and 1 - p of a loss; an abstention counts as a tie
and is kept. The strengths are the maximum of that likelihood (choix, ILSR) with a little of every creative's
weight spread as ties over all others (`PRIOR`, ours), so that it exists for any judge, contradictory or
certain. Few creatives are compared all with all; more begin with a ring and then go where the winner is
uncertain: pairs of contenders that the comparisons so far connect weakly (the acquisition is ours).

What the figures mean. Strengths are log odds: the difference of two is the log odds that one beats the other.
`p_best` is Luce's choice axiom on them (softmax), averaged over a Bayesian bootstrap; with two creatives it
is the judged probability. Intervals are 95 % of the same bootstrap (Rubin 1981), whose units are the two
orders of each comparison: they tell how far the judge contradicts itself, not how far it is from shoppers.

The order in which creatives are given changes no number: all work is done in the order of image hashes.
Creatives with the same image bytes are one competitor and share its strength.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Literal

import choix
import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from scipy.special import softmax

from moonshelf.creatives import selector
from moonshelf.creatives.backends.base import PairwiseBackend
from moonshelf.creatives.labels import content_key, pair_id
from moonshelf.creatives.schema import Campaign, Creative, Judgement, Pair, Record
from moonshelf.errors import UserError

Floats = NDArray[np.float64]
JudgeFn = Callable[[Sequence[Pair]], Sequence[Judgement]]
Entry = tuple[int, int, float, float]  # i, j, probability that i beats j, weight
Stopped = Literal["clear", "budget", "all compared", "nothing to compare"]

PRIOR = 0.02  # tied comparisons of each creative with the rest together; ours
CLEAR = 0.95  # probability of being the best at which no more is asked; ours
MEETINGS = 3  # comparisons of the leader that this takes at least
ALL_PAIRS = 5  # so many different images or fewer are compared all with all
BATCH = 4  # a round asks n / 4 pairs: n / 2 found the winner of all pairs less often (0.93 against 0.98)
BOOTSTRAP = 200  # draws
DECIMALS = 9  # strengths closer than this are equal


class Comparison(Record):
    """Two creatives by id, and what the judge said; `judgement.p` is the probability that `a` is better."""

    a: str
    b: str
    judgement: Judgement

    @property
    def p(self) -> float:
        """The probability that enters the ranking: one half for an abstention."""
        return 0.5 if self.judgement.abstained else self.judgement.p


class Ranking(Record):
    """Creatives of one campaign, best first, with all that the order rests on; JSON there and back."""

    campaign_id: str
    source: str = ""  # of the campaign; starts with "simulated" for drawn ones
    judge: str = ""
    order: tuple[str, ...]  # ids, best first; equal strengths in the order of their image hashes
    strengths: dict[str, float]  # log odds, mean 0 over different images
    intervals: dict[str, tuple[float, float]]  # 95 %, of the strengths
    p_best: dict[str, float]  # sums to 1; identical images share theirs evenly
    comparisons: tuple[Comparison, ...] = ()
    identical: tuple[tuple[str, ...], ...] = ()  # groups of ids with the same image bytes
    intransitivity: float | None = None  # share of cyclic triples; None where no triple was asked in full
    triples: int = 0  # with three verdicts
    abstained: int = 0  # comparisons counted as ties
    unjudged: tuple[str, ...] = ()  # creatives of which no comparison has a verdict: their place says nothing
    pairs: int = 0  # of different images there are, asked or not
    stopped: Stopped = "nothing to compare"
    seed: int = 0

    @model_validator(mode="after")
    def _whole(self) -> Ranking:
        ids = set(self.order)
        if not ids or len(ids) != len(self.order):
            raise ValueError("a ranking orders at least one creative, each once")
        if not ids == set(self.strengths) == set(self.intervals) == set(self.p_best):
            raise ValueError("order, strengths, intervals and p_best are of different creatives")
        return self

    def alike(self, name: str) -> tuple[str, ...]:
        """The creatives with the same image as one of them, itself included."""
        return next((group for group in self.identical if name in group), (name,))

    @property
    def winner(self) -> str | None:
        """The best creative; None where different images share the first place."""
        first = self.order[0]
        level = {name for name in self.order if self.strengths[name] == self.strengths[first]}
        return first if level <= set(self.alike(first)) else None

    @property
    def clear(self) -> bool:
        """One image is the best with at least `CLEAR` probability."""
        return sum(self.p_best[name] for name in self.alike(self.order[0])) >= CLEAR


def rank(
    campaign: Campaign,
    judge: JudgeFn | PairwiseBackend,
    *,
    budget: int | None = None,
    seed: int = 0,
) -> Ranking:
    """Order the creatives of a campaign by at most `budget` comparisons.

    `judge` takes pairs and returns one `Judgement` a pair, in order; a backend is asked through
    `selector.judge`, in both orders. Default budget: all pairs of up to 5 different images, else n log2 n
    comparisons. Raises UserError for a campaign without creatives and for a budget below n - 1, which cannot
    connect them.
    """
    return rank_many([campaign], judge, budget=budget, seed=seed)[0]


def rank_many(
    campaigns: Sequence[Campaign],
    judge: JudgeFn | PairwiseBackend,
    *,
    budget: int | None = None,
    seed: int = 0,
) -> list[Ranking]:
    """`rank` of each campaign, round by round: what all of them want to know next is asked in one call.

    A model that reads in batches is then several times faster than campaign by campaign.
    """
    backend = isinstance(judge, PairwiseBackend)
    ask: JudgeFn = partial(selector.judge, judge, seed=seed) if backend else judge  # type: ignore[assignment,arg-type]
    name = str(getattr(judge, "name", "") or getattr(judge, "__name__", "") or type(judge).__name__)
    running = {i: _rounds(campaign, budget, seed, name) for i, campaign in enumerate(campaigns)}
    answers: dict[int, Sequence[Judgement] | None] = dict.fromkeys(running)
    found: dict[int, Ranking] = {}
    while running:
        wanted: dict[int, list[Pair]] = {}
        for i in list(running):
            try:
                wanted[i] = running[i].send(answers[i])
            except StopIteration as end:
                found[i] = end.value
                del running[i]
        pairs = [pair for some in wanted.values() for pair in some]
        judged = ask(pairs) if pairs else []
        if [pair.id for pair in pairs] != [judgement.pair_id for judgement in judged]:
            raise ValueError("the judge did not return one judgement a pair, in the order of the pairs")
        judgements = iter(judged)
        answers = {i: [next(judgements) for _ in some] for i, some in wanted.items()}
    return [found[i] for i in range(len(campaigns))]


def _rounds(
    campaign: Campaign, budget: int | None, seed: int, judge: str
) -> Generator[list[Pair], Sequence[Judgement] | None, Ranking]:
    """Yields the pairs to ask next, takes their judgements, and returns the ranking."""
    if not campaign.creatives:
        raise UserError(f"campaign {campaign.id} has no creatives: give at least one")
    groups = _groups(campaign.creatives)
    n = len(groups)
    total = n * (n - 1) // 2
    if budget is not None and budget < n - 1:
        raise UserError(f"{budget} comparisons cannot connect {n} different images: allow at least {n - 1}")
    spend = min(total, budget if budget is not None else total if n <= ALL_PAIRS else default_budget(n))
    heads = [group[0] for group in groups]
    shown = campaign.model_copy(update={"creatives": tuple(heads), "true_rates": None})
    found: list[tuple[int, int, Judgement]] = []
    stopped: Stopped = "nothing to compare"
    chosen = _opening(n, spend, seed) if n > 1 else []
    while chosen:
        judgements = yield [
            shown.pair(i, j, pair_id(campaign.id, heads[i].id, heads[j].id)) for i, j in chosen
        ]
        found += [(i, j, one) for (i, j), one in zip(chosen, judgements or (), strict=True)]
        asked = {(i, j) for i, j, _ in found}
        if len(asked) == total:
            stopped = "all compared"
            break
        if len(asked) >= spend:
            stopped = "budget"
            break
        strengths = fit(_entries(found), n)
        best = _p_best(strengths)
        if _settled(best, asked) and _settled(_p_best(_bootstrap(found, n, seed, strengths)).mean(0), asked):
            stopped = "clear"
            break
        chosen = _round(best, asked, n, min(spend - len(asked), max(1, n // BATCH)))
    return _ranking(campaign, groups, found, stopped, total, judge, seed)


def default_budget(n: int) -> int:
    """Comparisons for n different images where nothing else is said: n log2 n, or all pairs if fewer."""
    return min(n * (n - 1) // 2, math.ceil(n * math.log2(n))) if n > 1 else 0


def fit(entries: Sequence[Entry], n: int, *, start: Floats | None = None, tol: float = 1e-10) -> Floats:
    """(n,) Bradley–Terry strengths, mean 0, of weighted comparisons.

    Maximises sum of w (p log s + (1 - p) log(1 - s)), s = sigmoid(strength i - strength j), over the entries
    and a tie of weight PRIOR / (n - 1) between every two.
    """
    if n == 1:
        return np.zeros(1)
    wins = np.full((n, n), PRIOR / 2 / (n - 1))
    np.fill_diagonal(wins, 0.0)
    for i, j, p, weight in entries:
        wins[i, j] += weight * p
        wins[j, i] += weight * (1 - p)
    strengths = choix.ilsr_pairwise_dense(wins, initial_params=start, max_iter=2000, tol=tol)
    return np.asarray(strengths - strengths.mean(), np.float64)


def intransitivity(comparisons: Sequence[Comparison]) -> tuple[float | None, int]:
    """Share of triples that are cyclic (a beats b beats c beats a), and the number of triples.

    Only triples with a verdict on all three pairs count: ties and abstentions contradict nothing.
    """
    decided = [one for one in comparisons if one.p != 0.5]
    names = sorted({name for one in decided for name in (one.a, one.b)})
    beats = np.zeros((len(names), len(names)), np.int64)
    for one in decided:
        winner, loser = (one.a, one.b) if one.p > 0.5 else (one.b, one.a)
        beats[names.index(winner), names.index(loser)] = 1
    compared = beats + beats.T
    cyclic = int(np.trace(beats @ beats @ beats)) // 3
    triples = int(np.trace(compared @ compared @ compared)) // 6
    return (cyclic / triples if triples else None), triples


# ---- competitors --------------------------------------------------------------------------------------


def _groups(creatives: Sequence[Creative]) -> list[list[Creative]]:
    """Creatives with the same image, ids ascending, in the order of their hashes."""
    groups: dict[str, list[Creative]] = {}
    for creative in creatives:
        groups.setdefault(content_key(creative), []).append(creative)
    return [sorted(groups[key], key=lambda creative: creative.id) for key in sorted(groups)]


# ---- which pairs to ask -------------------------------------------------------------------------------


def _opening(n: int, spend: int, seed: int) -> list[tuple[int, int]]:
    """All pairs if they are affordable, else a ring over a drawn order, or a path if only n - 1 are."""
    if spend >= n * (n - 1) // 2:
        return [(i, j) for i in range(n) for j in range(i + 1, n)]
    places = np.random.default_rng(seed).permutation(n).tolist()
    ring = list(zip(places, places[1:] + places[:1], strict=True))[: min(n, spend)]
    return sorted((min(pair), max(pair)) for pair in ring)


def _settled(best: Floats, asked: set[tuple[int, int]]) -> bool:
    """One is clearly the best, and not by a comparison or two."""
    first = int(best.argmax())
    return bool(best[first] >= CLEAR) and sum(first in pair for pair in asked) >= MEETINGS


def _round(best: Floats, asked: set[tuple[int, int]], n: int, most: int) -> list[tuple[int, int]]:
    """At most `most` new pairs, each creative once: likely winners that are weakly connected so far.

    The connection of two is the effective resistance between them in the graph of the comparisons, which
    is proportional to the variance of their difference if all comparisons tell equally much.
    """
    graph = np.eye(n) * 1e-3
    for i, j in asked:
        graph[[i, j], [i, j]] += 1.0
        graph[[i, j], [j, i]] -= 1.0
    inverse = np.linalg.inv(graph)
    resistance = np.add.outer(inverse.diagonal(), inverse.diagonal()) - 2 * inverse
    worth = np.round(np.outer(best, best) * resistance, 15)
    chosen: list[tuple[int, int]] = []
    taken: set[int] = set()
    rows, columns = np.triu_indices(n, 1)
    for at in np.argsort(-worth[rows, columns], kind="stable").tolist():
        i, j = int(rows[at]), int(columns[at])
        if (i, j) in asked or i in taken or j in taken:
            continue
        chosen.append((i, j))
        taken |= {i, j}
        if len(chosen) == most:
            break
    return chosen


# ---- the figures --------------------------------------------------------------------------------------


def _entries(found: Sequence[tuple[int, int, Judgement]]) -> list[Entry]:
    """Two entries of weight one half a comparison: its probability plus and minus the orders' discord."""
    entries = []
    for i, j, judgement in found:
        p = 0.5 if judgement.abstained else judgement.p
        apart = min(abs(judgement.p_first - judgement.p_second) / 2, p, 1 - p)
        entries += [(i, j, p + apart, 0.5), (i, j, p - apart, 0.5)]
    return entries


def _bootstrap(found: Sequence[tuple[int, int, Judgement]], n: int, seed: int, start: Floats) -> Floats:
    """(BOOTSTRAP, n) strengths under Dirichlet weights on the entries: none is ever left out entirely."""
    entries = _entries(found)
    rng = np.random.default_rng([seed, len(entries)])
    weights = rng.dirichlet(np.ones(len(entries)), size=BOOTSTRAP) * len(entries) / 2
    drawn = []
    for row in weights.tolist():
        weighted = [(i, j, p, w) for (i, j, p, _), w in zip(entries, row, strict=True)]
        drawn.append(fit(weighted, n, start=start, tol=1e-6))
    return np.array(drawn)


def _p_best(strengths: Floats) -> Floats:
    """The probability of the first place under Luce's axiom, over the last axis."""
    return np.asarray(softmax(strengths, axis=-1))


def _ranking(
    campaign: Campaign,
    groups: Sequence[Sequence[Creative]],
    found: Sequence[tuple[int, int, Judgement]],
    stopped: Stopped,
    total: int,
    judge: str,
    seed: int,
) -> Ranking:
    n = len(groups)
    strengths, low, high, best = np.zeros(n), np.zeros(n), np.zeros(n), np.ones(n)
    if n > 1:
        exact = fit(_entries(found), n)
        drawn = _bootstrap(found, n, seed, exact)
        strengths = np.round(exact, DECIMALS) + 0.0
        low, high = (np.round(edge, DECIMALS) for edge in np.quantile(drawn, [0.025, 0.975], axis=0))
        best = _p_best(drawn).mean(0)
    comparisons = tuple(
        Comparison(a=groups[i][0].id, b=groups[j][0].id, judgement=judgement) for i, j, judgement in found
    )
    cyclic, triples = intransitivity(comparisons)
    ids = [[creative.id for creative in group] for group in groups]
    judged = {at for i, j, judgement in found if not judgement.abstained for at in (i, j)}
    places = sorted(range(n), key=lambda at: (-strengths[at], at))
    each = [(at, name) for at in range(n) for name in ids[at]]
    return Ranking(
        campaign_id=campaign.id,
        source=campaign.source,
        judge=judge,
        order=tuple(name for at in places for name in ids[at]),
        strengths={name: float(strengths[at]) for at, name in each},
        intervals={name: (float(low[at]), float(high[at])) for at, name in each},
        p_best={name: float(best[at]) / len(ids[at]) for at, name in each},
        comparisons=comparisons,
        identical=tuple(tuple(group) for group in ids if len(group) > 1),
        intransitivity=cyclic,
        triples=triples,
        abstained=sum(bool(one.judgement.abstained) for one in comparisons),
        unjudged=tuple(name for at, name in each if n > 1 and at not in judged),
        pairs=total,
        stopped=stopped,
        seed=seed,
    )

"""From kept judgements to the figures of an evaluation of selectors: no model, no picture.

The headline is the swap-averaged accuracy on decisive pairs; beside every accuracy stands the label ceiling.
Slices say where it comes from: the stratum, wordings that training never used, and whether the plainer or
the richer picture won, because judges share the belief that more design wins. The interest test asks the
same pairs with the interest of another campaign of the same kind, and with none: a selector that does not
care was not made for anyone. Differences are paired, over the same pairs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from scipy import stats

from moonshelf.creatives.evaluation import explanations as reasons
from moonshelf.creatives.evaluation import metrics
from moonshelf.creatives.evaluation.metrics import Cases, Figure, Gap, Mask, Rows, mean_figure
from moonshelf.creatives.evaluation.record import CreativeReport, Curve
from moonshelf.creatives.known import ORACLE, drawn, interest_speaks, oracle
from moonshelf.creatives.labels import STRATA, stratum
from moonshelf.creatives.ranking import Ranking
from moonshelf.creatives.schema import Campaign, Creative, Judgement, Pair
from moonshelf.evaluation.statistics import significance

Interest = Literal["true", "shuffled", "none"]
HEADLINE = "decisive pairs"
ALL = "all pairs"
SPEAKS = "one of the two answers the interest better"
TURNED = "both of two pairs with the same pictures, where the interest turns the winner"


@dataclass
class Evidence:
    """What an evaluation kept of its backends."""

    pairs: list[Pair]
    truth: list[float]  # posterior probability that A is better
    backends: list[str]  # ours first
    # By the interest that was asked under, backend and pair.
    judged: dict[str, dict[str, dict[str, Judgement]]]
    campaigns: list[Campaign] = field(default_factory=list)
    rankings: dict[str, list[Ranking]] = field(default_factory=dict)


def count(evidence: Evidence, report: CreativeReport) -> None:
    """Fill in the lines, differences and curves of `report`."""
    counting = _Counting(evidence)
    report.backends = list(evidence.backends)
    report.lines = [
        *counting.skill(),
        *counting.paired(),
        *counting.interest(),
        *(counting.explanations() if report.settings.get("explanations", True) else ()),
        *counting.ranking(),
    ]
    report.differences = counting.differences()
    report.curves = counting.curves()
    report.simulated = any(pair.source.startswith("simulated") for pair in evidence.pairs)
    report.sources = dict(Counter(pair.source or "unnamed" for pair in evidence.pairs))


# ---- slices ---------------------------------------------------------------------------------------------


def slices(pairs: Sequence[Pair], truth: Sequence[float]) -> dict[str, Mask]:
    """Parts of the pairs by name; a part without pairs is left out."""
    strata = [stratum(q) for q in truth]
    new = [{one.facts["new"] for one in (pair.a, pair.b) if "new" in one.facts} for pair in pairs]
    # How much richer the winner is than the other; 0 where nobody wins.
    more = [
        (richness(pair.a) - richness(pair.b)) * int(np.sign(q - 0.5))
        for pair, q in zip(pairs, truth, strict=True)
    ]
    found = {f"{name} pairs": np.array([one == name for one in strata]) for name in STRATA}
    found |= {
        "a wording that training never used": np.array(["yes" in one for one in new]),
        "wordings of training, or none": np.array([bool(one) and "yes" not in one for one in new]),
        "the plainer picture won": np.array(more) < 0,
        "the richer picture won": np.array(more) > 0,
        SPEAKS: np.array([drawn(pair) and interest_speaks(pair) for pair in pairs]),
    }
    return {name: mask for name, mask in found.items() if mask.any()}


def richness(creative: Creative) -> int:
    """How many things are put on a picture beside the product: words, badge, props, a scene (ours)."""
    known = creative.facts
    return (
        bool(creative.text.strip())
        + (known.get("badge", "none") != "none")
        + {"few": 1, "clutter": 2}.get(known.get("props", "none"), 0)
        + (known.get("background", "white") not in ("white", "plain"))
    )


def turned(pairs: Sequence[Pair], truth: Sequence[float]) -> list[tuple[int, int]]:
    """Couples of pairs that show the same pictures under two interests, one won by each of the pictures.

    Rows of `pairs`, each in one couple at most, toss-ups in none. A judge that does not read the interest
    says the same of both, so it is never right about both; one that guesses is in a quarter of them.
    """
    waiting: dict[tuple[str, frozenset[str]], list[tuple[int, str]]] = {}
    found = []
    for i, (pair, q) in enumerate(zip(pairs, truth, strict=True)):
        pictures = frozenset((pair.a.sha256, pair.b.sha256))
        if len(pictures) < 2 or "" in pictures or stratum(q) == STRATA[-1]:
            continue
        others = waiting.setdefault((pair.product_id, pictures), [])
        winner = pair.a.sha256 if q > 0.5 else pair.b.sha256
        for other in others:
            if other[1] != winner and pairs[other[0]].interest != pair.interest:
                others.remove(other)
                found.append((other[0], i))
                break
        else:
            others.append((i, winner))
    return found


def shuffled_interest(pairs: Sequence[Pair], seed: int = 0) -> dict[str, tuple[str, ...]]:
    """Another interest for each pair, drawn from what shoppers of its category look for.

    Pairs without an interest, or in whose category nobody asks for anything else, are not in it.
    """
    asked: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for pair in pairs:
        if pair.interest:
            asked.setdefault(pair.category, set()).add(pair.interest)
    rng, found = np.random.default_rng(seed), {}
    for pair in pairs:
        others = sorted(asked.get(pair.category, set()) - {pair.interest}) if pair.interest else []
        if others:
            found[pair.id] = others[int(rng.integers(len(others)))]
    return found


# ---- lines ----------------------------------------------------------------------------------------------


class _Counting:
    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.pairs, self.truth = evidence.pairs, np.asarray(evidence.truth, np.float64)
        self.clusters = [pair.product_id for pair in self.pairs]
        every = range(len(self.pairs))
        self.cases = {name: self._cases("true", name, every) for name in evidence.backends}
        if all(drawn(pair) for pair in self.pairs):
            self.cases[ORACLE] = Cases.of(oracle(self.pairs), self.truth, self.clusters)
        self.slices = slices(self.pairs, evidence.truth)
        self.parts = {name: self._mask(name) for name in (HEADLINE, SPEAKS)}
        self.parts[ALL] = np.ones(len(self.pairs), bool)
        # Interests that were asked, and the rows that every backend judged under all of them.
        judged = evidence.judged
        self.interests = [name for name, by in judged.items() if all(by.values())]
        self.tested = [
            i for i, pair in enumerate(self.pairs)
            if len(self.interests) > 1 and pair.interest
            and all(pair.id in known for name in self.interests for known in judged[name].values())
        ]  # fmt: skip

    def _mask(self, part: str) -> Mask:
        return self.slices.get(part, np.zeros(len(self.pairs), bool))

    def _cases(self, interest: str, backend: str, rows: Sequence[int]) -> Cases:
        known = self.evidence.judged[interest][backend]
        judgements = [known[self.pairs[i].id] for i in rows]
        return Cases.of(judgements, self.truth[list(rows)], [self.clusters[i] for i in rows])

    def skill(self) -> list[Figure]:
        # Against the true rates, which only a simulation knows, no label can be wrong.
        rates = [pair.true_rates for pair in self.pairs]
        known = np.array([one is not None and one[0] != one[1] for one in rates])
        better = np.array([float(one is not None and one[0] > one[1]) for one in rates])
        found = []
        for name, cases in self.cases.items():
            for part in (HEADLINE, ALL):
                found += _of("skill", part, name, metrics.figures(cases.take(self.parts[part])))
            for part, mask in self.slices.items():
                found += _of("slices", part, name, [_accuracy(cases.take(mask))])
            if known.any():
                against = replace(cases, truth=better).take(known)
                found += _of("slices", "against the true rates", name, [_accuracy(against)])
        return found

    def curves(self) -> list[Curve]:
        return [
            Curve(name, part, metrics.reliability(chosen), metrics.risk_coverage(chosen))
            for name, cases in self.cases.items()
            for part in (ALL, HEADLINE)
            if len(chosen := cases.take(self.parts[part]))
        ]

    def paired(self) -> list[Figure]:
        """How far the orders disagree, and log loss: the first backend minus each other one, on all pairs."""
        ours, *others = self.evidence.backends
        found = []
        for name in others:
            figures = metrics.paired(self.cases[ours], self.cases[name], (ours, name))
            found += _of("paired", name, ours, figures)
        return found

    def differences(self) -> list[Gap]:
        """The first backend minus each other one, and each under its own interest minus under another one.

        On decisive pairs that have a winner.
        """
        found, decisive = [], self.parts[HEADLINE]
        cases = {name: one.take(decisive) for name, one in self.cases.items()}
        ours, *others = cases
        for name in others if decisive.any() else ():
            found.append(metrics.gap(cases[ours], cases[name], (ours, name), "backends", HEADLINE))
        rows = [i for i in self.tested if decisive[i] and self.truth[i] != 0.5]
        called = {"shuffled": "a shuffled interest", "none": "no interest"}
        for name in self.evidence.backends if rows else ():
            for other in self.interests[1:]:
                true, changed = (self._cases(one, name, rows) for one in ("true", other))
                found.append(
                    metrics.gap(true, changed, (name, called[other]), "interest", f"true against {other}")
                )
        return found

    def interest(self) -> list[Figure]:
        rows, found = self.tested, list[Figure]()
        couples = turned([self.pairs[i] for i in rows], self.truth[rows].tolist()) if rows else []
        for one in self.interests if rows else ():
            for name in self.evidence.backends:
                cases = self._cases(one, name, rows)
                chosen = [
                    _accuracy(cases.take(mask[rows]), f"accuracy, {part}")
                    for part, mask in self.parts.items()
                ]
                chosen += _both_right(cases, couples)
                whole = {f.name: f for f in metrics.figures(cases)}
                found += _of("interest", one, name, [*chosen, whole["log loss"], whole["coverage"]])
        return found

    def explanations(self) -> list[Figure]:
        """What the reasons are worth."""
        found = list[Figure]()
        for name in self.evidence.backends:
            judgements = [self.evidence.judged["true"][name][pair.id] for pair in self.pairs]
            agreed = reasons.agreement_figures(self.pairs, judgements)
            found += _of("explanations", "form and agreement", name, agreed)
            for figure, chance in reasons.question_figures(self.pairs, judgements):
                found += _of("questions", figure.name, name, [replace(figure, chance=chance)])
            found += _of("explanations", "claims", name, reasons.claim_figures(self.pairs, judgements))
        return found

    def ranking(self) -> list[Figure]:
        """Order and pick of campaigns with more than two creatives, each a cluster by its product."""
        campaigns = {one.id: one for one in self.evidence.campaigns}
        found = []
        for name, rankings in self.evidence.rankings.items():
            both = [(campaigns[one.campaign_id], one) for one in rankings]
            found += _of("ranking", "campaigns", name, _ranked(both))
        return found


def _both_right(cases: Cases, couples: Sequence[tuple[int, int]]) -> list[Figure]:
    """Share of the `turned` couples of which both are right; [] without couples."""
    if not couples:
        return []
    one, other = np.array(couples).T
    right, knowable = cases.right == 1, cases.knowable
    bound = float((knowable[one] * knowable[other]).mean())
    products, note = [cases.clusters[i] for i in one], "who does not read the interest: 0"
    return [mean_figure(f"accuracy, {TURNED}", right[one] & right[other], products, bound=bound, note=note)]


def rates_of(campaign: Campaign) -> dict[str, float]:
    """Rate of each creative: the true one where a simulation knows it, else the observed one."""
    if campaign.true_rates is not None:
        return {one.id: rate for one, rate in zip(campaign.creatives, campaign.true_rates, strict=True)}
    return {one.id: one.rate for one in campaign.creatives if one.rate is not None}


# ---- orders of creatives ------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankingScore:
    """One campaign: the order against the rates. Regret is a share of the best rate, 0 for the best pick.

    Ties on either side are ties: a tied first place counts by the share of its members that are best, and its
    rate is their mean. A statistic that is not defined (all equal, a single creative) is None.
    """

    kendall: float | None  # tau-b
    spearman: float | None
    top1: float  # 1 if the pick has the best rate
    picked_rate: float
    best_rate: float
    uniform_rate: float  # mean: what a random pick gives
    regret: float  # best-of-n: (best - picked) / best, 0 where all rates are 0
    uniform_regret: float  # of a random pick


def score_ranking(strengths: Mapping[str, float], rates: Mapping[str, float]) -> RankingScore:
    """Score the strengths of a ranking, or any scores, higher being better; ValueError for a missing rate."""
    names = sorted(strengths)  # so that the order in which creatives come changes no digit
    missing = [name for name in names if name not in rates]
    if missing or not names:
        raise ValueError(f"no rate of {missing[0]}" if missing else "no creatives")
    strength, rate = (np.array([one[name] for name in names], np.float64) for one in (strengths, rates))
    if not (np.isfinite(strength).all() and np.isfinite(rate).all()):
        raise ValueError("a strength or a rate is not a number")
    first, best = strength == strength.max(), float(rate.max())
    constant = len(names) < 2 or np.ptp(strength) == 0 or np.ptp(rate) == 0
    picked, uniform = float(rate[first].mean()), float(rate.mean())
    return RankingScore(
        None if constant else float(stats.kendalltau(strength, rate).statistic),
        None if constant else float(stats.spearmanr(strength, rate).statistic),
        float((rate[first] == best).mean()), picked, best, uniform,
        *((best - one) / best if best else 0.0 for one in (picked, uniform)),
    )  # fmt: skip


def normalised_regret(scores: Sequence[RankingScore]) -> float:
    """Regret of the picks as a share of that of random picks, over campaigns; nan if there is none to avoid.

    1 is a random pick, 0 the best one (VAM-HBM prints it times 100).
    """
    random = sum(score.best_rate - score.uniform_rate for score in scores)
    picked = sum(score.best_rate - score.picked_rate for score in scores)
    return picked / random if random > 0 else math.nan


def _ranked(both: Sequence[tuple[Campaign, Ranking]]) -> list[Figure]:
    scores = [score_ranking(ranking.strengths, rates_of(one)) for one, ranking in both]
    products = [one.product_id for one, _ in both]
    picked, uniform = np.array([(one.picked_rate, one.uniform_rate) for one in scores]).T

    def lift(weights: np.ndarray | None) -> np.ndarray:
        w = np.ones(len(picked)) if weights is None else weights
        base = float(w @ uniform)
        return np.array([float(w @ picked) / base - 1 if base else np.nan])

    def mean(name: str, values: Iterable[float | None], note: str = "") -> Figure:
        rows = Rows()
        for value, product in zip(values, products, strict=True):
            rows.add(name, value, product)
        return rows.figure(name, note)

    gained, _ = significance.resample(lift, len(picked), products)
    top = np.mean([1 / len(one.creatives) for one, _ in both])
    regret = np.mean([one.uniform_regret for one in scores])
    return [
        mean("Kendall tau-b", (one.kendall for one in scores)),
        mean("Spearman", (one.spearman for one in scores)),
        mean("top-1", (one.top1 for one in scores), f"random {100 * top:.1f}"),
        mean("best-of-n regret", (one.regret for one in scores), f"random {100 * regret:.1f}"),
        mean("click rate of the picks", picked, f"random {100 * uniform.mean():.3f}"),
        *(metrics.from_interval("lift over random", one) for one in gained if np.isfinite(one.value)),
        mean("cyclic triples", (one.intransitivity for _, one in both)),
        mean("comparisons a campaign", (len(one.comparisons) for _, one in both)),
    ]


def _accuracy(cases: Cases, name: str = "accuracy") -> Figure:
    kept = cases.take(cases.settled)
    bound = float(kept.knowable.mean()) if len(kept) else None
    return mean_figure(name, kept.right, kept.clusters, bound=bound)


def _of(group: str, part: str, backend: str, figures: Sequence[Figure]) -> list[Figure]:
    return [replace(one, group=group, part=part, backend=backend) for one in figures]

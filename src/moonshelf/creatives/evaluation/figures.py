"""From kept judgements to the figures of an evaluation of selectors: no model, no picture.

The headline is the swap-averaged accuracy on decisive pairs; beside every accuracy stands the label ceiling.
Slices say where it comes from: the stratum, wordings that training never used, and whether the plainer or
the richer picture won, because judges share the belief that more design wins. The interest test asks the
same pairs with the interest of another campaign of the same kind, and with none: a selector that does not
care was not made for anyone. Differences are paired, over the same pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from moonshelf.creatives.evaluation import explanations as reasons
from moonshelf.creatives.evaluation import metrics
from moonshelf.creatives.evaluation.metrics import Cases, Figure, Mask, mean_figure
from moonshelf.creatives.evaluation.ranking import RankingScore, score_ranking
from moonshelf.creatives.evaluation.record import CreativeReport, Curve, Difference, Line, Trial
from moonshelf.creatives.evaluation.simulated import ORACLE, drawn, interest_speaks, oracle
from moonshelf.creatives.labels import STRATA, Prior, label_ceiling, posterior, stratum
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
    """What an evaluation kept of its backends; judgements by backend, then by pair."""

    pairs: list[Pair]
    truth: list[float]  # posterior probability that A is better
    backends: list[str]  # ours first
    judged: dict[Interest, dict[str, dict[str, Judgement]]]
    controls: dict[str, dict[str, dict[str, Judgement]]] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    campaigns: list[Campaign] = field(default_factory=list)
    rankings: dict[str, list[Ranking]] = field(default_factory=dict)


def truth_of(pair: Pair, prior: Prior) -> float | None:
    """The posterior of the counts; without counts an annotator's verdict, taken as certain."""
    known = posterior(pair, prior)
    if known is None and pair.label is not None:
        return {"A": 1.0, "B": 0.0, "tie": 0.5}[pair.label]
    return known


def count(evidence: Evidence, report: CreativeReport) -> CreativeReport:
    """Fill in the lines, differences and curves of `report`."""
    counting = _Counting(evidence)
    report.backends = list(evidence.backends)
    report.lines = [
        *counting.skill(),
        *counting.paired(),
        *counting.interest(),
        *counting.explanations(),
        *counting.ranking(),
    ]
    report.differences = [*counting.against_ours(), *counting.interest_differences()]
    report.curves = counting.curves()
    report.simulated = any(pair.source.startswith("simulated") for pair in evidence.pairs)
    report.sources = {}
    for pair in evidence.pairs:
        report.sources[pair.source or "unnamed"] = report.sources.get(pair.source or "unnamed", 0) + 1
    return report


# ---- slices ---------------------------------------------------------------------------------------------


def slices(pairs: Sequence[Pair], truth: Sequence[float]) -> dict[str, Mask]:
    """Parts of the pairs by name; a part without pairs is left out."""
    won = [None if q == 0.5 else (pair.a, pair.b) if q > 0.5 else (pair.b, pair.a)
           for pair, q in zip(pairs, truth, strict=True)]  # fmt: skip
    less = [0 if sides is None else richness(sides[0]) - richness(sides[1]) for sides in won]
    strata = [stratum(q) for q in truth]
    new = [any(one.facts.get("new") == "yes" for one in (pair.a, pair.b)) for pair in pairs]
    told = [any("new" in one.facts for one in (pair.a, pair.b)) for pair in pairs]
    found = {f"{name} pairs": np.array([one == name for one in strata]) for name in STRATA}
    found |= {
        "a wording that training never used": np.array(new),
        "wordings of training, or none": np.array(told) & ~np.array(new),
        "the plainer picture won": np.array(less) < 0,
        "the richer picture won": np.array(less) > 0,
        SPEAKS: np.array([drawn(pair) and interest_speaks(pair) for pair in pairs]),
    }
    return {name: mask for name, mask in found.items() if mask.any()}


def richness(creative: Creative) -> int:
    """How many things are put on a picture beside the product: words, badge, props, a scene (ours)."""
    known = creative.facts
    return (
        bool(creative.text.strip())
        + (known.get("badge", "none") != "none")
        + ("none", "few", "clutter").index(
            known["props"] if known.get("props") in ("few", "clutter") else "none"
        )
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
        self.cases = {name: self._cases("true", name, range(len(self.pairs))) for name in evidence.backends}
        if all(drawn(pair) for pair in self.pairs):
            self.cases[ORACLE] = Cases.of(oracle(self.pairs), self.truth, self.clusters)
        self.slices = slices(self.pairs, evidence.truth)
        self.headline = self._mask(HEADLINE)

    def _mask(self, part: str) -> Mask:
        return self.slices.get(part, np.zeros(len(self.pairs), bool))

    def _cases(self, interest: Interest, backend: str, rows: Sequence[int]) -> Cases:
        known = self.evidence.judged[interest][backend]
        judgements = [known[self.pairs[i].id] for i in rows]
        return Cases.of(judgements, self.truth[list(rows)], [self.clusters[i] for i in rows])

    def skill(self) -> list[Line]:
        found = []
        for name, cases in self.cases.items():
            for part, mask in ((HEADLINE, self.headline), (ALL, np.ones(len(cases), bool))):
                found += _lines("skill", part, name, metrics.figures(cases.take(mask)))
            for part, mask in self.slices.items():
                found += _lines("slices", part, name, [_accuracy(cases.take(mask))])
        return found + self._true_order()

    def _true_order(self) -> list[Line]:
        """Accuracy against the true rates, which only a simulation knows: no label can be wrong there."""
        rates = [pair.true_rates for pair in self.pairs]
        rows = [i for i, known in enumerate(rates) if known is not None and known[0] != known[1]]
        if not rows:
            return []
        found = []
        for name, cases in self.cases.items():
            truth = np.array([float(rates[i][0] > rates[i][1]) for i in rows])  # type: ignore[index]
            known = replace(cases.take(rows), truth=truth)
            found += _lines("slices", "against the true rates", name, [_accuracy(known)])
        return found

    def curves(self) -> list[Curve]:
        return [
            Curve(name, part, metrics.reliability(chosen), metrics.risk_coverage(chosen))
            for name, cases in self.cases.items()
            for part, mask in ((ALL, np.ones(len(cases), bool)), (HEADLINE, self.headline))
            if len(chosen := cases.take(mask))
        ]

    def against_ours(self) -> list[Difference]:
        """The first backend minus each other one, on decisive pairs that have a winner."""
        ours, *others = self.evidence.backends
        if not self.headline.any():
            return []
        cases = {name: one.take(self.headline) for name, one in self.cases.items()}
        others += [ORACLE] if ORACLE in cases else []
        return [
            Difference("backends", HEADLINE, metrics.gap(cases[ours], cases[name], (ours, name)))
            for name in others
        ]

    def paired(self) -> list[Line]:
        """How far the orders disagree, and log loss: the first backend minus each other one, on all pairs."""
        ours, *others = self.evidence.backends
        found = []
        for name in others:
            figures = metrics.paired(self.cases[ours], self.cases[name], (ours, name))
            found += _lines("paired", name, ours, figures)
        return found

    # ---- interest ------------------------------------------------------------------------------------

    def _tested(self) -> tuple[list[Interest], list[int]]:
        """Conditions that ran, and the rows that every backend judged in all of them."""
        ran: list[Interest] = [
            one for one, found in self.evidence.judged.items() if all(map(len, found.values()))
        ]
        if len(ran) < 2:
            return ran, []
        rows = [
            i
            for i, pair in enumerate(self.pairs)
            if pair.interest
            and all(
                pair.id in self.evidence.judged[one][name] for one in ran for name in self.evidence.backends
            )
        ]
        return ran, rows

    def interest(self) -> list[Line]:
        ran, rows = self._tested()
        couples = turned([self.pairs[i] for i in rows], self.truth[rows].tolist()) if rows else []
        found = []
        for one in ran if rows else ():
            for name in self.evidence.backends:
                cases = self._cases(one, name, rows)
                decisive, speaks = (self._mask(part)[rows] for part in (HEADLINE, SPEAKS))
                chosen = [
                    _accuracy(cases.take(decisive), f"accuracy, {HEADLINE}"),
                    _accuracy(cases.take(speaks), f"accuracy, {SPEAKS}"),
                    _accuracy(cases, f"accuracy, {ALL}"),
                ]
                chosen += _both_right(cases, couples)
                whole = {f.name: f for f in metrics.figures(cases)}
                found += _lines("interest", one, name, [*chosen, whole["log loss"], whole["coverage"]])
        return found

    def interest_differences(self) -> list[Difference]:
        ran, rows = self._tested()
        found = []
        chosen = [i for i in rows if self.headline[i] and self.truth[i] != 0.5]
        for name in self.evidence.backends if chosen else ():
            for other in ran:
                if other != "true":
                    sides = (self._cases("true", name, chosen), self._cases(other, name, chosen))
                    gap = metrics.gap(
                        *sides, (name, {"shuffled": "a shuffled interest", "none": "no interest"}[other])
                    )
                    found.append(Difference("interest", f"true against {other}", gap))
        return found

    # ---- reasons, controls, edits --------------------------------------------------------------------

    def explanations(self) -> list[Line]:
        found = []
        for name in self.evidence.backends:
            judgements = [self.evidence.judged["true"][name][pair.id] for pair in self.pairs]
            agreed = reasons.agreement_figures(self.pairs, judgements)
            found += _lines("explanations", "form and agreement", name, agreed)
            for figure, chance in reasons.question_figures(self.pairs, judgements):
                found += _lines("questions", figure.name, name, [figure], chance)
            found += _lines("explanations", "claims", name, reasons.claim_figures(self.pairs, judgements))
            for control, by_backend in self.evidence.controls.items():
                kept = by_backend.get(name, {})
                pairs = [pair for pair in self.pairs if pair.id in kept]
                figures = reasons.control_figures(control, pairs, [kept[pair.id] for pair in pairs])
                found += _lines("controls", control, name, figures)
            trials = [one for one in self.evidence.trials if one.backend == name]
            found += _lines("edits", "named factor", name, reasons.edit_figures(trials))
        return found

    # ---- ranking -------------------------------------------------------------------------------------

    def ranking(self) -> list[Line]:
        """Order and pick of campaigns with more than two creatives, each a cluster by its product."""
        campaigns = {one.id: one for one in self.evidence.campaigns}
        found = []
        for name, rankings in self.evidence.rankings.items():
            scored = [(one, score_ranking(one, rates_of(campaigns[one.campaign_id]))) for one in rankings]
            products = [campaigns[one.campaign_id].product_id for one, _ in scored]
            found += _lines("ranking", "campaigns", name, _ranked(scored, products))
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


def _ranked(scored: Sequence[tuple[Ranking, RankingScore]], products: Sequence[str]) -> list[Figure]:
    def mean(name: str, get: Callable[[RankingScore], float | None], chance: str = "") -> Figure:
        kept = [(get(score), product) for (_, score), product in zip(scored, products, strict=True)]
        known = [(value, product) for value, product in kept if value is not None]
        return mean_figure(name, [v for v, _ in known], [p for _, p in known], note=chance)

    if not scored:
        return []
    picked = np.array([score.picked_rate for _, score in scored])
    uniform = np.array([score.uniform_rate for _, score in scored])

    def lift(weights: np.ndarray | None) -> np.ndarray:
        w = np.ones(len(picked)) if weights is None else weights
        base = float(w @ uniform)
        return np.array([float(w @ picked) / base - 1 if base else np.nan])

    value, drawn, clusters = significance.resample(lift, len(picked), products)
    gained = significance.intervals(value, drawn, len(picked), clusters)
    cyclic = [(one.intransitivity, product) for (one, _), product in zip(scored, products, strict=True)]
    known = [(share, product) for share, product in cyclic if share is not None]
    return [
        mean("Kendall tau-b", lambda s: s.kendall),
        mean("Spearman", lambda s: s.spearman),
        mean("top-1", lambda s: s.top1, f"random {100 * np.mean([1 / s.n for _, s in scored]):.1f}"),
        mean("best-of-n regret", lambda s: s.regret,
             f"random {100 * np.mean([s.uniform_regret for _, s in scored]):.1f}"),
        mean("click rate of the picks", lambda s: s.picked_rate, f"random {100 * uniform.mean():.3f}"),
        *(metrics.from_interval("lift over random", one) for one in gained if np.isfinite(one.value)),
        mean_figure("cyclic triples", [v for v, _ in known], [p for _, p in known]),
        mean_figure("comparisons a campaign", [len(one.comparisons) for one, _ in scored], products),
    ]  # fmt: skip


def _accuracy(cases: Cases, name: str = "accuracy") -> Figure:
    kept = cases.take(cases.settled)
    bound = float(kept.knowable.mean()) if len(kept) else None
    return mean_figure(name, kept.right, kept.clusters, bound=bound)


def _lines(
    group: str, part: str, backend: str, figures: Sequence[Figure], chance: float | None = None
) -> list[Line]:
    return [
        Line(group, part, backend, f.name, f.value, f.low, f.high, f.n, f.clusters, f.bound, chance, f.note)
        for f in figures
    ]


def label_notes(pairs: Sequence[Pair], prior: Prior) -> list[str]:
    """What the labels of these pairs can tell, in words."""
    found = []
    for name, one in label_ceiling(pairs, prior).items():
        if one.expected is None:
            continue
        text = f"{name}: {one.pairs:,} pairs, label ceiling {100 * one.expected:.1f} %"
        if one.true_order is not None:
            text += f"; the observed winner is the truly better one in {100 * one.true_order:.1f} %"
        found.append(text)
    return found

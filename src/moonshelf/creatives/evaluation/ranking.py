"""How good an order of creatives is against their rates: agreement, the pick, and what the pick costs.

Rates are true ones (a simulation) or observed ones, per creative id. Ties on either side are ties: tau is
tau-b, Spearman ranks ties by their mean, a tied first place counts by the share of its members that are best,
and its rate is their mean. A statistic that is not defined (all equal, a single creative) is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class RankingScore:
    """One campaign: the order against the rates. Regret is a share of the best rate, 0 for the best pick."""

    n: int
    kendall: float | None  # tau-b
    spearman: float | None
    top1: float  # 1 if the pick has the best rate
    picked_rate: float
    best_rate: float
    uniform_rate: float  # mean: what a random pick gives

    @property
    def regret(self) -> float:
        """Best-of-n regret, (best - picked) / best; 0 where all rates are 0."""
        return (self.best_rate - self.picked_rate) / self.best_rate if self.best_rate else 0.0

    @property
    def uniform_regret(self) -> float:
        """The same of a random pick."""
        return (self.best_rate - self.uniform_rate) / self.best_rate if self.best_rate else 0.0


def score_ranking(strengths: Mapping[str, float], rates: Mapping[str, float]) -> RankingScore:
    """Score the strengths of a ranking, or any scores, higher being better; ValueError for a missing rate."""
    names = sorted(strengths)  # so that the order in which creatives come changes no digit
    missing = [name for name in names if name not in rates]
    if missing or not names:
        raise ValueError(f"no rate of {missing[0]}" if missing else "no creatives")
    strength = np.array([strengths[name] for name in names], np.float64)
    rate = np.array([rates[name] for name in names], np.float64)
    if not (np.isfinite(strength).all() and np.isfinite(rate).all()):
        raise ValueError("a strength or a rate is not a number")
    first = strength == strength.max()
    constant = len(names) < 2 or np.ptp(strength) == 0 or np.ptp(rate) == 0
    return RankingScore(
        n=len(names),
        kendall=None if constant else float(stats.kendalltau(strength, rate).statistic),
        spearman=None if constant else float(stats.spearmanr(strength, rate).statistic),
        top1=float((rate[first] == rate.max()).mean()),
        picked_rate=float(rate[first].mean()),
        best_rate=float(rate.max()),
        uniform_rate=float(rate.mean()),
    )


def normalised_regret(scores: Sequence[RankingScore]) -> float:
    """Regret of the picks as a share of that of random picks, over campaigns; nan if there is none to avoid.

    1 is a random pick, 0 the best one (VAM-HBM prints it times 100).
    """
    random = sum(score.best_rate - score.uniform_rate for score in scores)
    picked = sum(score.best_rate - score.picked_rate for score in scores)
    return picked / random if random > 0 else math.nan

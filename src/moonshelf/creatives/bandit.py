"""A ranking as the prior of a bandit: where an A/B test begins, and how soon it may leave that behind.

Each creative gets a Beta(alpha, beta). Its mean follows the Bradley–Terry strength, base · exp(slope ·
strength), scaled so that the creatives' mean is the base rate; alpha + beta is a number of
pseudo-impressions, the same for all. Slope and weight are ours. Slope 0 is a flat prior, and a small weight
is soon overruled by clicks. A prior says where to begin; it is no forecast of a click-through rate.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from moonshelf.creatives.ranking import Floats, Ranking
from moonshelf.errors import UserError

MAX_SLOPE = 5.0
HIGHEST = 0.95  # a rate; keeps every Beta proper where strengths are extreme


class PriorScale(BaseModel):
    """What a unit of strength is worth on the log rate, and what the prior is worth in impressions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slope: float = Field(ge=0, le=MAX_SLOPE)
    weight: float = Field(gt=0)
    calibrated_on: str = ""  # data set and size; empty: not calibrated


# Ours, and cautious: one unit of log odds is worth a tenth of the rate, all of it 500 impressions.
UNCALIBRATED = PriorScale(slope=0.1, weight=500.0)


class ArmPrior(BaseModel):
    """Beta(alpha, beta) of one creative's click-through rate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    alpha: float = Field(gt=0)
    beta: float = Field(gt=0)

    @property
    def mean(self) -> float:
        return self.alpha / (self.alpha + self.beta)


class BanditPrior(BaseModel):
    """Priors of a campaign's creatives, in the order of the ranking; JSON there and back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    campaign_id: str
    source: str = ""
    judge: str = ""
    base_rate: float = Field(gt=0, lt=1)
    scale: PriorScale
    arms: tuple[ArmPrior, ...]
    note: str = "A starting point for allocation; not a forecast of click-through rates."


def prior_means(strengths: Floats, base_rate: float, slope: float) -> Floats:
    """(n,) mean rates: base · exp(slope · strength), scaled to a mean of `base_rate`, at most `HIGHEST`."""
    raised = np.exp(slope * (strengths - strengths.max()))
    return np.minimum(base_rate * raised / raised.mean(), HIGHEST)


def bandit_prior(ranking: Ranking, *, base_rate: float, scale: PriorScale = UNCALIBRATED) -> BanditPrior:
    """Beta priors of the ranked creatives; `base_rate` is the usual rate of the slot. Raises UserError."""
    if not 0 < base_rate < 1:
        raise UserError(f"the base rate is {base_rate}: give a click-through rate between 0 and 1, as 0.02")
    means = prior_means(np.array([ranking.strengths[name] for name in ranking.order]), base_rate, scale.slope)
    return BanditPrior(
        campaign_id=ranking.campaign_id,
        source=ranking.source,
        judge=ranking.judge,
        base_rate=base_rate,
        scale=scale,
        arms=tuple(
            ArmPrior(id=name, alpha=float(mean * scale.weight), beta=float((1 - mean) * scale.weight))
            for name, mean in zip(ranking.order, means, strict=True)
        ),
    )

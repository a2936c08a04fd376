"""Recipes of the selector's two stages: `creative-sft` (CoT-SFT) and `creative-grpo` (Reason-to-Select).

YAML with flags on top, as for the embedding model. Weights and constants are ours unless a line names a
precedent; Creative4U states the two stages and none of their numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moonshelf.creatives.prompt import CreativePrompt
from moonshelf.training.recipe import Run


class PairSource(BaseModel):
    """Where pairs come from: a file or folder that `read_creatives` takes, or `sample`, the package's own."""

    model_config = ConfigDict(extra="forbid")

    feed: Path


class _Selector(Run):
    """What both stages share."""

    sources: list[PairSource]
    validation: PairSource | None = None
    validation_pairs: int = Field(default=200, ge=1)
    warmup: float = Field(default=20, ge=0)
    order_weight: float = Field(default=0.0, ge=0)  # disagreement of the two orders, see `policy.order_gap`
    # Shares of pairs that are shown without the words on them, and with words beside the point.
    no_overlays: float = Field(default=0.25, ge=0, le=1)
    distractors: float = Field(default=0.0, ge=0, le=1)
    trained_on: str = ""  # said wherever figures of the selector appear


class SftRecipe(_Selector):
    """CoT-SFT: every pair in both orders with mirrored reasons."""

    stage: Literal["creative-sft"] = "creative-sft"
    base: str = "starter"  # embedding model whose backbone is adapted; or folder or hub id of a stock Qwen-VL
    selector: str | None = None  # selector to go on from, adapter and all
    out: str = "runs/creative-sft"
    prompt: CreativePrompt = CreativePrompt()
    pairs: int = Field(default=16, ge=1)  # a step and process; each is two rows
    lr: float = 1e-3
    describe_steps: int = Field(default=0, ge=0)  # first steps: one creative a row, its side of the reasons
    describe_every: int = Field(default=0, ge=0)  # … and later one step in so many, where it is not 0
    # Share of the budget after which answers follow the model's own words, one step in so many: RGE's lesson.
    self_generated_from: float = Field(default=0.6, ge=0, le=1)
    self_generated_every: int = Field(default=4, ge=1)


class GrpoRecipe(_Selector):
    """Reason-to-Select: GRPO over the reasons, the answer's log loss beside it."""

    stage: Literal["creative-grpo"] = "creative-grpo"
    model: str  # selector that CoT-SFT made
    out: str = "runs/creative-grpo"
    pairs: int = Field(default=8, ge=1)  # a step and process; each is asked in both orders
    rollouts: int = Field(default=4, ge=2)  # an ask (G)
    accumulate: int = Field(default=1, ge=1)
    sampling_temperature: float = Field(default=1.0, gt=0)
    lr: float = 1e-4
    beta: float = Field(default=0.02, ge=0)  # KL to the SFT selector
    grpo_weight: float = Field(default=1.0, ge=0)
    self_generated_every: int = Field(default=3, ge=1)  # one pair in so many is compared by its own words
    compare_pairs: int = Field(default=0, ge=0)  # for each pair so many more that are compared by words alone
    describe_pairs: int = Field(default=0, ge=0)  # … and so many whose known descriptions are taught
    cot_weight: float = Field(default=0.0, ge=0)  # cross-entropy of known reasons, see `grpo`
    rewards: dict[str, float] = Field(
        default={"format": 0.5, "verdict": 2.0, "consistency": 0.5, "claims": 1.0}
    )

    @model_validator(mode="after")
    def _weighed(self) -> GrpoRecipe:
        if self.describe_pairs and not self.cot_weight:
            raise ValueError("describe_pairs are taught with the weight cot_weight, which is 0")
        return self


STAGES: dict[str, type[Run]] = {"creative-sft": SftRecipe, "creative-grpo": GrpoRecipe}

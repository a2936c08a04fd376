"""Recipes: everything that a training run depends on, as YAML with flags on top.

One recipe runs one stage: `cold-start` (`Recipe`) or `joint` (`JointRecipe`). Weights and constants are ours
unless a line names a precedent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moonshelf.errors import UserError
from moonshelf.model.precision import Precision
from moonshelf.prompts import PromptSpec
from moonshelf.training.data import SourceSpec, renamed

RENAMED = {  # fields of recipes: old name -> new name
    "warmup_steps": "warmup", "queue": "memory", "queue_from": "memory_from", "asides": "distractors",
    "reasoned_from": "self_generated_from", "gap_weight": "order_weight", "own_from": "self_generated_from",
    "own_every": "self_generated_every",
}  # fmt: skip


class Lora(BaseModel):
    """Low-rank adapters on the language model's linear layers; they are merged into what is saved."""

    model_config = ConfigDict(extra="forbid")

    r: int = Field(default=16, ge=1)  # VLM2Vec-V2
    alpha: int = 32
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    vision: tuple[str, ...] = ()  # layers of the tower too: qkv, proj, linear_fc1, linear_fc2 of a Qwen3-VL
    quantise: bool = False  # QLoRA: four-bit weights under the adapters, needs bitsandbytes


class Run(BaseModel):
    """What all stages share."""

    model_config = ConfigDict(extra="forbid")

    validate_every: int = Field(default=400, ge=1)
    patience: int | None = Field(default=None, ge=1)  # stop after so many validations without a better one
    out: str
    save_every: int = Field(default=200, ge=1)
    seed: int = 0
    steps: int = Field(default=3000, ge=1)
    minutes: float | None = Field(default=None, gt=0)  # wall-clock budget; whichever ends first
    warmup: float = Field(default=10, ge=0)  # steps; below 1 a share of the budget
    weight_decay: float = 0.05
    clip: float = Field(default=1.0, gt=0)
    precision: Precision = "auto"
    checkpointing: bool = False  # recompute activations in the backward pass: less memory, a third more time
    lora: Lora | None = None
    # Parameters whose names start so are not trained, e.g. backbone.model.visual.
    freeze: tuple[str, ...] = ()
    download: bool = False  # a hub id may be fetched; without it nothing leaves the machine
    report_to: tuple[str, ...] | None = None  # tensorboard, wandb, trackio; None: TensorBoard if installed

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        return renamed(values, RENAMED)


class _Products(Run):
    """What both stages of the embedding model share."""

    sources: list[SourceSpec]
    validation: str | None = None  # feed of held-out products, for figures, the best checkpoint, early stop
    validation_items: int = Field(default=400, ge=1)
    memory: int = Field(default=512, ge=0)  # items of past steps that are negatives too


class Recipe(_Products):
    """A cold-start run. Every field is also a flag of `moonshelf train`."""

    stage: Literal["cold-start"] = "cold-start"
    model: str | None = None  # Moonshelf folder, or `starter`, to go on from; its head and prompt are kept
    backbone: str | None = None  # folder or hub id of a Qwen-VL; neither of the two builds a starter
    tower: str | None = None  # weights for a new starter's vision tower
    out: str = "runs/cold-start"
    batch: int = Field(default=64, ge=1)
    # Products a forward pass; less than batch: gradient caching.
    chunk: int | None = Field(default=None, ge=1)
    memory_from: float = Field(default=0.2, ge=0, le=1)  # share of the budget after which it is used
    warmup: float = Field(default=0.03, ge=0)
    lr: float = 1e-3
    vision_lr: float = 5e-4
    head_lr: float | None = None  # fusion, FIRE and projection; None: as lr
    temperature: float = Field(default=0.07, gt=0)  # CLIP's start
    learn_temperature: bool = True
    sft_weight: float = 1.0  # LREM uses 0.1 on a pretrained model; a starter has yet to learn to write
    intra_weight: float = 1.0  # title <-> picture of one product, MOON2.0's largest effect
    # Share of the budget after which the model's own rationales join.
    self_generated_from: float = Field(default=0.25, ge=0, le=1)
    label_weight: float = Field(default=0.0, ge=0)  # product <-> its value among all values of a key
    texts: str | None = None  # Parquet of `text` and `vector`: what a sentence encoder says of product texts
    texts_batch: int = Field(default=128, ge=2)  # of them, a step
    texts_weight: float = Field(default=1.0, ge=0)
    views: int = Field(default=0, ge=0)  # fixed crops of a picture, whose features a frozen tower gives once
    vocabulary: int = 6144
    hidden: int = 256
    layers: int = 4
    vision_hidden: int = 192
    vision_depth: int = 6
    fusion: bool = True
    fire: bool = True
    prompt: PromptSpec = PromptSpec()

    @model_validator(mode="after")
    def _one_start(self) -> Recipe:
        if self.model and (self.backbone or self.tower):
            raise ValueError("model goes on from a Moonshelf folder: leave backbone and tower away")
        frozen = any("backbone.model.visual".startswith(name) for name in self.freeze)
        if self.views and (not frozen or self.views < 2):
            raise ValueError("views wants two crops or more and a tower in freeze: backbone.model.visual")
        return self


class JointRecipe(_Products):
    """A joint run: contrastive learning and GRPO. Every field is also a flag of `moonshelf train`."""

    stage: Literal["joint"] = "joint"
    model: str  # folder of the cold start
    out: str = "runs/joint"
    products: int = Field(default=16, ge=1)  # a step and process
    rollouts: int = Field(default=8, ge=2)  # a product (G); LREM and UME-R1 use 8
    accumulate: int = Field(default=1, ge=1)  # slices that the rollouts of a step are scored in: less memory
    sampling_temperature: float = Field(default=1.0, gt=0)
    lr: float = 1e-6  # LREM; a starter takes more
    beta: float = Field(default=0.0, ge=0)  # weight of the KL to the cold start
    grpo_weight: float = Field(default=1.0, ge=0)  # LREM
    contrastive_weight: float = Field(default=0.1, ge=0)  # LREM
    intra_weight: float = Field(default=1.0, ge=0)  # title <-> picture, a share of the contrastive part
    temperature: float = Field(default=0.05, gt=0)  # of InfoNCE, fixed
    # LREM's, and the last one, which is ours.
    rewards: dict[str, float] = {"format": 0.5, "length": 0.2, "retrieval": 1.0, "attributes": 1.0}
    mode: Literal["joint", "alternate"] = "joint"  # both losses at each step, or in turn


STAGES: dict[str, type[Recipe] | type[JointRecipe]] = {"cold-start": Recipe, "joint": JointRecipe}


def load_recipe(path: Path, stages: Mapping[str, type[Any]] = STAGES, **overrides: Any) -> Any:
    """A recipe from YAML with flags on top, of the stage that it names (`Recipe`, `JointRecipe` …).

    A wrong field is one clear `UserError`.
    """
    try:
        values = yaml.safe_load(path.read_text())
        values = {**values, **overrides}
        stage = values.get("stage", "cold-start")
        if stage not in stages:
            raise UserError(f"recipe {path}: there is no stage {stage!r}: choose from {', '.join(stages)}.")
        return stages[stage].model_validate(values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as error:
        raise UserError(f"recipe {path} cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"recipe {path}: field {field!r}: {first['msg']}.") from None

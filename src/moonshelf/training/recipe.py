"""Recipes: everything that a training run depends on, as YAML with flags on top.

One recipe runs one stage. Weights and constants are ours unless a line names a precedent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moonshelf.errors import UserError
from moonshelf.prompts import PromptSpec
from moonshelf.training.data import QUERY_MIX, SourceSpec
from moonshelf.training.precision import Precision


class Recipe(BaseModel):
    """A cold-start run. Every field is also a flag of `moonshelf train`."""

    model_config = ConfigDict(extra="forbid")

    stage: Literal["cold-start"] = "cold-start"
    backbone: str | None = None  # folder or hub id of a Qwen-VL; None builds a starter
    tower: str | None = None  # weights for a new starter's vision tower
    sources: list[SourceSpec]
    validation: str | None = None
    out: str = "runs/starter"
    seed: int = 0
    steps: int = Field(default=3000, ge=1)
    minutes: float | None = None  # wall-clock budget; the schedule follows whichever ends first
    batch: int = Field(default=64, ge=2)
    precision: Precision = "auto"
    query_mix: tuple[float, float, float] = QUERY_MIX  # image, text, multimodal
    queue: int = Field(default=512, ge=0)  # items of past steps that are negatives too
    queue_from: float = 0.2  # share of the budget after which they are
    lr: float = 1e-3
    vision_lr: float = 5e-4
    weight_decay: float = 0.05
    warmup: float = 0.03  # share of the budget
    clip: float = 1.0
    sft_weight: float = 1.0  # LREM uses 0.1 on a pretrained model; a starter has yet to learn to write
    text_weight: float = 0.3
    cross_weight: float = 0.5
    reasoned_from: float = 0.25  # share of the budget after which the model's own rationales are used
    vocabulary: int = 6144
    hidden: int = 256
    layers: int = 4
    vision_hidden: int = 192
    vision_depth: int = 6
    fusion: bool = True
    fire: bool = True
    save_every: int = 200
    validate_every: int = 400
    validation_items: int = 400
    prompt: PromptSpec = PromptSpec()


def load_recipe(path: Path, **overrides: Any) -> Recipe:
    """A recipe from YAML with flags on top; a wrong field is one clear `UserError`."""
    try:
        values = yaml.safe_load(path.read_text())
        return Recipe.model_validate({**values, **{k: v for k, v in overrides.items() if v is not None}})
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise UserError(f"recipe {path} cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"recipe {path}: field {field!r}: {first['msg']}.") from None


def flags(arguments: Sequence[str]) -> dict[str, Any]:
    """`--field value` pairs of the command line as recipe fields; values are read as YAML."""
    names, values = arguments[::2], arguments[1::2]
    wrong = [name for name in names if not name.startswith("--")]
    if wrong or len(names) != len(values):
        raise UserError(f"{(wrong or names)[-1]!r}: fields of a recipe are given as --field value.")
    return {
        name[2:].replace("-", "_"): yaml.safe_load(value) for name, value in zip(names, values, strict=True)
    }

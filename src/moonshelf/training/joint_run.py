"""Running the joint stage: from a recipe to a folder, with validation, budget, log and checkpoints.

The trainer is in `joint`, what stands around it in `trainer`. TRL's own checkpoints (in `OUT/trainer`) hold
what is trained as safetensors, and the optimiser as PyTorch saves it; they are read back as plain tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import PartialState
from trl import GRPOConfig

from moonshelf.model.modeling import MoonModel
from moonshelf.training.adapters import adapt, merged_state
from moonshelf.training.data import Sampler, SourceSpec, load_source, open_source, spread
from moonshelf.training.joint import JointTrainer
from moonshelf.training.pairs import Item
from moonshelf.training.recipe import JointRecipe
from moonshelf.training.tracking import Tracker, quiet_dependencies
from moonshelf.training.trainer import Watch, grpo_arguments, last_checkpoint
from moonshelf.training.validation import validate


def train_joint(recipe: JointRecipe, data: Path) -> Path:
    """Run the joint stage on a cold-started model; returns the folder of the best checkpoint."""
    quiet_dependencies()
    moon = MoonModel.from_pretrained(recipe.model, download=recipe.download).to(PartialState().device)
    sources = [open_source(spec, data, moon.fingerprint) for spec in recipe.sources]
    validation: list[Item] = []
    if recipe.validation:
        validation = spread(load_source(SourceSpec(feed=recipe.validation), data), recipe.validation_items)
    adapt(moon, recipe)
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.json").write_text(recipe.model_dump_json(indent=1))
    _, resumed = last_checkpoint(out / "trainer")
    tracker = Tracker(out, recipe.report_to, recipe.model_dump(mode="json"), out.name, resumed_step=resumed)
    trainer = JointTrainer(moon, recipe, Sampler(sources), arguments(recipe))

    def measure() -> dict[str, Any]:
        figures = validate(moon, validation)
        moon.train()
        return figures

    def export() -> None:
        moon.save_pretrained(out / "checkpoint", state=merged_state(moon))

    watch = Watch(trainer, tracker, "joint stage", measure if validation else None, export)
    moon.train()
    watch.train(out / "trainer")
    return out / "checkpoint"


def arguments(recipe: JointRecipe) -> GRPOConfig:
    """The recipe as TRL's arguments."""
    return grpo_arguments(recipe, recipe.products * recipe.rollouts)

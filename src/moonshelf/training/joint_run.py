"""Running the joint stage: from a recipe to a folder, with validation, budget, log and checkpoints.

The trainer is in `joint`; here is what stands around it. TRL's own checkpoints (in `OUT/trainer`) hold what
is trained as safetensors, and the optimiser as PyTorch saves it; they are read back as plain tensors only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig

from moonshelf.errors import UserError
from moonshelf.model.modeling import MoonModel
from moonshelf.training.adapters import adapt, merged_state
from moonshelf.training.data import Sampler, SourceSpec, load_source, open_source, spread
from moonshelf.training.joint import JointTrainer
from moonshelf.training.pairs import Item
from moonshelf.training.plot import plot
from moonshelf.training.recipe import JointRecipe
from moonshelf.training.tracking import Bar, Tracker, quiet_dependencies
from moonshelf.training.validation import validate


class Watch(TrainerCallback):
    """Validates, exports the best and the last model, keeps to the time budget, and writes the log."""

    def __init__(self, trainer: JointTrainer, validation: list[Item], tracker: Tracker) -> None:
        self.trainer, self.validation, self.tracker = trainer, validation, tracker
        self.moon, self.recipe = trainer.policy.moon, trainer.recipe
        self.out = Path(self.recipe.out)

        self.bar = Bar("joint stage", trainer.accelerator.is_main_process)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            memory = psutil.Process().memory_info().rss / 2**20
            self.tracker.log({**logs, "rss_mib": round(memory)}, state.global_step)
            share = self.trainer.share(state.global_step)
            self.bar.update(share, state.global_step, float(logs.get("loss", 0.0)))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        recipe = self.recipe
        if self.trainer.share(state.global_step) >= 1:
            control.should_training_stop = True
        last = control.should_training_stop or state.global_step >= state.max_steps
        if self.validation and (state.global_step % recipe.validate_every == 0 or last):
            figures = validate(self.moon, self.validation)
            self.moon.train()
            if state.is_world_process_zero:
                self.tracker.log(figures, state.global_step)
            tally = self.trainer.tally
            if figures.get("score", 0.0) > tally.best:
                tally.best, tally.stale = figures.get("score", 0.0), 0
                if state.is_world_process_zero:
                    export(self.moon, self.out / "checkpoint")
            else:
                tally.stale += 1
            if recipe.patience and tally.stale >= recipe.patience:
                control.should_training_stop = True
        return control


def export(moon: MoonModel, folder: Path) -> None:
    """A Moonshelf folder of the model as it is, adapters merged."""
    moon.save_pretrained(folder, state=merged_state(moon))


def train_joint(recipe: JointRecipe, data: Path) -> Path:
    """Run the joint stage on a cold-started model; returns the folder of the best checkpoint."""
    quiet_dependencies()
    moon = MoonModel.from_pretrained(recipe.model).to(PartialState().device)
    sources = [open_source(spec, data, moon.fingerprint) for spec in recipe.sources]
    validation: list[Item] = []
    if recipe.validation:
        validation = spread(load_source(SourceSpec(feed=recipe.validation), data), recipe.validation_items)
    adapt(moon, recipe)
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.json").write_text(recipe.model_dump_json(indent=1))
    last = get_last_checkpoint(out / "trainer") if (out / "trainer").is_dir() else None
    resumed = int(last.rsplit("-", 1)[1]) if last else 0
    tracker = Tracker(out, recipe.report_to, recipe.model_dump(mode="json"), out.name, resumed_step=resumed)
    trainer = JointTrainer(moon, recipe, Sampler(sources), arguments(recipe))
    trainer.remove_callback(PrinterCallback)
    watch = Watch(trainer, validation, tracker)
    trainer.add_callback(watch)
    moon.train()
    with watch.bar:
        trainer.train(resume_from_checkpoint=last)
    if trainer.accelerator.is_main_process and not validation:
        export(moon.eval(), out / "checkpoint")
    tracker.close()
    if trainer.accelerator.is_main_process:
        plot(out / "log.jsonl")
    return out / "checkpoint"


def arguments(recipe: JointRecipe) -> GRPOConfig:
    """The recipe as TRL's arguments; precision and reporting are ours, telemetry is off."""
    rows = recipe.products * recipe.rollouts
    if rows % recipe.accumulate:
        raise UserError(f"accumulate ({recipe.accumulate}) must divide products x rollouts ({rows}).")
    return GRPOConfig(
        output_dir=str(Path(recipe.out) / "trainer"),
        per_device_train_batch_size=rows // recipe.accumulate,
        gradient_accumulation_steps=recipe.accumulate,
        steps_per_generation=recipe.accumulate,
        num_generations=recipe.rollouts,
        use_bias_correction_kl=False,  # GRPO's own KL
        max_completion_length=256,  # of no effect: the engine keeps to the prompt's limit
        temperature=recipe.sampling_temperature,
        loss_type=recipe.loss_type,
        beta=0.0,  # the trainer sets it afterwards: TRL would load a reference by name
        max_steps=recipe.steps,
        learning_rate=recipe.lr,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        seed=recipe.seed,
        save_steps=recipe.save_every,
        save_total_limit=1,
        logging_steps=1,
        report_to="none",
        bf16=False,
        gradient_checkpointing=False,  # `adapt` has seen to it; TRL's default is to
        remove_unused_columns=False,
        shuffle_dataset=False,
        disable_dropout=False,
        disable_tqdm=True,  # the bar is ours: it knows the time budget
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        multi_objective_aggregation="sum_then_normalize",
    )

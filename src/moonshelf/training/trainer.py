"""What every trainer here adds to Hugging Face's and TRL's: a budget, own checkpoints, and an alarm.

`Budgeted` goes on top of a `Trainer`: the learning rate follows a share of the step or time budget, whichever
is used up first, and checkpoints hold what is trained as safetensors. `RolloutTrainer` is TRL's GRPOTrainer
for a policy whose one forward pass scores rollouts that our engine wrote; it logs each reward and stops with
a sentence when the rewards have collapsed. What a rollout is, and what it earns, is for its subclasses:
`joint.JointTrainer` and `creatives.reason_to_select.VerdictTrainer`.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import psutil
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from moonshelf.errors import UserError
from moonshelf.memory import keep_freed
from moonshelf.training.adapters import without_lora
from moonshelf.training.tracking import Bar, Tracker

COLLAPSED_AFTER = 25  # steps in a row without a signal


class Written(Protocol):
    """A rollout: what the model wrote between its tags, and whether it closed it itself."""

    ids: list[int]
    closed: bool


class Budgeted:
    """Mixed into a Trainer: schedule by `recipe.steps` and `recipe.minutes`, checkpoints of `policy`."""

    recipe: Any
    policy: Any
    args: Any
    lr_scheduler: Any
    optimizer: Any
    state: Any
    clock: Clock
    tally: Tally

    def share(self, step: int) -> float:
        """Share of the step or time budget, whichever is used up first."""
        minutes = self.recipe.minutes
        return max(step / self.recipe.steps, self.clock.spent / (60 * minutes) if minutes else 0.0)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Linear warm-up, then a cosine over the budget, as in the cold start."""
        warm = self.recipe.warmup_steps

        def rate(step: int) -> float:
            falling = 0.5 * (1 + math.cos(math.pi * min(1.0, self.share(step))))
            return min(1.0, (step + 1) / (warm + 1)) * max(0.01, falling)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(cast(Any, optimizer or self.optimizer), rate)
        return self.lr_scheduler

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """What is trained, for resuming; a Moonshelf folder is exported by `export`."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        trained = {n: p.detach().contiguous() for n, p in self.policy.named_parameters() if p.requires_grad}
        state = {"spent": self.clock.spent, "best": self.tally.best, "stale": self.tally.stale}
        save_file(trained, folder / "trained.safetensors", metadata={"state": json.dumps(state)})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        parameters = dict(self.policy.named_parameters())
        with safe_open(Path(resume_from_checkpoint) / "trained.safetensors", "pt") as file, torch.no_grad():
            state = json.loads(file.metadata()["state"])
            self.clock.before, self.tally = state["spent"], Tally(state["best"], state["stale"])
            for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                parameters[name].copy_(file.get_tensor(name))

    def _finite(self, loss: Tensor) -> Tensor:
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is not finite at step {self.state.global_step}: lower lr and resume from the last "
                "checkpoint."
            )
        return loss

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: a Moonshelf folder has its own."""


class RolloutTrainer(Budgeted, GRPOTrainer):
    """One process's share of a GRPO run on our own engine's rollouts; rows are rollouts, groups are whole."""

    def __init__(
        self,
        policy: Any,
        recipe: Any,
        rewards: Mapping[str, Callable[..., Any]],
        args: GRPOConfig,
        processor: Any,
    ) -> None:
        unknown = sorted(set(recipe.rewards) - set(rewards))
        if unknown or not recipe.rewards:
            raise UserError(f"rewards: {unknown or 'none'} given; there are {', '.join(rewards)}.")
        self.recipe, self.policy = recipe, policy
        self._scored: Any  # one pass over a slice of the rollouts
        self.clock, self.tally = Clock(), Tally()
        self._silent = 0  # steps in a row in which no group told its rollouts apart
        slots = (
            recipe.steps
            * args.world_size
            * (args.per_device_train_batch_size * args.gradient_accumulation_steps // recipe.rollouts)
        )  # one row a prompt and step; what it stands for is drawn from seed and step when it is due
        super().__init__(
            model=policy,
            reward_funcs=[rewards[name] for name in recipe.rewards],
            args=args,
            train_dataset=Dataset.from_dict({"prompt": [""] * slots, "slot": range(slots)}),
            processing_class=processor,
        )
        # TRL replaces the forward of the model that it is given by one that returns only log-probabilities.
        self.policy.__dict__.pop("forward", None)
        self.reward_func_names = list(recipe.rewards)
        self.beta = recipe.beta
        self._reference: Any = None
        if recipe.beta and not recipe.lora:
            self._reference = copy.deepcopy(policy).eval().requires_grad_(False)

    def _tensors(self, written: Sequence[Written]) -> dict[str, Any]:
        """Completions as TRL pads them; a closing token that was forced is external to the policy."""
        prepare, device = self.policy.moon.prepare, self.accelerator.device
        bodies = [torch.tensor([*w.ids, prepare.end_think]) for w in written]
        ids = torch.nn.utils.rnn.pad_sequence(bodies, batch_first=True, padding_value=prepare.pad)
        lengths = torch.tensor([len(body) for body in bodies])
        mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
        own = mask.clone()
        for r, w in enumerate(written):
            if not w.closed:
                own[r, lengths[r] - 1] = 0
        start = torch.full((len(written), 1), prepare.think)
        return {
            "prompt_ids": start.to(device), "prompt_mask": torch.ones_like(start).to(device),
            "completion_ids": ids.to(device), "completion_mask": mask.to(device), "tool_mask": own.to(device),
            "num_items_in_batch": self.accelerator.gather(own.sum().to(device)).sum(),
        }  # fmt: skip

    @torch.no_grad()
    def _reference_logps(self, score: Callable[[Any], Any]) -> Tensor:
        """Log-probabilities of the rollouts under the policy as it was before this stage."""
        with without_lora(self.policy) if self._reference is None else nullcontext():
            return score(self._reference or self.policy).logps

    def _log_rewards(self, found: Tensor, grouped: Tensor) -> None:
        """Every reward, groups without spread, answers that earn for their form alone; and the alarm."""
        metrics = self._metrics["train" if self.policy.training else "eval"]
        for i, name in enumerate(self.recipe.rewards):
            metrics[f"rewards/{name}"].append(found[:, i].nanmean().item())
        metrics["reward"].append(grouped.mean().item())
        flat = (grouped.std(1) < 1e-6).float().mean().item()
        metrics["zero_spread_groups"].append(flat)
        names = list(self.recipe.rewards)
        formed = 1.0
        if "format" in names:
            valid = found[:, names.index("format")] > 0
            formed = valid.float().mean().item()
            if "attributes" in names:
                nothing = found[:, names.index("attributes")] <= 0
                metrics["format_only"].append((valid & nothing).float().mean().item())
        why = ""
        if formed < 0.02:
            why = "no rationale keeps its format"
        elif flat > 0.98:
            why = "all rollouts of a product earn the same"
        self._silent = self._silent + 1 if why else 0
        if self._silent >= COLLAPSED_AFTER:
            raise UserError(
                f"the rewards have collapsed: for {COLLAPSED_AFTER} steps {why}. Go back to a checkpoint and "
                "lower lr, raise beta or sampling_temperature, or train the cold start longer."
            )

    def _get_per_token_logps_and_entropies(
        self, model: Any, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, None]:
        return self._scored.logps, self._scored.entropies, None


class Watch(TrainerCallback):
    """Validates, exports the best model, keeps to the time budget, and writes the log.

    `measure` gives the figures of a validation, with a `score` that checkpoints are chosen by; None: there is
    none, and `train` exports the last model. `export` writes the model as it is.
    """

    def __init__(
        self,
        trainer: Any,
        tracker: Tracker,
        name: str,
        measure: Callable[[], dict[str, Any]] | None,
        export: Callable[[], None],
    ) -> None:
        self.trainer, self.tracker, self.measure, self.export = trainer, tracker, measure, export
        self.recipe = trainer.recipe
        self.bar = Bar(name, trainer.accelerator.is_main_process)

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
        if self.measure and (state.global_step % recipe.validate_every == 0 or last):
            figures = self.measure()
            if state.is_world_process_zero:
                self.tracker.log(figures, state.global_step)
            tally = self.trainer.tally
            if figures.get("score", 0.0) > tally.best:
                tally.best, tally.stale = figures.get("score", 0.0), 0
                if state.is_world_process_zero:
                    self.export()
            else:
                tally.stale += 1
            if recipe.patience and tally.stale >= recipe.patience:
                control.should_training_stop = True
        return control

    def train(self, folder: Path) -> None:
        """Run the trainer, from its last checkpoint in `folder` if there is one."""
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.add_callback(self)
        keep_freed()
        with self.bar:
            self.trainer.train(resume_from_checkpoint=last_checkpoint(folder)[0])
        if self.trainer.accelerator.is_main_process and not self.measure:
            self.export()
        self.tracker.close()


def last_checkpoint(folder: Path) -> tuple[str | None, int]:
    """A trainer's last checkpoint and its step; None and 0 where there is none."""
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    return last, int(last.rsplit("-", 1)[1]) if last else 0


def trainer_arguments(recipe: Any) -> dict[str, Any]:
    """What every stage tells Hugging Face's trainer; precision and reporting are ours, telemetry is off."""
    return {
        "output_dir": str(Path(recipe.out) / "trainer"),
        "max_steps": recipe.steps,
        "learning_rate": recipe.lr,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.clip,
        "seed": recipe.seed,
        "save_steps": recipe.save_every,
        "save_total_limit": 1,
        "logging_steps": 1,
        "report_to": "none",
        "bf16": False,
        "gradient_checkpointing": False,  # `adapt` has seen to it; TRL's default is to
        "remove_unused_columns": False,
        "disable_tqdm": True,  # the bar is ours: it knows the time budget
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def grpo_arguments(recipe: Any, rows: int) -> GRPOConfig:
    """The same for TRL, for a stage of `rows` rollouts a step and process."""
    if rows % recipe.accumulate:
        raise UserError(f"accumulate ({recipe.accumulate}) must divide the {rows} rollouts of a step.")
    return GRPOConfig(
        **trainer_arguments(recipe),
        per_device_train_batch_size=rows // recipe.accumulate,
        gradient_accumulation_steps=recipe.accumulate,
        steps_per_generation=recipe.accumulate,
        num_generations=recipe.rollouts,
        use_bias_correction_kl=False,  # GRPO's own KL
        max_completion_length=256,  # of no effect: the engine keeps to the prompt's limit
        temperature=recipe.sampling_temperature,
        loss_type=recipe.loss_type,
        beta=0.0,  # the trainer sets it afterwards: TRL would load a reference by name
        shuffle_dataset=False,
        disable_dropout=False,
        multi_objective_aggregation="sum_then_normalize",
    )


@dataclass
class Tally:
    """The best validation score so far, and how many validations have passed without a better one."""

    best: float = -1.0
    stale: int = 0


class Clock:
    """Seconds that a run has taken, those before a resume included."""

    def __init__(self) -> None:
        self.before, self.began = 0.0, time.monotonic()

    @property
    def spent(self) -> float:
        return self.before + time.monotonic() - self.began

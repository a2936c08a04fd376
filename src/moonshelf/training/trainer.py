"""The one trainer: Hugging Face's, with a time budget, and checkpoints of the weights that learn.

Resuming, early stop, clipping, several processes and reports are `transformers.Trainer`'s; only its public
methods are overridden. A stage is a subclass that says what a step draws (`draw`), and what it costs
(`losses`, which runs its own backward passes, so that a batch can be read in parts):

    cold_start.ColdStart                          contrastive learning and the likelihood of rationales
    rollouts.RolloutTrainer  <- joint.JointTrainer, creatives' GRPO
    creatives' CoT-SFT
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from moonshelf.errors import UserError
from moonshelf.memory import keep_freed
from moonshelf.model.precision import resolve
from moonshelf.training.data import say
from moonshelf.training.recipe import Run

WEIGHTS, STATE = "model.safetensors", "trainer_state.json"  # Hugging Face's names


def this_process() -> PartialState:
    """Where this process computes, and how many there are."""
    return PartialState(cpu=not torch.cuda.is_available())


class Stage(nn.Module):
    """What is trained, as one module for DDP and FSDP to wrap."""

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Take over the weights that are there: a checkpoint lacks those that do not learn."""
        keys = super().load_state_dict(state_dict, strict=False, assign=assign)
        return type(keys)([], [])


class StageTrainer(Trainer):
    """Base of all stages. `recipe` says how long, and where to; `validation` holds what is kept back.

    Checkpoints lie in `OUT/trainer`, the best model by `score` of `measure` in `OUT/checkpoint` (the last one
    where nothing is kept back), and every figure in `OUT/log.jsonl`.
    """

    betas = (0.9, 0.999)
    model: Any  # Hugging Face allows for none
    eval_dataset: Any

    def __init__(self, module: Stage, recipe: Any, validation: Sequence[Any] = ()) -> None:
        self.recipe, self.out = recipe, Path(recipe.out)
        if (self.out / "trainer.safetensors").exists():
            raise UserError(f"{self.out} holds a run that an earlier version began: give another --out.")
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "recipe.json").write_text(recipe.model_dump_json(indent=1))
        self.spent, self.began = 0.0, time.monotonic()  # seconds, those before a resume included
        self.figures: dict[str, Any] = {}  # of the last step, for the log
        self.checkpoint = last_checkpoint(self.out / "trainer")
        watching: list[TrainerCallback] = [_Budget(self), *_reporters(recipe, self.out, self.checkpoint)]
        if recipe.patience and validation:
            watching.append(EarlyStoppingCallback(recipe.patience))
        if sys.stderr.isatty():
            watching.append(_Progress())
        super().__init__(
            model=module, args=_arguments(recipe, bool(validation)), eval_dataset=list(validation) or None,
            callbacks=watching,
        )  # fmt: skip
        self.remove_callback(PrinterCallback)

    # ---- what a stage says ------------------------------------------------------------------------

    def draw(self, step: int, share: float) -> Any:
        """The prepared batch of a step, of this process; called one step ahead, in a second thread."""
        raise NotImplementedError

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Weighted terms of the step's loss; their gradients have been accumulated."""
        raise NotImplementedError

    def measure(self) -> dict[str, Any]:
        """Figures on what is kept back; the best model is the one with the highest `score`."""
        raise NotImplementedError

    def export(self) -> None:
        """Write the model as it is to `OUT/checkpoint`."""
        raise NotImplementedError

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values beyond weights and optimiser that a killed run needs to go on."""
        return {}, {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take over what `extra_state` gave."""

    # ---- one run ----------------------------------------------------------------------------------

    @property
    def module(self) -> Any:
        """What `losses` calls: wrapped where several processes share the work."""
        return self.model_wrapped if self.accelerator.num_processes > 1 else self.model

    def share(self, step: int) -> float:
        """Share of the step or time budget that is used up, 0 to 1, whichever is further."""
        minutes = self.recipe.minutes
        return min(1.0, max(step / self.recipe.steps, self.spent / (60 * minutes) if minutes else 0.0))

    def train(self, *_: Any, **__: Any) -> None:  # type: ignore[override]
        """Run to the end of the budget, from the last checkpoint if there is one."""
        keep_freed()
        step = self._resume() if self.checkpoint else 0
        if self.args.should_save:
            _cut(self.out / "log.jsonl", step)
            if step:
                print(f"going on from step {step:,}")
        self.began = time.monotonic() - self.spent
        if self.share(step) < 1:
            super().train(resume_from_checkpoint=self.checkpoint)
        self.model.eval()

    def get_train_dataloader(self) -> Any:
        """Batches of the steps to come. Each follows from seed and step, so resuming needs no skipping."""

        def batches() -> Iterator[dict[str, Any]]:
            with ThreadPoolExecutor(max_workers=1, thread_name_prefix="moonshelf-data") as pool:

                def submit(step: int) -> Any:
                    return pool.submit(self.draw, step, self.share(step))

                ahead = submit(self.state.global_step)
                for step in count(self.state.global_step + 1):
                    ready = ahead.result()
                    if step < self.recipe.steps:
                        ahead = submit(step)
                    yield {"batch": ready}

        return batches()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One batch, forwards and backwards."""
        self.model.train()
        self.figures = {"share": round(self.share(self.state.global_step), 4)}
        terms = self.losses(inputs["batch"])
        if not all(torch.isfinite(term) for term in terms.values()):
            raise UserError(
                f"the loss is not finite at step {self.state.global_step}: lower lr and start again; "
                "the last checkpoint is kept."
            )
        terms = {name: term.detach().float() for name, term in terms.items()}
        self.figures |= {name: round(float(term), 4) + 0.0 for name, term in terms.items()}
        return torch.stack(list(terms.values())).sum().to(self.args.device)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure on what is kept back; the best model so far is exported."""
        self.model.eval()
        figures = gather_object([self.measure()])[0]  # the first process's, so that all decide alike
        self.model.train()
        self.log(figures)
        score = figures.get("score", 0.0)
        best = self.state.best_metric
        if (best is None or score > best) and self.args.should_save:
            self.export()
        metrics = {"eval_score": score}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control.should_save |= self.control.should_training_stop  # patience is at its end
        return metrics

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """One line of `log.jsonl`, and its numbers to what the recipe reports to."""
        if "train_runtime" in logs:  # Hugging Face's closing summary
            return
        rss = round(psutil.Process().memory_info().rss / 2**20)
        logs = {**logs, **self.figures, "seconds": round(self.spent, 1), "rss_mib": rss}
        self.figures = {}
        if self.args.should_save:
            with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
                line = {"step": self.state.global_step} | {k: _finite(v) for k, v in logs.items()}
                file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        super().log({k: v for k, v in logs.items() if isinstance(v, int | float)}, start_time)
        self.state.log_history.clear()  # it would be written anew with every checkpoint

    # ---- optimiser --------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; the tower and the head may have rates of their own, vectors and scalars do not decay."""
        r = self.recipe
        rates = {".visual.": getattr(r, "vision_lr", None), "head.": getattr(r, "head_lr", None)}
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in (model or self.model).named_parameters():
            if parameter.requires_grad:
                own = [rate for part, rate in rates.items() if rate is not None and part in f".{name}"]
                rate, decay = own[0] if own else r.lr, r.weight_decay if parameter.ndim > 1 else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
        described = [
            {"params": groups[rate, decay], "lr": rate, "weight_decay": decay}
            for rate, decay in sorted(groups)
        ]
        self.optimizer = torch.optim.AdamW(described, betas=self.betas, fused=True)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Linear warm-up, then a cosine, over whichever budget is used up first."""
        warmup = self.recipe.warmup

        def rate(step: int) -> float:
            share = self.share(step)
            ramp = 1.0
            if warmup:
                ramp = share / warmup if warmup < 1 else (step + 1) / (warmup + 1)
            return max(0.01, min(1.0, ramp) * 0.5 * (1 + math.cos(math.pi * share)))

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(cast(Any, optimizer or self.optimizer), rate)
        return self.lr_scheduler

    # ---- checkpoints ------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What learns, and the stage's extra state, in one safetensors file; no pickle."""
        if not self.args.should_save:
            return
        if not self.eval_dataset:
            self.export()
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        tensors, values = self.extra_state()
        state = json.dumps({"spent": self.spent, **values})
        tensors = {f"extra.{name}": tensor.contiguous() for name, tensor in tensors.items()}
        save_file(self._learning() | tensors, folder / WEIGHTS, metadata={"state": state})

    def _learning(self) -> dict[str, Tensor]:
        return {n: p.detach().contiguous() for n, p in self.model.named_parameters() if p.requires_grad}

    def _resume(self) -> int:
        """Take over a checkpoint's extra state and time, if it is one of this recipe; its step."""
        assert self.checkpoint is not None
        with safe_open(Path(self.checkpoint) / WEIGHTS, "pt") as file:
            there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            here = {name: tuple(tensor.shape) for name, tensor in self._learning().items()}
            if here != {name: shape for name, shape in there.items() if not name.startswith("extra.")}:
                raise UserError(
                    f"{self.checkpoint} does not fit this recipe: give another --out, or delete the folder "
                    "to start anew."
                )
            values = json.loads(file.metadata()["state"])
            extra = {n.removeprefix("extra."): file.get_tensor(n) for n in there if n.startswith("extra.")}
        self.spent = values["spent"]
        self.restore(extra, values)
        return int(self.checkpoint.rsplit("-", 1)[1])


def summary(recipe: Run, model: nn.Module, step: str) -> None:
    """Say how long a run goes on, and how much of the model it trains."""
    every = list(model.parameters())
    trained = sum(p.numel() for p in every if p.requires_grad)
    limit = f", at most {recipe.minutes:g} minutes," if recipe.minutes else ""
    say(
        f"{recipe.steps:,} steps{limit} of {step}\n{trained / 1e6:,.2f} M of "
        f"{sum(p.numel() for p in every) / 1e6:,.2f} M parameters are trained, "
        f"in {resolve(recipe.precision, every[0].device)}"
    )


class _Budget(TrainerCallback):
    """Ends a run whose time is used up, with a last validation and a checkpoint."""

    def __init__(self, trainer: StageTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        spent = time.monotonic() - self.trainer.began
        # Clocks differ: all processes go by the first one's, or some would stop alone.
        self.trainer.spent = gather_object([spent])[0] if self.trainer.recipe.minutes else spent
        if self.trainer.share(state.global_step) >= 1:
            control.should_training_stop = control.should_save = True
            control.should_evaluate = bool(self.trainer.eval_dataset)


class _Progress(ProgressCallback):
    """The bar alone: what is logged at every step is in the log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


def _arguments(recipe: Run, validates: bool) -> TrainingArguments:
    """The recipe in Hugging Face's words. Precision is ours (`model.precision`), reports are callbacks."""
    return TrainingArguments(
        output_dir=str(Path(recipe.out) / "trainer"),
        max_steps=recipe.steps,
        max_grad_norm=recipe.clip,
        seed=recipe.seed,
        eval_strategy="steps" if validates else "no",
        eval_steps=recipe.validate_every,
        metric_for_best_model="score",
        greater_is_better=True,
        save_steps=recipe.save_every,
        save_total_limit=2,  # with 1, Trainer ends by deleting the last one for the best one
        logging_steps=1,
        log_level="error",  # early stop would warn that the best model is not loaded
        logging_nan_inf_filter=False,
        ignore_data_skip=True,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=True,  # no rationale enters the fusion of a direct vector
        report_to="none",
        run_name=Path(recipe.out).name,
        project="moonshelf",  # trackio's; nothing of it leaves the machine
        trackio_static_space_id=False,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )


def _reporters(recipe: Run, out: Path, checkpoint: str | None) -> list[TrainerCallback]:
    """Hugging Face's callbacks for `report_to`; None means TensorBoard if it is installed.

    W&B stays offline unless WANDB_MODE says otherwise: a recipe may be somebody else's, so a name in it is
    not yet leave to upload.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    step = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0

    def tensorboard() -> TrainerCallback:
        from torch.utils.tensorboard import SummaryWriter

        # Events of steps that will be done again are hidden.
        return TensorBoardCallback(
            SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)
        )

    makers: dict[str, Callable[[], TrainerCallback]] = {
        "tensorboard": tensorboard, "wandb": WandbCallback, "trackio": TrackioCallback,
    }  # fmt: skip
    made = []
    for name in dict.fromkeys(("tensorboard",) if recipe.report_to is None else recipe.report_to):
        if name not in makers:
            raise UserError(f"report_to: there is no reporter {name!r}: choose from {', '.join(makers)}.")
        if name == "wandb":
            os.environ.setdefault("WANDB_MODE", "offline")
            os.environ.setdefault("WANDB_PROJECT", "moonshelf")
            os.environ["WANDB_DIR"] = str(out)
        os.environ.setdefault("TRACKIO_DIR", str(out / "trackio"))
        try:
            made += [makers[name]()] if first else []
        except (ImportError, RuntimeError):
            if recipe.report_to is not None:
                raise UserError(
                    f"report_to: {name} is not installed: `pip install {name}`, or take it out of report_to."
                ) from None
    return made


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint of a run. The trainer writes its state last: without it, it was killed."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / STATE).is_file()]
    return str(max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]))) if whole else None


def _cut(path: Path, step: int) -> None:
    """Drop records of later steps, and a last line that a killed run left half written."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue
    path.write_text("".join(kept), encoding="utf-8")


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""The log of a run, what it reports to, and the telemetry that stays off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moonshelf.errors import UserError
from moonshelf.training.recipe import Run
from moonshelf.training.trainer import Stage, StageTrainer


class Point(Stage):
    """One number that is to become 1."""

    def __init__(self) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.zeros(1))


class Trainer(StageTrainer):
    def __init__(self, out: Path, **changes: Any) -> None:
        fields = {
            "out": str(out),
            "steps": 4,
            "save_every": 2,
            "warmup": 0,
            "lr": 0.1,
            "report_to": (),
            **changes,
        }
        self.poison = fields.pop("poison", None)
        self.scores = iter(fields.pop("scores", ()))
        self.exported: list[int] = []
        recipe = type("R", (Run,), {"__annotations__": {"lr": float}, "lr": 0.1})(**fields)
        super().__init__(Point(), recipe, ["held out"] if "validate_every" in changes else ())

    def draw(self, step: int, share: float) -> int:
        return step

    def losses(self, batch: int) -> dict[str, torch.Tensor]:
        if batch == self.poison:
            raise KeyboardInterrupt
        assert batch == self.state.global_step
        loss = (self.model.x - 1).square().sum()
        self.accelerator.backward(loss)
        self.figures |= {"kind": "point", "bad": float("nan")}
        return {"square": loss.detach()}

    def measure(self) -> dict[str, Any]:
        return {"score": next(self.scores), "example": "red shoe"}

    def export(self) -> None:
        self.exported.append(self.state.global_step)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_every_step_is_a_line_of_strict_json_and_none_is_there_twice(tmp_path: Path) -> None:
    whole = Trainer(tmp_path / "whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        Trainer(tmp_path / "parts", poison=3).train()
    with (tmp_path / "parts" / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "loss"')  # killed while writing
    again = Trainer(tmp_path / "parts")
    again.train()
    assert torch.equal(again.model.x, whole.model.x) and float(whole.model.x) > 0.2
    found = lines(tmp_path / "parts")
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    assert all(line["kind"] == "point" and line["bad"] is None for line in found)
    assert {"loss", "square", "grad_norm", "learning_rate", "seconds", "rss_mib", "share"} <= set(found[0])
    assert whole.exported == [2, 4] and not list((tmp_path / "parts").rglob("*.bin"))
    done = Trainer(tmp_path / "parts", poison=4)  # a finished run does no further step
    done.train()
    assert lines(tmp_path / "parts") == found


def test_a_checkpoint_that_was_not_finished_is_passed_over(tmp_path: Path) -> None:
    Trainer(tmp_path).train()
    torn = tmp_path / "trainer" / "checkpoint-9"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    assert Trainer(tmp_path).checkpoint == str(tmp_path / "trainer" / "checkpoint-4")


def test_a_run_of_an_earlier_version_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "trainer.safetensors").write_bytes(b"weights and moments")
    with pytest.raises(UserError, match="an earlier version began: give another --out"):
        Trainer(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["trainer.safetensors"]


def test_the_best_model_is_exported_and_patience_ends_a_run(tmp_path: Path) -> None:
    scores = [0.5, 0.7, 0.6, 0.7, 0.1]
    run = Trainer(tmp_path, steps=20, validate_every=1, patience=2, scores=scores)
    run.train()
    assert run.exported == [1, 2] and run.state.global_step == 4
    assert [line.get("example") for line in lines(tmp_path)] == [None, "red shoe"] * 4


def test_a_time_budget_ends_a_run_with_a_last_validation(tmp_path: Path) -> None:
    run = Trainer(tmp_path, steps=10**6, minutes=0.005, validate_every=10**6, scores=[0.3])
    run.train()
    assert 0 < run.state.global_step < 10**6 and run.exported == [run.state.global_step]
    assert run.recipe.minutes * 60 <= run.spent and Trainer(tmp_path, minutes=0.005).checkpoint


@pytest.mark.parametrize("name", ("mlflow", "wandb"))
def test_a_service_that_cannot_be_had_is_one_clear_sentence(name: str, tmp_path: Path) -> None:
    if name == "wandb" and "wandb" in sys.modules:
        pytest.skip("W&B is installed")
    with pytest.raises(UserError, match=rf"^report_to: .*{name}.*\.$"):
        Trainer(tmp_path, report_to=[name])


def test_tensorboard_has_each_step_once_after_resuming(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is optional: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(KeyboardInterrupt):
        Trainer(tmp_path, poison=3, report_to=None).train()
    Trainer(tmp_path, report_to=None).train()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4]


PROBE = """
import os
{before}
from moonshelf.training import quiet_dependencies
quiet_dependencies()
import huggingface_hub.constants as hub
print(hub.HF_HUB_DISABLE_TELEMETRY, os.environ["DO_NOT_TRACK"], os.environ["WANDB_ERROR_REPORTING"])
"""


@pytest.mark.parametrize("before", ("", "import huggingface_hub.constants"))
def test_telemetry_is_off_before_and_after_the_hub_is_imported(before: str) -> None:
    clean = {k: v for k, v in os.environ.items() if "TELEMETRY" not in k and k != "DO_NOT_TRACK"}
    found = subprocess.run(
        [sys.executable, "-c", PROBE.format(before=before)], env=clean, capture_output=True, text=True
    )
    assert found.stdout.split() == ["True", "1", "false"], found.stderr


def test_telemetry_that_the_user_wants_stays_on() -> None:
    mine = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "0", "DO_NOT_TRACK": "0", "DISABLE_TELEMETRY": "0"}
    found = subprocess.run(
        [sys.executable, "-c", PROBE.format(before="import huggingface_hub.constants")],
        env=mine, capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout.split()[:2] == ["False", "0"], found.stderr

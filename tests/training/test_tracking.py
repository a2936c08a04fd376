"""The log of a run: what is written, what services get, and what a resumed run leaves of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moonshelf.errors import UserError
from moonshelf.training.tracking import SERVICES, Tracker


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_every_record_is_a_line_of_strict_json(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", ())
    tracker.log({"loss": torch.tensor(0.5), "lr": np.float32(2), "kind": "direct", "step": 99}, 1)
    tracker.log({"loss": float("nan"), "norm": torch.tensor(torch.inf), "kept": True, "none": None}, 2)
    tracker.log({"ranks": np.arange(3), "by": {"a": (1, float("-inf"))}, "path": Path("x")}, 3)
    tracker.close()
    assert lines(tmp_path / "run") == [
        {"step": 1, "loss": 0.5, "lr": 2.0, "kind": "direct"},
        {"step": 2, "loss": None, "norm": None, "kept": True, "none": None},
        {"step": 3, "ranks": [0, 1, 2], "by": {"a": [1, None]}, "path": "x"},
    ]


def test_a_resumed_run_has_no_step_twice_and_no_half_line(tmp_path: Path) -> None:
    first = Tracker(tmp_path, ())
    for step in (1, 2, 3, 4):
        first.log({"loss": float(step)}, step)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "loss"')  # killed while writing
    second = Tracker(tmp_path, (), resumed_step=2)
    second.log({"loss": 30.0}, 3)
    assert [(r["step"], r["loss"]) for r in lines(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    Tracker(tmp_path, ())
    assert lines(tmp_path) == []  # a new run into the same folder starts a new log


@pytest.mark.parametrize("name", ("mlflow", "wandb"))
def test_a_service_that_cannot_be_had_is_one_clear_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moonshelf.training.tracking._installed", lambda _: False)
    with pytest.raises(UserError, match=rf"^report_to: .*{name}.*\.$"):
        Tracker(tmp_path, [name])
    assert not list(tmp_path.iterdir())


class Fake(types.ModuleType):
    """Stands for wandb and trackio, whose calls have the same shape."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.began: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished = 0

    def init(self, **options: Any) -> Fake:
        self.began.append(options)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize("name", ("wandb", "trackio"))
def test_a_named_service_gets_the_numbers_and_stays_on_this_machine(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(name)
    monkeypatch.setitem(sys.modules, name, fake)
    # Through monkeypatch, so that what the tracker sets is taken back.
    for variable in ("WANDB_MODE", "TRACKIO_DIR"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    tracker = Tracker(tmp_path, [name, name], {"lr": 1e-3, "out": Path("runs/a")}, "a")
    tracker.log({"loss": 2, "kind": "direct", "bad": float("nan"), "example": "red shoe"}, 7)
    tracker.log({"example": "no number at all"}, 8)
    tracker.close()
    tracker.close()
    assert fake.logged == [({"loss": 2.0}, 7)] and fake.finished == 1
    assert fake.began[0]["config"] == {"lr": 1e-3, "out": "runs/a"} and fake.began[0]["name"] == "a"
    if name == "wandb":
        assert os.environ["WANDB_MODE"] == "offline" and fake.began[0]["dir"] == str(tmp_path)
    else:
        assert os.environ["TRACKIO_DIR"] == str(tmp_path / "trackio") and "space_id" not in fake.began[0]
    # These cannot take steps back, so a resumed run is another one of the same group.
    Tracker(tmp_path, [name], {}, "a", resumed_step=7).close()
    assert fake.began[1]["name"] == "a from 7" and fake.began[1]["group"] == "a"


def test_what_the_user_says_of_wandb_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Fake("wandb"))
    monkeypatch.setenv("WANDB_MODE", "online")
    Tracker(tmp_path, ["wandb"]).close()
    assert os.environ["WANDB_MODE"] == "online"


def test_tensorboard_has_each_step_once_after_resuming(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is optional: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resumed, steps in ((0, (1, 2, 3, 4)), (2, (3, 4))):
        tracker = Tracker(tmp_path, ["tensorboard"], {"lr": 1e-3}, resumed_step=resumed)
        for step in steps:
            tracker.log({"loss": 10.0 * resumed + step}, step)
        tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0)]


def test_other_processes_touch_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    (tmp_path / "log.jsonl").write_text('{"step": 5}\n')
    tracker = Tracker(tmp_path, SERVICES)
    tracker.log({"loss": 1.0}, 1)
    tracker.close()
    assert lines(tmp_path) == [{"step": 5}]


PROBE = """
import os
{before}
from moonshelf.training.tracking import quiet_dependencies
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

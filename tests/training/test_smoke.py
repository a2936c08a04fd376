"""The smoke recipes from the command line, as a newcomer runs them: both stages, a killed one resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from moonshelf import MoonModel, Product
from moonshelf.training.trainer import last_checkpoint

RECIPES = Path(__file__).parents[2] / "recipes"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def moonshelf(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "moonshelf.cli", *arguments], cwd=cwd, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def figures(folder: Path) -> list[dict[str, object]]:
    path = folder / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    timing = ("seconds", "rss_mib", "share")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def test_both_stages_and_a_kill_in_between(tmp_path: Path) -> None:
    cold = ("train", str(RECIPES / "cold-start-smoke.yaml"), "--save-every", "2")
    whole = moonshelf(*cold, cwd=tmp_path)
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output
    assert "11 negatives in the batch, 24 in the memory" in output and "gradient caching" in output
    folder = tmp_path / "runs" / "cold-start-smoke"

    killed = moonshelf(*cold, "--out", "runs/killed", cwd=tmp_path)
    other = tmp_path / "runs" / "killed"
    deadline = time.monotonic() + 300
    while not last_checkpoint(other / "trainer") and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    again = moonshelf(*cold, "--out", "runs/killed", cwd=tmp_path)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert "going on from step" in output
    assert figures(other) == figures(folder)

    joint = moonshelf("train", str(RECIPES / "joint-smoke.yaml"), cwd=tmp_path)
    output, _ = joint.communicate(timeout=300)
    assert joint.returncode == 0, output
    model = MoonModel.from_pretrained(tmp_path / "runs" / "joint-smoke" / "checkpoint")
    assert model.encode([Product(id="q", title="red shoe")], "on").vectors.shape == (1, 256)


def test_a_wrong_field_is_one_sentence_and_no_traceback(tmp_path: Path) -> None:
    run = moonshelf("train", str(RECIPES / "cold-start-smoke.yaml"), "--stepz", "3", cwd=tmp_path)
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 2 and "stepz" in output and "Traceback" not in output

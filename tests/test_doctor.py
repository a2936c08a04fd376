"""`moonshelf doctor`: what it says about an installation and about a model, and how it exits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from moonshelf.cli import app
from moonshelf.cli.doctor import Report, examine
from moonshelf.errors import EXIT_OK, EXIT_USAGE
from moonshelf.model import files
from moonshelf.model.modeling import MoonModel
from moonshelf.prompts import PromptSpec
from moonshelf.training.starter import build_starter, build_tokenizer


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = build_tokenizer(["red shoe", "user\nassistant\n"] * 20, vocabulary=320)
    prompt = PromptSpec(max_rationale_tokens=4)
    model = build_starter(tokenizer, hidden=64, layers=1, vision_hidden=64, vision_depth=1, prompt=prompt)
    folder = tmp_path_factory.mktemp("doctor") / "tiny"
    model.save_pretrained(folder, golden=True)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "tiny"))


def levels(report: Report) -> dict[str, str]:
    return {check.name: check.level for check in report.checks}


def change_golden(folder: Path, **changes: Any) -> None:
    golden = json.loads((folder / "golden.json").read_text())
    golden["items"][1] |= changes
    (folder / "golden.json").write_text(json.dumps(golden))
    files.write_manifest(folder)


def test_a_sound_model_passes(sound: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", str(sound), "--json"])
    assert result.exit_code == EXIT_OK, result.output
    report = json.loads(result.output)
    names = ["files", "manifest", "configuration", "weights", "golden"]
    assert [(c["name"], c["level"]) for c in report["checks"]] == [(name, "ok") for name in names]
    assert report["environment"]["torch"] == torch.__version__
    assert report["environment"]["torch threads"] == str(torch.get_num_threads())
    assert report["environment"]["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert str(sound.parent) not in result.output, "a report must not tell where things are"


def test_the_report_for_people(sound: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", str(sound)])
    assert result.exit_code == EXIT_OK
    assert "transformers" in result.output and "golden: 5 products" in result.output


def test_without_a_model_it_reports_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sound: Path
) -> None:
    monkeypatch.setattr(files, "STARTER", tmp_path / "none")
    report = examine()
    assert report.exit_code == EXIT_OK and levels(report) == {"starter": "skipped"}
    assert {"python", "torch", "transformers", "moonshelf", "numpy"} <= report.environment.keys()
    monkeypatch.setattr(files, "STARTER", sound)
    assert examine().model == "starter" and levels(examine())["golden"] == "ok"


def test_a_missing_folder(tmp_path: Path) -> None:
    report = examine(str(tmp_path / "none"))
    assert levels(report) == {"folder": "error"} and report.exit_code == EXIT_USAGE


def test_tampering_is_an_error_and_nothing_is_loaded(folder: Path) -> None:
    path = folder / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    result = CliRunner().invoke(app, ["doctor", str(folder), "--json"])
    assert result.exit_code == EXIT_USAGE
    found = {c["name"]: c["level"] for c in json.loads(result.output)["checks"]}
    assert found == {"files": "ok", "manifest": "error", "configuration": "ok", "weights": "skipped"}


def test_pickles_and_code_keys_are_errors(folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes(b"x")
    assert levels(examine(str(folder)))["files"] == "error"
    (folder / "optimizer.pt").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {}}))
    report = examine(str(folder))
    assert levels(report)["files"] == "error" and levels(report)["weights"] == "skipped"


def test_another_vector_is_an_error(folder: Path) -> None:
    golden = json.loads((folder / "golden.json").read_text())
    vector = golden["items"][1]["direct"]
    change_golden(folder, direct=[vector[0] + 0.05, *vector[1:]])
    report = examine(str(folder))
    assert report.exit_code == EXIT_USAGE
    errors = [c.detail for c in report.checks if c.level == "error"]
    assert len(errors) == 1 and errors[0].startswith("'picture': the direct vector is off by ")


def test_a_vector_of_another_length_is_an_error(folder: Path) -> None:
    change_golden(folder, direct=[1.0])
    assert levels(examine(str(folder)))["golden"] == "error"


def test_another_rationale_is_a_warning(folder: Path) -> None:
    change_golden(folder, rationale="<think>category: shoes</think>", reasoned=[1.0] * 256)
    report = examine(str(folder))
    assert report.exit_code == EXIT_OK
    assert [c.level for c in report.checks if c.name == "golden"] == ["warning", "ok"]


def test_a_model_without_golden_vectors_is_a_warning(folder: Path) -> None:
    (folder / "golden.json").unlink()
    files.write_manifest(folder)
    report = examine(str(folder))
    assert levels(report)["golden"] == "warning" and report.exit_code == EXIT_OK


def test_weights_that_are_not_finite_are_an_error(folder: Path) -> None:
    model = MoonModel.from_pretrained(folder)
    with torch.no_grad():
        model.head.project.weight[0, 0] = torch.nan
    model.save_pretrained(folder)
    report = examine(str(folder))
    assert levels(report)["weights"] == "error" and report.exit_code == EXIT_USAGE
    assert "head.project.weight" in report.checks[-1].detail

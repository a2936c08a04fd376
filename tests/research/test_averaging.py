"""Averages of selectors: the mean of their tensors, and what cannot be averaged is told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from moonshelf.creatives.backends.model import ADAPTER, CreativeConfig, CreativeModel
from moonshelf.creatives.prompt import CreativePrompt
from moonshelf.errors import UserError
from research.starter.averaging import app, average

pytestmark = pytest.mark.research

STARTER = Path(__file__).parents[2] / "src" / "moonshelf" / "starter_creative"
SETTINGS = {"r": 2, "lora_alpha": 2, "trainable_token_indices": None}


def selector(
    folder: Path,
    scale: float,
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, int] = (2, 3),
    **config: object,
) -> Path:
    folder.mkdir()
    values = torch.arange(shape[0] * shape[1], dtype=torch.float64).view(shape)
    tensors = {"x.lora_A.weight": (scale * values).to(dtype), "x.lora_B.weight": (values.T - scale).to(dtype)}
    save_file({name: one.contiguous() for name, one in tensors.items()}, folder / ADAPTER)
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS))
    settings = CreativeConfig(**{"base": "starter", "base_fingerprint": "f", "trained_on": "drawn", **config})  # type: ignore[arg-type]
    (folder / "creative.json").write_text(settings.model_dump_json())
    return folder


def test_every_tensor_is_the_weighted_mean(tmp_path: Path) -> None:
    parts = [
        selector(tmp_path / str(i), s, temperature=t)
        for i, (s, t) in enumerate([(1, 1.0), (2, 2.0), (9, 4.0)])
    ]
    out = tmp_path / "out"
    average(parts, out, [2, 1, 1])
    found, sources = load_file(out / ADAPTER), [load_file(part / ADAPTER) for part in parts]
    for name, values in found.items():
        expected = sum(w * one[name].double() for w, one in zip((0.5, 0.25, 0.25), sources, strict=True))
        torch.testing.assert_close(values, expected.float())  # type: ignore[union-attr]
    config = CreativeConfig.model_validate_json((out / "creative.json").read_text())
    assert config.temperature == pytest.approx(2**0.75, abs=1e-4)
    assert config.trained_on == "drawn"
    assert (out / "adapter_config.json").read_text() == (parts[0] / "adapter_config.json").read_text()


def test_a_half_keeps_its_width_only_among_halves(tmp_path: Path) -> None:
    half, other = (selector(tmp_path / name, 1, torch.float16) for name in "ab")
    single = selector(tmp_path / "c", 1)
    average([half, other], tmp_path / "halves")
    average([half, single], tmp_path / "mixed")
    assert {v.dtype for v in load_file(tmp_path / "halves" / ADAPTER).values()} == {torch.float16}
    assert {v.dtype for v in load_file(tmp_path / "mixed" / ADAPTER).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"base_fingerprint": "g"}, "base differ"),
        ({"prompt": CreativePrompt(max_pixels=64 * 64)}, "prompt differ"),
        ({"shape": (4, 3)}, "tensors differ"),
        ({"base": None}, "whole model"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    parts = [selector(tmp_path / "a", 1), selector(tmp_path / "b", 1, **changed)]  # type: ignore[arg-type]
    with pytest.raises(UserError, match=said):
        average(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_ranks_and_broken_files_are_refused(tmp_path: Path) -> None:
    a, b = selector(tmp_path / "a", 1), selector(tmp_path / "b", 1)
    (b / "adapter_config.json").write_text(json.dumps({**SETTINGS, "lora_alpha": 4}))
    with pytest.raises(UserError, match="'b' cannot be averaged with 'a': rank"):
        average([a, b], tmp_path / "out")
    (b / ADAPTER).write_bytes(b"not tensors")
    with pytest.raises(UserError, match="adapter in 'b' cannot be read"):
        average([a, b], tmp_path / "out")
    with pytest.raises(UserError, match="no creative selector"):
        average([a, tmp_path / "absent"], tmp_path / "out")


@pytest.mark.parametrize(
    "weights", [[1.0], [0.0, 0.0], [1.0, -1.0], [float("nan"), 1.0], [float("inf"), 1.0]]
)
def test_weights_that_make_no_mean_are_refused(tmp_path: Path, weights: list[float]) -> None:
    parts = [selector(tmp_path / name, 1) for name in "ab"]
    with pytest.raises(UserError, match="weights"):
        average(parts, tmp_path / "out", weights)


def test_a_selector_is_neither_averaged_alone_nor_overwritten(tmp_path: Path) -> None:
    a, b = selector(tmp_path / "a", 1), selector(tmp_path / "b", 1)
    with pytest.raises(UserError, match="two selectors"):
        average([a], tmp_path / "out")
    with pytest.raises(UserError, match="is one of the selectors"):
        average([a, b], b)


def test_the_command_averages_and_fits_a_temperature(tmp_path: Path) -> None:
    """The starter with itself: the same tensors, a temperature of its own, and a selector that loads."""
    pytest.importorskip("trl", reason="training needs moonshelf[train]")
    out = tmp_path / "out"
    call = ["starter", str(STARTER), "--out", str(out)]
    done = CliRunner().invoke(app, [*call, "--simulated", "20", "--json"], catch_exceptions=False)
    said = json.loads(done.stdout)
    assert done.exit_code == 0
    assert said["validation_pairs"] == 20
    model = CreativeModel.from_pretrained(out)
    assert model.temperature == pytest.approx(said["temperature"], abs=1e-4)
    before, after = load_file(STARTER / ADAPTER), load_file(out / ADAPTER)
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(UserError, match="--validation or --simulated"):
        CliRunner().invoke(app, call, catch_exceptions=False)
    with pytest.raises(UserError, match="no list of numbers"):
        CliRunner().invoke(app, [*call, "--simulated", "20", "--weights", "1;1"], catch_exceptions=False)

"""A selector's folder that somebody else wrote or changed: one sentence, before it is merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moonshelf.creatives.backends import model as model_backend
from moonshelf.creatives.backends.model import PACKAGED, CreativeModel, merge_adapter
from moonshelf.errors import UserError
from moonshelf.model import files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = SimpleNamespace(
        source=tmp_path,
        fingerprint=json.loads((PACKAGED / "creative.json").read_text())["base_fingerprint"],
        backbone=None,
    )
    monkeypatch.setattr(model_backend, "load_base", lambda *_: base)
    monkeypatch.setattr(model_backend, "merge_adapter", lambda *_: pytest.fail("the adapter was merged"))
    return Path(shutil.copytree(PACKAGED, tmp_path / "selector"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -1.18),
        ("temperature", 0),
        ("temperature", 1e9),
        ("prompt", {"labels": ["K"]}),
        ("prompt", {"describe_first": False}),
        ("prompt", {"max_pixels": 10**12}),
        ("prompt", {"max_rationale_tokens": -1}),
    ],
)
def test_numbers_have_bounds(folder: Path, key: str, value: Any) -> None:
    record = json.loads((folder / "creative.json").read_text())
    (folder / "creative.json").write_text(json.dumps(record | {key: value}))
    files.write_manifest(folder)
    with pytest.raises(UserError, match=rf"creative\.json in 'selector'.*{key}"):
        CreativeModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "creative.json"])
def test_a_changed_file_is_refused(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data.replace(b"1", b"2", 1) if name.endswith("json") else data[:-1] + b"\x01")
    with pytest.raises(UserError, match=f"does not match its manifest.json: {name}"):
        CreativeModel.from_pretrained(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no manifest\.json"):
        CreativeModel.from_pretrained(folder)


def test_files_that_can_run_code_are_refused(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"adapter_model\.bin"):
        CreativeModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"r": 0},
        {"r": "many"},
        {"lora_alpha": -64},
        {"trainable_token_indices": [10**6] * 205},
        {"trainable_token_indices": [1, 2]},
        {"trainable_token_indices": None},
    ],
)
def test_an_adapter_that_does_not_fit_is_one_sentence(folder: Path, change: dict[str, Any]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    rows = next(values for name, values in tensors.items() if name.endswith("tokens_delta"))
    backbone = _Backbone(rows.shape[1])
    record = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(record | change))
    with pytest.raises(UserError, match="'selector'"):
        merge_adapter(backbone, folder)


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values())).flatten()[0] = torch.nan
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="not finite"):
        merge_adapter(_Backbone(256), folder)


class _Backbone(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(6_144, width)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.words

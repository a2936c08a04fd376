"""Folders that somebody else wrote or changed: one sentence each, before anything is allocated or opened."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from moonshelf.errors import UserError
from moonshelf.files import read_json
from moonshelf.model import files
from moonshelf.model.modeling import MoonModel

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def folder(saved: MoonModel, tmp_path: Path) -> Path:
    assert saved.source is not None
    return Path(shutil.copytree(saved.source, tmp_path / "copy"))


def refused(folder: Path) -> str:
    """What is said of a folder whose manifest was made to fit."""
    files.write_manifest(folder)
    with pytest.raises(UserError) as caught:
        MoonModel.from_pretrained(folder)
    assert str(folder.parent) not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "../other.safetensors",
        "/etc/hosts.safetensors",
        "none.safetensors",
        "",
        3,
        "x" * 9_000 + ".safetensors",
    ],
)
def test_an_index_names_only_files_of_the_folder(folder: Path, name: Any) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "other.safetensors")
    weights = load_file(folder.parent / "other.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.safetensors.index.json" in refused(folder) and "names the file" in refused(folder)


@pytest.mark.parametrize("key", ["vocab_file", "merges_file", "tokenizer_file"])
def test_a_tokenizer_names_only_files_of_the_folder(folder: Path, key: str) -> None:
    (folder.parent / "vocab.json").write_text("{}")
    edit(folder / "tokenizer_config.json", lambda c: c | {key: "../vocab.json"})
    assert "tokenizer_config.json" in refused(folder)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("config.json", ("text_config", "num_hidden_layers"), 10**6),
        ("config.json", ("text_config", "num_hidden_layers"), 400),
        ("config.json", ("text_config", "hidden_size"), 60_000),
        ("config.json", ("text_config", "hidden_size"), 0),
        ("config.json", ("text_config", "vocab_size"), 3_000_000),
        ("config.json", ("text_config", "num_attention_heads"), 0),
        ("config.json", ("text_config", "rms_norm_eps"), -1.0),
        ("config.json", ("text_config", "head_dim"), "sixteen"),
        ("config.json", ("text_config",), 7),
        ("config.json", ("vision_config", "depth"), 0),
        ("config.json", ("vision_config", "patch_size"), 4),
        ("config.json", ("image_token_id",), -(10**12)),
        ("preprocessor_config.json", ("image_std",), [0.0, 0.5, 0.5]),
        ("preprocessor_config.json", ("patch_size",), 0),
        ("moon.json", ("hidden",), 1 << 40),
        ("moon.json", ("taps",), [500]),
        ("moon.json", ("heads",), 0),
        ("moon.json", ("matryoshka",), []),
        ("prompt.json", ("max_text_chars",), -1),
        ("prompt.json", ("max_rationale_tokens",), 10**9),
        ("prompt.json", ("max_pixels",), 10**12),
        ("prompt.json", ("text_fields",), ["__class__"]),
        ("labels.json", (), {"a": 1}),
    ],
)
def test_every_number_has_bounds(folder: Path, name: str, path: tuple[str, ...], value: Any) -> None:
    record = json.loads((folder / name).read_text()) if (folder / name).exists() else []
    if path:
        place = record
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
    else:
        record = value
    (folder / name).write_text(json.dumps(record))
    assert refused(folder)


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "layers.1" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lack" in refused(folder)


@pytest.mark.parametrize(
    "name", ["prompt.json", "config.json", "tokenizer_config.json", "more.json", "sub/x.json"]
)
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match="neither a file nor a folder"):
        files.check_safety(folder)
    with pytest.raises(UserError, match="not a regular file"):
        read_json(folder / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "deep"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "deep"),
        ("[" * 60 + "]" * 60, "deep"),
        ('{"a": NaN}', "not valid JSON"),
        ("{", "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ("9" * 5_000, "not valid JSON"),
        ('"' + "x" * 5_000_000 + '"', "bytes"),
    ],
)
def test_json_of_no_sane_kind_is_one_sentence(folder: Path, text: str, message: str) -> None:
    (folder / "prompt.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=rf"prompt\.json in 'copy'.*{message}"):
        read_json(folder / "prompt.json")
    assert "prompt.json" in refused(folder)


def test_a_name_that_no_disk_takes_is_one_sentence() -> None:
    with pytest.raises(UserError, match="no model folder") as caught:
        MoonModel.from_pretrained("x" * 9_000)
    assert len(str(caught.value)) < 400

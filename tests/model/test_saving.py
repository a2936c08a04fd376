"""A model folder: what is written, what is read back, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2TokenizerFast

from moonshelf.errors import UserError
from moonshelf.model import files
from moonshelf.model.golden import read_golden
from moonshelf.model.modeling import MoonModel
from moonshelf.model.processing import ADDED_TOKENS
from moonshelf.product import Product


@pytest.fixture
def folder(saved: MoonModel, tmp_path: Path) -> Path:
    """A copy of the saved model that a test may spoil."""
    assert saved.source is not None
    return Path(shutil.copytree(saved.source, tmp_path / "copy"))


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps(edit(record) or record))


# ---- round trip ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["off", "on"])
def test_a_saved_model_is_the_same_model(
    model: MoonModel, saved: MoonModel, products: list[Product], mode: Any
) -> None:
    weights = saved.state_dict()
    assert all(torch.equal(weights.pop(name), tensor) for name, tensor in model.state_dict().items())
    assert not weights
    before, after = (m.encode(products, reason=mode) for m in (model, saved))
    # Not bit for bit: a kernel may sum in another order for weights at another address.
    np.testing.assert_allclose(before.vectors, after.vectors, atol=1e-6)
    np.testing.assert_allclose(before.weights, after.weights, atol=1e-6)
    assert before.rationales == after.rationales
    assert saved.prompt == model.prompt and saved.config == model.config


def test_the_other_family_survives_too(model_2_5: MoonModel, products: list[Product], tmp_path: Path) -> None:
    copy.deepcopy(model_2_5).save_pretrained(tmp_path)
    loaded = MoonModel.from_pretrained(tmp_path)
    np.testing.assert_allclose(loaded.encode(products).vectors, model_2_5.encode(products).vectors, atol=1e-6)


def test_half_precision_files_are_another_model(
    fresh: MoonModel, products: list[Product], tmp_path: Path
) -> None:
    exact = fresh.encode(products).vectors
    before = fresh.fingerprint
    fresh.save_pretrained(tmp_path, dtype=torch.float16, golden=True)
    loaded = MoonModel.from_pretrained(tmp_path)
    assert loaded.head.project.weight.dtype == torch.float32
    assert fresh.fingerprint == before != loaded.fingerprint
    assert (exact * loaded.encode(products).vectors).sum(1).min() > 0.999
    golden = read_golden(tmp_path)
    assert golden is not None
    vector = loaded.encode([golden.items[0].product()]).vectors[0]
    np.testing.assert_allclose(golden.items[0].direct, vector, atol=1e-6)


def test_saving_again_leaves_nothing_stale(fresh: MoonModel, tmp_path: Path) -> None:
    fresh.labels = ["shoe", "mug"]
    fresh.save_pretrained(tmp_path, golden=True)
    assert MoonModel.from_pretrained(tmp_path).labels == ["shoe", "mug"]
    fresh.labels = []
    fresh.save_pretrained(tmp_path)
    assert not (tmp_path / "labels.json").exists() and not (tmp_path / "golden.json").exists()
    assert MoonModel.from_pretrained(tmp_path).labels == []


def test_only_safe_kinds_of_files_are_written(saved: MoonModel) -> None:
    assert saved.source is not None
    assert {p.suffix for p in saved.source.iterdir()} <= files.SUFFIXES
    assert not (saved.source / "README.md").exists(), "a card is for people to write"


def test_golden_vectors_of_own_products(fresh: MoonModel, products: list[Product], tmp_path: Path) -> None:
    fresh.save_pretrained(tmp_path, golden=products)
    golden = read_golden(tmp_path)
    assert golden is not None and [item.id for item in golden.items] == [p.id for p in products]
    out = fresh.encode(products, reason="on")
    for i, item in enumerate(golden.items):
        np.testing.assert_allclose(item.reasoned, out.vectors[i], atol=1e-6)
        assert item.rationale == out.rationales[i]
        assert len(item.images) == len(products[i].images)


def test_the_fingerprint_follows_what_changes_a_vector(saved: MoonModel, folder: Path) -> None:
    (folder / "README.md").write_text("# a card\n")
    (folder / "golden.json").unlink()
    files.write_manifest(folder)
    assert MoonModel.from_pretrained(folder).fingerprint == saved.fingerprint
    change(folder / "prompt.json", lambda p: p | {"max_pixels": 128 * 128})
    files.write_manifest(folder)
    assert MoonModel.from_pretrained(folder).fingerprint != saved.fingerprint


def test_the_fingerprint_of_an_unsaved_model_follows_its_weights(model: MoonModel, fresh: MoonModel) -> None:
    twin = copy.deepcopy(model)
    assert twin.fingerprint == fresh.fingerprint
    changed = copy.deepcopy(model)
    changed.__dict__.pop("fingerprint", None)
    with torch.no_grad():
        changed.head.project.weight[0, 0] += 1
    assert changed.fingerprint != twin.fingerprint


# ---- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["head.safetensors", "model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_file_is_refused(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        MoonModel.from_pretrained(folder)


def test_a_missing_or_an_unlisted_file_is_refused(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes\.txt"):
        MoonModel.from_pretrained(folder)
    (folder / "notes.txt").unlink()
    (folder / "golden.json").unlink()
    with pytest.raises(UserError, match=r"golden\.json"):
        MoonModel.from_pretrained(folder)


def test_hidden_files_and_the_card_are_no_concern(folder: Path) -> None:
    (folder / ".cache" / "download").mkdir(parents=True)
    (folder / ".cache" / "download" / "state.lock").write_text("")
    (folder / ".gitattributes").write_text("")
    (folder / "README.md").write_text("# a card\n")
    MoonModel.from_pretrained(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": 3}'])
def test_a_broken_manifest_is_refused(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        MoonModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "head.pkl", "modeling_evil.py", "x.npy"])
def test_files_that_can_run_code_are_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    files.write_manifest(folder)  # even if the manifest lists them
    with pytest.raises(UserError, match=name):
        MoonModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("config.json", "auto_map"),
        ("config.json", "quantization_config"),
        ("config.json", "_attn_implementation_internal"),
        ("config.json", "surprise"),
        ("tokenizer_config.json", "auto_map"),
        ("preprocessor_config.json", "auto_map"),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_a_key_that_could_name_code_is_refused(folder: Path, name: str, key: str, verify: bool) -> None:
    change(folder / name, lambda c: c | {key: {"AutoModel": "evil.Model"}})
    files.write_manifest(folder)
    with pytest.raises(UserError, match=key):
        MoonModel.from_pretrained(folder, verify=verify)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_keys_of_the_parts_are_checked_too(folder: Path, part: str) -> None:
    change(folder / "config.json", lambda c: c | {part: c[part] | {"surprise": 1}})
    with pytest.raises(UserError, match=rf"{part}.*surprise"):
        MoonModel.from_pretrained(folder, verify=False)


def test_an_unknown_backbone_is_refused(folder: Path) -> None:
    change(folder / "config.json", lambda c: c | {"model_type": "llava"})
    with pytest.raises(UserError, match=r"'llava'.*qwen3_vl"):
        MoonModel.from_pretrained(folder, verify=False)


def test_another_module_in_modules_json_is_refused(folder: Path) -> None:
    change(folder / "modules.json", lambda m: [m[0] | {"type": "evil.Module"}])
    with pytest.raises(UserError, match=r"modules\.json"):
        MoonModel.from_pretrained(folder)


def test_a_folder_without_a_head_is_refused(folder: Path) -> None:
    (folder / "moon.json").unlink()
    with pytest.raises(UserError, match="no Moonshelf head"):
        MoonModel.from_pretrained(folder)


def test_head_weights_that_are_missing_or_do_not_fit_are_refused(folder: Path) -> None:
    head = load_file(folder / "head.safetensors")
    save_file({k: v for k, v in head.items() if "project" not in k}, folder / "head.safetensors")
    with pytest.raises(UserError, match="does not fit"):
        MoonModel.from_pretrained(folder, verify=False)
    (folder / "head.safetensors").unlink()
    with pytest.raises(UserError, match="missing"):
        MoonModel.from_pretrained(folder, verify=False)


@pytest.mark.parametrize("name", ["moon.json", "prompt.json"])
def test_settings_of_another_version_are_refused(folder: Path, name: str) -> None:
    change(folder / name, lambda c: c | {"new_option": 1})
    with pytest.raises(UserError, match=name):
        MoonModel.from_pretrained(folder, verify=False)


def test_a_missing_folder_is_a_clear_mistake() -> None:
    with pytest.raises(UserError, match="no model folder at 'no/such/model'"):
        MoonModel.from_pretrained("no/such/model")
    with pytest.raises(UserError, match="no model folder"):
        MoonModel.from_backbone("no/such/model")


# ---- stock checkpoints -----------------------------------------------------------------------------


@pytest.fixture(params=["qwen3_vl", "qwen2_5_vl"])
def stock(request: pytest.FixtureRequest, tokenizer: Qwen2TokenizerFast, tmp_path: Path) -> Path:
    """A checkpoint as the model's makers would publish it: no head, none of our tokens, a fast processor."""
    model = request.getfixturevalue("model" if request.param == "qwen3_vl" else "model_2_5")
    copy.deepcopy(model.backbone).save_pretrained(tmp_path)
    model.processor.image_processor.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    change(
        tmp_path / "preprocessor_config.json",
        lambda c: (
            c | {"image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor"}
        ),
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        record = json.loads((tmp_path / name).read_text())
        entries = record.get("added_tokens") or record.get("added_tokens_decoder") or []
        kept = [e for e in entries if not (isinstance(e, dict) and e.get("content") in ADDED_TOKENS)]
        if isinstance(record.get("added_tokens"), list):
            record["added_tokens"] = kept
        (tmp_path / name).write_text(json.dumps(record))
    (tmp_path / "LICENSE").write_text("licence\n")
    return tmp_path


def test_a_stock_checkpoint_gets_a_head(stock: Path, products: list[Product], tmp_path: Path) -> None:
    model = MoonModel.from_backbone(str(stock), heads=2, dim=32, matryoshka=(32, 16))
    vocabulary = model.processor.tokenizer.get_vocab()
    assert all(token in vocabulary for token in ADDED_TOKENS)
    assert model.vocabulary >= len(model.processor.tokenizer)
    out = model.encode(products, reason="on")
    assert out.vectors.shape == (len(products), 32)
    model.save_pretrained(tmp_path / "mine")
    loaded = MoonModel.from_pretrained(tmp_path / "mine")
    np.testing.assert_allclose(loaded.encode(products, reason="on").vectors, out.vectors, atol=1e-6)
    assert model.fingerprint == loaded.fingerprint


def test_a_stock_checkpoint_is_not_a_model(stock: Path) -> None:
    with pytest.raises(UserError, match="no Moonshelf head"):
        MoonModel.from_pretrained(stock)


def test_a_stock_checkpoint_with_pickles_or_code_is_refused(stock: Path) -> None:
    (stock / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        MoonModel.from_backbone(str(stock))
    (stock / "pytorch_model.bin").unlink()
    change(stock / "config.json", lambda c: c | {"auto_map": {"AutoConfig": "evil.Config"}})
    with pytest.raises(UserError, match="auto_map"):
        MoonModel.from_backbone(str(stock))


def test_truncated_weights_are_a_clear_mistake(stock: Path) -> None:
    path = stock / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read"):
        MoonModel.from_backbone(str(stock))

"""An export holds the backbone as transformers knows it, and nothing that only we know."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from moonshelf.cli.export import export_vllm
from moonshelf.errors import UserError
from moonshelf.model import engine
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product
from tiny import pictures


@pytest.fixture(scope="module")
def folder(model: MoonModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "model"
    export_vllm(copy.deepcopy(model), out, "tiny")
    return out


def logits(backbone: torch.nn.Module, model: MoonModel) -> torch.Tensor:
    product = Product(id="a", title="red shoe", images=pictures(1))
    rows, _ = engine.read_rows(model, [(0, (product, ""))], "on")
    batch = engine.make_batch(model, rows, [model.prepare.think])
    with torch.inference_mode():
        return backbone(
            input_ids=batch.input_ids, attention_mask=batch.attention.long(), pixel_values=batch.pixel_values,
            image_grid_thw=batch.grid, mm_token_type_ids=batch.image_mask.int(),
        ).logits  # fmt: skip


def test_transformers_loads_it_whole(folder: Path, model: MoonModel) -> None:
    backbone, info = Qwen3VLForConditionalGeneration.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(logits(backbone.eval(), model), logits(model.backbone, model))


def test_it_holds_weights_of_the_backbone_only(folder: Path, model: MoonModel) -> None:
    names = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names |= set(tensors.keys())
    assert names and names <= set(model.backbone.state_dict())
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3VLForConditionalGeneration"]
    assert "rope_parameters" not in config["vision_config"]


def test_its_template_gives_our_prompt(folder: Path, model: MoonModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "red shoe"}]},
        {"role": "assistant", "content": "<think>"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    prepare = model.prepare
    assert tokenizer(text)["input_ids"] == prepare.row(prepare.ids("red shoe"), [], [prepare.think])[0]


def test_it_says_how_to_serve_it(folder: Path, model: MoonModel) -> None:
    record = json.loads((folder / "moonshelf.json").read_text())
    assert record["fingerprint"] == model.fingerprint and record["served_name"].endswith(model.fingerprint)
    assert record["serve"].startswith("vllm serve ") and record["served_name"] in record["serve"]
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "tokenizer_config.json"):
        assert json.loads((folder / name).read_text())["processor_class"] == "Qwen3VLProcessor"


def test_adapters_are_merged(model: MoonModel, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from moonshelf.training.adapters import add_lora
    from moonshelf.training.recipe import Lora

    adapted = copy.deepcopy(model)
    add_lora(adapted, Lora(r=2))
    with torch.no_grad():
        for name, parameter in adapted.backbone.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.2)
    export_vllm(adapted, tmp_path / "out")
    backbone = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=torch.float32)
    found, plain = logits(backbone.eval(), model), logits(model.backbone, model)
    torch.testing.assert_close(found, logits(adapted.backbone, model), atol=1e-4, rtol=1e-4)
    assert (found - plain).abs().max() > 0.01


def test_nothing_else_is_overwritten(model: MoonModel, tmp_path: Path) -> None:
    (tmp_path / "head.safetensors").write_bytes(b"mine")
    with pytest.raises(UserError, match="holds something else"):
        export_vllm(model, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["head.safetensors"]

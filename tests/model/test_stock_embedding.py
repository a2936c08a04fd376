"""A head on a stock embedding model: untrained, its vector is the one that the model's own recipes give."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText

from moonshelf.errors import UserError
from moonshelf.model import files
from moonshelf.model.modeling import MoonModel
from moonshelf.model.processing import MoonProcessor, register
from moonshelf.product import ImageRef, Product
from moonshelf.prompts import PromptSpec
from moonshelf.training.starter import CHAT_TEMPLATE
from tiny import picture

INSTRUCTION = "Represent the user's input."
TEXT, PICTURE = "red running shoe for men", picture(3)
INPUTS: list[dict[str, Any]] = [
    {"text": TEXT},
    {"image": PICTURE},
    {"image": picture(5, 200, 130), "text": "leather heels"},
]
CLOSEST = 0.99999

ST = "sentence_transformers.base.modules"
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": f"{ST}.transformer.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling",
     "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{ST}.normalize.Normalize"},
]  # fmt: skip


def dump(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def stock(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """A tiny random checkpoint as its makers would publish it, as an embedding model or as a chat model."""

    def make(family: str = "qwen3_vl", closes: bool = True, st: bool = True, name: str = "vl") -> Path:
        folder = tmp_path / name
        model = request.getfixturevalue("model" if family == "qwen3_vl" else "model_2_5")
        model.backbone.save_pretrained(folder)
        model.processor.image_processor.save_pretrained(folder)
        tokenizer = request.getfixturevalue("tokenizer")
        tokenizer.save_pretrained(folder)
        bounds = {"shortest_edge": 4096, "longest_edge": 1_843_200}  # the reference's own
        change(folder / "preprocessor_config.json", size=bounds)
        if closes:  # the tokenizer ends every text with a token of its own, as Qwen's embedding models do
            backend = type(tokenizer).from_pretrained(folder)
            end = "<|endoftext|>"
            backend._tokenizer.post_processor = TemplateProcessing(
                single=f"$A {end}", special_tokens=[(end, backend.convert_tokens_to_ids(end))]
            )
            backend.save_pretrained(folder)
        if st:
            dump(folder / "modules.json", MODULES)
            pooling = {"embedding_dimension": 64, "pooling_mode": "lasttoken", "include_prompt": True}
            dump(folder / "1_Pooling" / "config.json", pooling)
            dump(folder / "2_Normalize" / "config.json", {})
            reads = {"method": "forward", "method_output_name": "last_hidden_state"}
            modalities = dict.fromkeys(("text", "image", "image+text"), reads)
            settings = {
                "transformer_task": "feature-extraction",
                "modality_config": modalities | {"message": reads | {"format": "structured"}},
                "module_output_name": "token_embeddings",
                "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
            }
            dump(folder / "sentence_bert_config.json", settings)
            prompts = {"prompts": {"default": INSTRUCTION}, "default_prompt_name": "default"}
            dump(folder / files.ST_CONFIG, prompts | {"model_type": "SentenceTransformer"})
        return folder

    return make


def change(path: Path, **values: Any) -> None:
    dump(path, json.loads(path.read_text()) | values)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")  # noqa: TID251 - as a user of that library would


def products(inputs: list[dict[str, Any]]) -> list[Product]:
    return [
        Product(id=str(i), title=one.get("text", ""), images=(ImageRef(data=one["image"]),))
        if "image" in one
        else Product(id=str(i), title=one["text"])
        for i, one in enumerate(inputs)
    ]


@torch.no_grad()
def reference(folder: Path, inputs: list[dict[str, Any]], instruction: str = INSTRUCTION) -> np.ndarray:
    """The recipe of Qwen3-VL-Embedding's repository, for all inputs as one padded batch."""
    family = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = MoonProcessor.from_pretrained(str(folder))
    texts, pictures = [], []
    for one in inputs:
        shown = "<|vision_start|><|image_pad|><|vision_end|>" if "image" in one else ""
        pictures += [opened(one["image"])] if shown else []
        texts.append(
            f"<|im_start|>system\n{instruction}<|im_end|>\n"
            f"<|im_start|>user\n{shown}{one.get('text', '')}<|im_end|>\n<|im_start|>assistant\n"
        )
    batch = processor(images=pictures or None, text=texts, padding=True, return_tensors="pt")
    states = family.model(**batch).last_hidden_state
    last = batch["attention_mask"].sum(1) - 1
    return F.normalize(states[torch.arange(len(texts)), last], dim=-1).numpy()


def cut(vectors: np.ndarray, dim: int) -> np.ndarray:
    vectors = vectors[:, :dim]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("closes", [True, False])
def test_an_untrained_head_gives_the_models_own_vector(
    stock: Callable[..., Path], family: str, closes: bool
) -> None:
    folder = stock(family, closes)
    model = MoonModel.from_backbone(str(folder))
    assert model.dim == 64 and model.prompt.instruction == INSTRUCTION
    ours, theirs = model.encode(products(INPUTS)).vectors, reference(folder, INPUTS)
    assert (ours * theirs).sum(1).min() >= CLOSEST
    assert abs(theirs[0] @ theirs[1]) < 0.99  # a check that can fail: inputs differ
    small = MoonModel.from_backbone(str(folder), dim=24)
    assert small.config.matryoshka == (24,)
    assert (small.encode(products(INPUTS)).vectors * cut(theirs, 24)).sum(1).min() >= CLOSEST


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_it_is_what_sentence_transformers_gives(stock: Callable[..., Path], family: str) -> None:
    st = pytest.importorskip("sentence_transformers")
    folder = stock(family)
    model = MoonModel.from_pretrained(folder)  # by its folder alone, as every command takes it
    register(type(model.backbone.config))  # the stock processor wants torchvision
    transformer = st.SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float32"})
    shown = [{k: opened(v) if k == "image" else v for k, v in one.items()} for one in INPUTS]
    for one, product in zip(shown, products(INPUTS), strict=True):
        theirs = transformer.encode([one], normalize_embeddings=True)[0]
        assert theirs @ model.encode([product]).vectors[0] >= CLOSEST
    transformer.save(str(folder.with_name("tuned")))  # without a language head, as after its training
    tuned = MoonModel.from_pretrained(folder.with_name("tuned"))
    again = tuned.encode(products(INPUTS)).vectors
    assert (again * model.encode(products(INPUTS)).vectors).sum(1).min() >= CLOSEST


def test_a_bare_folder_of_the_known_name_follows_the_reference(stock: Callable[..., Path]) -> None:
    folder = stock(st=False, name="Qwen3-VL-Embedding-2B")
    (folder / "scripts").mkdir()
    (folder / "scripts" / "qwen3_vl_embedding.py").write_text("raise SystemExit\n")  # as on the hub
    model = MoonModel.from_pretrained(folder)
    assert (model.encode(products(INPUTS)).vectors * reference(folder, INPUTS)).sum(1).min() >= CLOSEST
    asked = MoonModel.from_backbone(str(folder), PromptSpec(instruction="Find the product"))
    theirs = reference(folder, INPUTS[:1], "Find the product.")
    assert (asked.encode(products(INPUTS[:1])).vectors * theirs).sum(1).min() >= CLOSEST
    assert asked.fingerprint != model.fingerprint


def test_its_vectors_are_the_same_model_at_every_start(stock: Callable[..., Path], tmp_path: Path) -> None:
    folder = stock()
    model, again = MoonModel.from_pretrained(folder), MoonModel.from_pretrained(folder)
    assert model.fingerprint == again.fingerprint
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    model.save_pretrained(tmp_path / "mine")
    loaded = MoonModel.from_pretrained(tmp_path / "mine")
    found = (m.encode(products(INPUTS), reason="on") for m in (model, loaded))
    one, other = found
    np.testing.assert_allclose(one.vectors, other.vectors, atol=1e-6)
    assert one.rationales == other.rationales and loaded.prompt == model.prompt


def test_a_cold_start_begins_at_the_models_own_vector(stock: Callable[..., Path]) -> None:
    from moonshelf.training.cold_start import start
    from moonshelf.training.recipe import Recipe

    folder = stock()
    recipe = Recipe(backbone=str(folder), sources=[], prompt=PromptSpec(text_fields=("title", "brand")))
    model = start(recipe, [])
    assert model.writes and model.prompt.text_fields == ("title", "brand")
    assert (model.encode(products(INPUTS)).vectors * reference(folder, INPUTS)).sum(1).min() >= CLOSEST
    assert not MoonModel.from_pretrained(folder).writes


def test_every_part_of_the_head_learns_after_one_step(stock: Callable[..., Path]) -> None:
    model = MoonModel.from_backbone(str(stock())).train()
    batch = model.prepare.batch(
        model.prepare.text_ids([TEXT, "leather heels"]), [[], []],
        [[model.prepare.think, *model.prepare.text_ids(["colour: red"])[0], model.prepare.end_think,
          model.prepare.emb]] * 2,
    )  # fmt: skip
    optimiser = torch.optim.SGD(model.head.parameters(), lr=1.0)
    for _ in range(2):
        optimiser.zero_grad()
        a, b = F.normalize(model(batch)[0], dim=-1)
        (a @ b).backward()
        gradients = {n: p.grad for n, p in model.head.named_parameters()}
        optimiser.step()
    seen = [n for n, g in gradients.items() if g is not None and bool(g.abs().sum() > 0)]
    silent = set(gradients) - set(seen)
    assert all("image" in name for name in silent), silent  # these texts show no picture


def test_an_instruct_model_writes_at_once_and_says_what_it_lacks(stock: Callable[..., Path]) -> None:
    folder = stock(st=False, closes=False)
    with pytest.warns(UserWarning, match="can write attributes at once, but its vectors need training"):
        model = MoonModel.from_backbone(str(folder))
    assert model.reason(products(INPUTS))[0].startswith("<think>")
    with pytest.raises(UserError, match="instruct model"):
        MoonModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("file", "values", "why"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "mean"}, "pooling is mean"),
        ("1_Pooling/config.json", {"pooling_mode": None, "pooling_mode_cls_token": True}, "cls_token"),
        ("sentence_bert_config.json", {"modality_config": {"text": {}}}, "plain text"),
        ("tokenizer_config.json", {"chat_template": "{{ 'always the same' }}"}, "template"),
    ],
)
def test_other_embedding_models_are_refused_in_one_sentence(
    stock: Callable[..., Path], file: str, values: dict[str, Any], why: str
) -> None:
    folder = stock()
    change(folder / file, **values)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UserError, match=why) as caught:
        MoonModel.from_backbone(str(folder))
    assert "st:FOLDER" in str(caught.value)


def test_modules_of_strangers_are_refused(stock: Callable[..., Path]) -> None:
    folder = stock()
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": f"{ST}.dense.Dense"}
    dump(folder / "modules.json", [*MODULES, dense])
    with pytest.raises(UserError, match=r"Dense.*st:FOLDER"):
        MoonModel.from_backbone(str(folder))
    dump(folder / "modules.json", [{"path": "", "type": "evil.Module"}])
    with pytest.raises(UserError, match="another module"):
        MoonModel.from_backbone(str(folder))
    dump(folder / "modules.json", [MODULES[0], MODULES[1] | {"path": "../other"}])
    with pytest.raises(UserError, match="none of its folders"):
        MoonModel.from_backbone(str(folder))
    dump(folder / "modules.json", MODULES)
    change(folder / "config.json", model_type="gemma3_text")
    with pytest.raises(UserError, match=r"gemma3_text.*qwen3_vl"):
        MoonModel.from_backbone(str(folder))


def test_the_template_of_the_tests_is_the_starters(stock: Callable[..., Path]) -> None:
    assert MoonProcessor.from_pretrained(str(stock())).tokenizer.chat_template == CHAT_TEMPLATE

"""A tiny model of each backbone family, random but complete, and products of every shape."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tiny import LIMIT, pictures
from torch import nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen2VLImageProcessorPil,
)

from moonshelf.model.configuration import MoonConfig, default_taps
from moonshelf.model.modeling import MoonModel
from moonshelf.model.processing import MoonProcessor
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec
from moonshelf.training.starter import SPECIAL_TOKENS, build_starter, build_tokenizer

PROMPT = PromptSpec(max_rationale_tokens=LIMIT)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Qwen2TokenizerFast:
    texts = ["red running shoe for men", "category: shoes > heels; colour: red; material: leather"]
    return build_tokenizer([*texts, "user\nassistant\n"] * 50, vocabulary=400)


@pytest.fixture(scope="session")
def model(tokenizer: Qwen2TokenizerFast) -> MoonModel:
    """Qwen3-VL, hidden 64, two layers, with a language head of its own: rationales end at different steps."""
    built = build_starter(tokenizer, hidden=64, layers=2, vision_hidden=64, vision_depth=2, prompt=PROMPT)
    return liven(built)


@pytest.fixture(scope="session")
def model_2_5(tokenizer: Qwen2TokenizerFast) -> MoonModel:
    """The same size on Qwen2.5-VL."""
    torch.manual_seed(1)
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
            "num_attention_heads": 1, "num_key_value_heads": 1,
            "max_position_embeddings": 1024, "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]},
        },
        vision_config={
            "depth": 2, "hidden_size": 64, "num_heads": 1, "intermediate_size": 128, "patch_size": 14,
            "out_hidden_size": 64, "window_size": 56, "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )  # fmt: skip
    processor = MoonProcessor(
        Qwen2VLImageProcessorPil(patch_size=14), copy.deepcopy(tokenizer), tokenizer.chat_template
    )
    head = MoonConfig(hidden=64, taps=default_taps(2))
    backbone = Qwen2_5_VLForConditionalGeneration(config)
    return liven(MoonModel(backbone, processor, head, PROMPT).eval())


def liven(model: MoonModel) -> MoonModel:
    """Larger random weights: a fresh initialisation is so small that inputs hardly tell in the vectors.

    The language head becomes one of its own, because a tied random one repeats its input, with a preference
    for `</think>`, so that rationales end, at steps that depend on the row.
    """
    generator = torch.Generator().manual_seed(7)
    backbone = model.backbone
    backbone.config.tie_word_embeddings = backbone.config.text_config.tie_word_embeddings = False
    backbone.lm_head = nn.Linear(model.config.hidden, model.vocabulary, bias=False)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "gate" not in name:
                spread = 1.0 if "embed_tokens" in name else weight[0].numel() ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
        backbone.lm_head.weight[model.prepare.end_think] *= 3.0
        for step in model.head.fire.steps:
            step.scale.fill_(0.5)
    return model


@pytest.fixture
def fresh(model: MoonModel) -> MoonModel:
    """A copy that a test may break."""
    return copy.deepcopy(model)


@pytest.fixture(scope="session")
def saved(model: MoonModel, tmp_path_factory: pytest.TempPathFactory) -> MoonModel:
    """The tiny model saved with golden vectors, and loaded again; `saved.source` is its folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    copy.deepcopy(model).save_pretrained(folder, golden=True)
    return MoonModel.from_pretrained(folder)


@pytest.fixture(scope="session")
def products() -> list[Product]:
    """Text only, image only, both, several images, and a long text."""
    return [
        Product(id="text", title="red running shoe"),
        Product(id="image", images=pictures(1)),
        Product(id="both", title="leather heels", images=pictures(2)),
        Product(id="several", title="blue shoe for men", images=pictures(3, 4, 5)),
        Product(id="long", title="category of red leather shoes for men and running " * 4),
        Product(id="short", title="a", images=pictures(6)),
    ]


@pytest.fixture
def script(fresh: MoonModel, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], MoonModel]:
    """A model that wants to write given token ids, whatever it reads (one product at a time)."""

    def make(ids: list[int]) -> MoonModel:
        left = iter(ids)

        def logits(states: torch.Tensor) -> torch.Tensor:
            wanted = torch.zeros(len(states), fresh.vocabulary)
            wanted[:, next(left, fresh.prepare.end_think)] = 1.0
            return wanted

        monkeypatch.setattr(fresh, "logits", logits)
        return fresh

    return make

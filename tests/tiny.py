"""Tiny models of both backbone families, random but complete, and pictures, for all tests that need one."""

from __future__ import annotations

import copy
import io

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen2VLImageProcessorPil,
)

from moonshelf.model.configuration import MoonConfig, default_taps
from moonshelf.model.head import PICTURE
from moonshelf.model.modeling import MoonModel
from moonshelf.model.processing import MoonProcessor
from moonshelf.product import ImageRef
from moonshelf.prompts import PromptSpec
from moonshelf.training.starter import SPECIAL_TOKENS, build_starter, build_tokenizer

LIMIT = 24  # tokens of a rationale; short, so that truncation is reached quickly
PROMPT = PromptSpec(max_rationale_tokens=LIMIT)


def picture(seed: int, width: int = 120, height: int = 96) -> bytes:
    """A PNG of coloured blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(*seeds: int) -> tuple[ImageRef, ...]:
    return tuple(ImageRef(data=picture(seed, 90 + 11 * seed, 150 - 9 * seed)) for seed in seeds)


def tiny_tokenizer() -> Qwen2TokenizerFast:
    texts = ["red running shoe for men", "category: shoes > heels; colour: red; material: leather"]
    return build_tokenizer([*texts, "user\nassistant\n"] * 50, vocabulary=400)


def tiny_qwen3(tokenizer: Qwen2TokenizerFast) -> MoonModel:
    """Qwen3-VL, hidden 64, two layers, all paths, own language head: rationales end at different steps."""
    built = build_starter(
        tokenizer, hidden=64, layers=2, vision_hidden=64, vision_depth=2, prompt=PROMPT, words=len(tokenizer),
        pictures=PICTURE + 1,
    )  # fmt: skip
    return liven(built)


def tiny_qwen2_5(tokenizer: Qwen2TokenizerFast) -> MoonModel:
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
            if weight.dim() > 1 and ("gate" not in name or "words" in name or "pictures" in name):
                spread = 1.0 if "embed_tokens" in name else weight[0].numel() ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
        backbone.lm_head.weight[model.prepare.end_think] *= 3.0
        for step in model.head.fire.steps:
            step.scale.fill_(0.5)
    return model

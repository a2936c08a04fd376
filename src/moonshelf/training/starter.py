"""The starter: a Qwen3-VL of a size that a CPU trains, with a tokenizer of its own.

Choices (ours): byte-level BPE in Qwen's form with a small vocabulary from product text, so the tied embedding
does not outweigh the network; a tower that is deeper than the decoder is wide, because what a product
looks like is harder than what its rationale says; about 20 visual tokens a photo (96 to 160 pixels a side),
which is what two cores can train.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from moonshelf.model.configuration import MoonConfig, default_taps
from moonshelf.model.modeling import MoonModel
from moonshelf.model.processing import ADDED_TOKENS, MoonProcessor
from moonshelf.prompts import PromptSpec

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
# Splits at spaces, punctuation and digits, so that values such as `navy blue` or `1990` share their pieces.
_SPLIT = r"\s*[\r\n]+|\s?\p{L}+|\p{N}|\s?[^\s\p{L}\p{N}]+|\s+"
CHAT_TEMPLATE = (
    "{%- for m in messages %}<|im_start|>{{ m.role + '\\n' }}"  # a bare newline would be eaten by the dash
    "{%- if m.content is string %}{{ m.content }}{%- else %}"
    "{%- for c in m.content %}{%- if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif c.type == 'text' %}{{ c.text }}{%- endif %}{%- endfor %}{%- endif %}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(texts: Iterable[str], vocabulary: int = 6144) -> Qwen2Tokenizer:
    """Byte-level BPE over `texts`, with Qwen's special tokens and the three ordinary ones of ours."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS) - len(ADDED_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = Qwen2Tokenizer(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens(list(ADDED_TOKENS))
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_starter(
    tokenizer: Qwen2Tokenizer,
    *,
    hidden: int = 256,
    layers: int = 4,
    vision_hidden: int = 192,
    vision_depth: int = 6,
    prompt: PromptSpec | None = None,
    tower: Path | None = None,
    seed: int = 0,
    **head: object,
) -> MoonModel:
    """A randomly initialised starter; `tower` is a safetensors file with weights for the vision tower."""
    torch.manual_seed(seed)
    prompt = prompt or PromptSpec()
    vocabulary = tokenizer.get_vocab()
    ids = {token: vocabulary[token] for token in SPECIAL_TOKENS}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": hidden, "intermediate_size": int(hidden * 2.5),
            "num_hidden_layers": layers, "num_attention_heads": max(1, hidden // 64),
            "num_key_value_heads": max(1, hidden // 128), "head_dim": 64, "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [12, 10, 10],
                "mrope_interleaved": True,
            },
            "pad_token_id": ids["<|endoftext|>"], "bos_token_id": None, "eos_token_id": ids["<|im_end|>"],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": vision_depth, "hidden_size": vision_hidden, "num_heads": max(1, vision_hidden // 64),
            "intermediate_size": vision_hidden * 4, "patch_size": 16, "temporal_patch_size": 2,
            "spatial_merge_size": 2, "out_hidden_size": hidden, "num_position_embeddings": 256,
            "deepstack_visual_indexes": [vision_depth // 2],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )  # fmt: skip
    backbone = Qwen3VLForConditionalGeneration(config)
    if tower is not None:
        backbone.model.visual.load_state_dict(load_file(tower))
    images = Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, temporal_patch_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        min_pixels=prompt.min_pixels, max_pixels=prompt.max_pixels,
    )  # fmt: skip
    processor = MoonProcessor(images, tokenizer, chat_template=CHAT_TEMPLATE)
    settings = {"hidden": hidden, "taps": default_taps(layers), **head}
    return MoonModel(backbone, processor, MoonConfig.model_validate(settings), prompt).eval()

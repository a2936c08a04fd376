"""Tiny models of others with random weights, as folders: a CLIP, and a SentenceTransformer over a BERT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

SIZE = {"height": 32, "width": 32}
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 16,
}  # fmt: skip
TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vocab_size": 54, "max_position_embeddings": 32, "bos_token_id": 52, "eos_token_id": 53,
    "pad_token_id": 53,
}  # fmt: skip
WORDS = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "green", "shoe", "boot", "bag", "mug",
    "lamp", "running", "leather", "canvas", "glass", "desk", "find", "page", ":",
)  # fmt: skip


def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])


def lively(model: Any) -> Any:
    """Larger random weights: with fresh ones inputs hardly tell in the vectors."""
    import torch

    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                spread = weight[0].numel() ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * spread * 1.5)
    return model


def make_clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = CLIPConfig(text_config=TOWER, vision_config=VISION, projection_dim=24)
    lively(CLIPModel(config)).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


def make_bert(folder: Path, prompts: dict[str, str] | None = None) -> Any:
    """A SentenceTransformer of words, mean-pooled; saved there and given back."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    inner = folder.with_name(folder.name + "-bert")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(inner)
    config = {key: TOWER[key] for key in list(TOWER)[:4]}
    built = BertModel(BertConfig(**config, vocab_size=len(WORDS), max_position_embeddings=32))
    lively(built).save_pretrained(inner)
    modules = [Transformer(str(inner)), Pooling(32)]
    model = sentence_transformers.SentenceTransformer(modules=modules, device="cpu", prompts=prompts)
    model.save_pretrained(str(folder))
    return model


def make_cross_encoder(folder: Path, labels: int = 1) -> Any:
    """A CrossEncoder of words; saved there and given back."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    inner = folder.with_name(folder.name + "-inner")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(inner)
    config = {key: TOWER[key] for key in list(TOWER)[:4]}
    built = BertForSequenceClassification(
        BertConfig(**config, vocab_size=len(WORDS), max_position_embeddings=64, num_labels=labels)
    )
    lively(built).save_pretrained(inner)
    model = sentence_transformers.CrossEncoder(str(inner), device="cpu")
    model.save_pretrained(str(folder))
    return model


def make_qwen(folder: Path, prompts: dict[str, str] | None = None) -> Any:
    """A SentenceTransformer like Qwen3-VL-Embedding: the last token's state, of text, picture or both."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from unittest.mock import patch

    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    from moonshelf.model.processing import MoonProcessor
    from tiny import tiny_qwen3, tiny_tokenizer

    built, inner = tiny_qwen3(tiny_tokenizer()), folder.with_name(folder.name + "-inner")
    built.backbone.save_pretrained(inner)
    built.processor.save_pretrained(inner)
    # The stock processor cannot be built where torchvision is missing.
    with patch("transformers.AutoProcessor.from_pretrained", MoonProcessor.from_pretrained):
        modules = [Transformer(str(inner)), Pooling(64, pooling_mode="lasttoken"), Normalize()]
        model = sentence_transformers.SentenceTransformer(modules=modules, device="cpu", prompts=prompts)
        model.save_pretrained(str(folder))
    return model

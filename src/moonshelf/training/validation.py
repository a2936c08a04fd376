"""Figures on held-out products while training: for choosing a checkpoint, never for reporting a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moonshelf.model.encoders.stream import encode
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product
from moonshelf.prompts import read_rationale
from moonshelf.training.sources.pairs import Item


def validate(model: MoonModel, items: Sequence[Item]) -> dict[str, Any]:
    """Retrieval of pictures by titles and of titles by pictures, and what is read off the picture alone.

    `score`, the mean of all recalls, of direct and reasoned vectors, is what checkpoints are chosen by.
    """
    was_training = model.training
    model.eval()
    pictures = [Product(id=i.id, images=i.images[:1]) for i in items]
    titles = [Product(id=i.id, title=i.title) for i in items if i.title]
    direct, reasoned = (encode(model, pictures, mode) for mode in ("off", "on"))
    result: dict[str, Any] = {"validation": len(items)}
    if len(titles) == len(items):
        texts = encode(model, titles, "off").vectors
        recalls: dict[str, float] = {}
        for name, seen in (("direct", direct), ("reasoned", reasoned)):
            near = texts @ seen.vectors.T
            for way, scores in (("title->photo", near), ("photo->title", near.T)):
                ranks = pessimistic_ranks(scores)
                recalls |= {f"{name} {way} R@{k}": round(float((ranks < k).mean()), 4) for k in (1, 10)}
        result |= {**recalls, "score": round(sum(recalls.values()) / len(recalls), 4)}
    read = [read_rationale(text) or {} for text in reasoned.rationales]
    truth = [read_rationale(item.rationale) or {} for item in items]
    for key in ("category", "colour"):
        asked = [(a.get(key), b[key]) for a, b in zip(read, truth, strict=True) if key in b]
        if asked:
            result[f"written {key}"] = round(sum(a == b for a, b in asked) / len(asked), 4)
    result["valid"] = round(reasoned.reasoning_valid_rate, 4)
    result["example"] = reasoned.rationales[0]
    model.train(was_training)
    return result


def pessimistic_ranks(scores: np.ndarray) -> np.ndarray:
    """(n,) int64: how many wrong columns score at least as high as the diagonal of (n, n) `scores`."""
    return (scores >= scores.diagonal()[:, None]).sum(1) - 1

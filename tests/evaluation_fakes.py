"""Encoders small enough to know what they must score, and one that stands for the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from moonshelf import images
from moonshelf.errors import Problem
from moonshelf.evaluation.contract import BOTH, Vectors
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec

WORDS, COLOURS = 2048, 48


def unit(vectors: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(norm > 0, norm, 1)).astype(np.float32)


def words_vector(text: str) -> np.ndarray:
    """Bag of hashed words."""
    vector = np.zeros(WORDS)
    for word in text.lower().split():
        vector[int.from_bytes(hashlib.sha256(word.encode()).digest()[:4]) % WORDS] += 1
    return unit(vector)


def picture_vector(product: Product) -> np.ndarray:
    """Means of a 4 × 4 grid; raises ImageError where a picture is broken."""
    if not product.images:
        return np.zeros(COLOURS)
    picture = images.load(product.images[0], max_side=64).resize((4, 4))
    return unit(np.asarray(picture, float).ravel() - 250)


@dataclass
class FakeEncoder:
    """Vectors from a function; counts what it was asked for."""

    vector: Callable[[Product], np.ndarray]
    name: str = "fake"
    fingerprint: str = "fake-1"
    reads: frozenset[str] = BOTH
    one_space: bool = True
    writes: bool = False
    cheap: bool = False
    rationale: Callable[[Product], str] | None = None
    broken: frozenset[str] = frozenset()
    seen: list[str] = field(default_factory=list)

    def encode(self, products: Sequence[Product]) -> Vectors:
        self.seen += [p.id for p in products]
        ok = np.array([p.id not in self.broken for p in products])
        vectors = np.stack([self.vector(p) for p in products]).astype(np.float32) * ok[:, None]
        texts = [self.rationale(p) if self.rationale else "" for p in products]
        problems = [Problem(i, "images", "broken", p.id) for i, p in enumerate(products) if not ok[i]]
        return Vectors(vectors, ok, texts, np.array([t != "broken" for t in texts]), problems)


@dataclass
class FakeEncoded:
    ids: list[str]
    vectors: np.ndarray
    rationales: list[str]
    valid: np.ndarray
    row_index: np.ndarray
    problems: list[Problem]
    tokens: np.ndarray  # "written": the words of the rationale


class FakeMoon:
    """The model's contract: words and a colour grid side by side, and the title as a rationale."""

    fingerprint = "0123456789abcdef"
    reads, writes, queries = BOTH, True, None
    prompt = PromptSpec()
    dim = WORDS + COLOURS

    def __init__(self, change: Callable[[np.ndarray], np.ndarray] = lambda vectors: vectors) -> None:
        self.change = change
        self.calls = 0

    def encode(self, products, reason="off", batch_tokens=8192, on_error="raise", progress=False):
        rows, vectors, problems = [], [], []
        self.calls += len(products)
        for row, product in enumerate(products):
            try:
                parts = [words_vector(self.prompt.text_of(product)), picture_vector(product)]
            except images.ImageError as error:
                problems.append(Problem(row + 1, "images", str(error), product.id))
                continue
            rows.append(row)
            vectors.append(np.concatenate(parts))
        rationale = "" if reason == "off" else "<think>category: apparel > topwear; colour: red</think>"
        n = len(rows)
        return FakeEncoded(
            [products[row].id for row in rows],
            self.change(unit(np.stack(vectors))) if n else np.zeros((0, self.dim), np.float32),
            [rationale] * n,
            np.ones(n, bool),
            np.array(rows, np.int64),
            problems,
            np.full(n, len(rationale.split())),
        )

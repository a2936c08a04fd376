"""Unit vectors as products have them: clusters, in each a few directions that matter; early numbers weigh
more, as Matryoshka training makes them."""

from __future__ import annotations

import numpy as np

DIM = 64


def clustered(rng: np.random.Generator, rows: int, dim: int = DIM, clusters: int = 40) -> np.ndarray:
    """(rows, dim) float32. The clusters are the same in every call."""
    fixed = np.random.default_rng(99)
    weights = (np.arange(dim) + 8.0) ** -0.35
    centres = fixed.normal(size=(clusters, dim)) * weights
    mixing = fixed.normal(size=(clusters, 12, dim)) * weights / np.sqrt(12)
    which = np.sort(rng.integers(clusters, size=rows))
    vectors = 0.15 * weights * rng.normal(size=(rows, dim))
    for one in range(clusters):
        mine = slice(*np.searchsorted(which, [one, one + 1]))
        vectors[mine] += centres[one] + 0.7 * rng.normal(size=(mine.stop - mine.start, 12)) @ mixing[one]
    rng.shuffle(vectors)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

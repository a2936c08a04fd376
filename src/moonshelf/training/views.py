"""Views of a batch of products: rows of text, pictures and tail over visual features computed once.

The same pictures are read with a title, without one, before a teacher's rationale and after the model's own;
the tower runs once for all of them, and its gradient is the sum over the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from moonshelf.model.engine import write
from moonshelf.model.modeling import MoonModel, choose_features
from moonshelf.model.processing import Batch
from moonshelf.training.data import Pictures, Remembered, Row


class SharedVisionBatch:
    """Rows over the pictures of one draw; a frozen tower's features may be `remembered`."""

    def __init__(self, model: MoonModel, pictures: Pictures, remembered: Remembered | None = None) -> None:
        self.model, self.grid = model, pictures.grids
        self.visual = None
        if len(self.grid):
            self.visual = _recalled(model, pictures, remembered) if remembered else _seen(model, pictures)

    def batch(self, rows: Sequence[Row]) -> tuple[Batch, Any]:
        """The rows as one padded batch, and the visual features of its pictures, None without any."""
        prepare = self.model.prepare
        counts = prepare.image_tokens(self.grid)
        places = [p for _, pictures, _ in rows for p in pictures]
        batch = prepare.batch(
            [text for text, _, _ in rows],
            [[counts[p] for p in pictures] for _, pictures, _ in rows],
            [tail for _, _, tail in rows],
        )
        if places:
            batch.grid = torch.from_numpy(self.grid[places])
        return batch, choose_features(self.visual, places)

    def vectors(self, rows: Sequence[Row]) -> Tensor:
        """Vectors (B, dim), not normalised; every tail must end in `<emb>`."""
        return self.model(*self.batch(rows))[0]

    def likelihood(self, rows: Sequence[Row]) -> Tensor:
        """Summed cross-entropy of what the model should write: the body of each rationale and `</think>`."""
        batch, visual = self.batch(rows)
        states = self.model.read(batch, visual).states
        written = batch.rationale_mask[:, 1:] & (batch.input_ids[:, 1:] != self.model.prepare.think)
        logits = self.model.logits(states[:, :-1][written])
        return F.cross_entropy(logits.float(), batch.input_ids[:, 1:][written], reduction="sum")

    @torch.no_grad()
    def write_rationales(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[list[int]]:
        """Token ids of the bodies that the model writes for (text, pictures) now, greedily."""
        batch, visual = self.batch([(*row, [self.model.prepare.think]) for row in rows])
        reading = self.model.read(batch, visual, use_cache=True)
        return [w.ids for w in write(self.model, batch, reading)]


def _seen(model: MoonModel, pictures: Pictures) -> Any:
    patches = torch.from_numpy(np.concatenate(pictures.patches)).to(model.device)
    return model.look(patches, torch.from_numpy(pictures.grids).to(model.device))


@torch.no_grad()
def _recalled(model: MoonModel, pictures: Pictures, memory: Remembered) -> Any:
    """Features of all pictures; those that were not remembered are looked at and remembered."""
    fresh = [p for p, key in enumerate(pictures.keys) if key not in memory.features]
    if fresh:
        seen = _seen(model, pictures.chosen(fresh))
        layers = getattr(seen, "deepstack_features", [])
        for n, p in enumerate(fresh):
            deep = [layer[n].half() for layer in layers]
            memory.features[pictures.keys[p]] = seen.pooler_output[n].half(), deep
            memory.grids[pictures.keys[p]] = pictures.grids[p]
    found = [memory.features[key] for key in pictures.keys]
    return SimpleNamespace(
        pooler_output=[merged.float() for merged, _ in found],
        deepstack_features=[[layers[n].float() for _, layers in found] for n in range(len(found[0][1]))],
    )

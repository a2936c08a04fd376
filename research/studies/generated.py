"""Rationales by transformers' own `generate`: the reference of parity, benchmarks and tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from moonshelf.model import engine
from moonshelf.model.decode import banned_tokens
from moonshelf.model.engine import Row
from moonshelf.model.modeling import MoonModel
from moonshelf.model.processing import Batch
from moonshelf.model.writers import Body, body_of


class _Banned(LogitsProcessor):
    """The engine's constraint: no reserved token in a rationale."""

    def __init__(self, bias: torch.Tensor) -> None:
        self.bias = bias

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + self.bias


class Generated:
    """`generate` of transformers, greedy, on prompts padded on the left; all rows in one batch."""

    def write(self, model: MoonModel, rows: Sequence[Row]) -> list[Body]:
        with model.inferring():
            return self.write_batch(model, engine.make_batch(model, rows, [model.prepare.think]))

    def write_batch(self, model: MoonModel, batch: Batch) -> list[Body]:
        prepare, limit = model.prepare, model.prompt.max_rationale_tokens
        shift = batch.input_ids.shape[1] - batch.attention.sum(1)
        turned = [
            torch.stack([row.roll(int(by)) for row, by in zip(tensor, shift, strict=True)])
            for tensor in (batch.input_ids, batch.attention.long(), batch.image_mask.int())
        ]
        pixels = {}
        if batch.pixel_values is not None:
            pixels = {"pixel_values": batch.pixel_values, "image_grid_thw": batch.grid}
        generate: Any = model.backbone.generate
        output = generate(
            input_ids=turned[0],
            attention_mask=turned[1],
            mm_token_type_ids=turned[2],
            **pixels,
            max_new_tokens=limit + 1,
            do_sample=False,
            eos_token_id=prepare.end_think,
            pad_token_id=prepare.pad,
            logits_processor=LogitsProcessorList([_Banned(banned_tokens(model))]),
        )
        written = output[:, batch.input_ids.shape[1] :].tolist()
        return [body_of(model, ids) for ids in written]

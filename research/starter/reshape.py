"""A model under another head: what a stage of the starter adds begins silent, and the rest is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moonshelf.model.modeling import MoonModel
from moonshelf.model.processing import MoonProcessor
from moonshelf.prompts import PromptSpec


def reshaped(
    model: MoonModel, anew: Sequence[str] = (), processor: MoonProcessor | None = None,
    prompt: PromptSpec | None = None, **settings: Any,
) -> MoonModel:  # fmt: skip
    """The same backbone under a head with other `settings` (`MoonConfig`), and another processor or prompt.

    Weights that both heads have are kept, but for those whose names start as one of `anew` does.
    """
    config = model.config.model_copy(update=settings)
    made = MoonModel(model.backbone, processor or model.processor, config, prompt or model.prompt)
    kept = {n: weight for n, weight in model.head.state_dict().items() if not n.startswith(tuple(anew))}
    made.head.load_state_dict(kept, strict=False)
    made.labels, made.precision = model.labels, model.precision
    return made.eval()

"""Low-rank adapters and frozen parts, on the stock backbone where it stands.

PEFT puts its layers into the backbone without wrapping it, so names, hooks and the engine stay as they are.
What is saved has the adapters merged in: a Moonshelf folder never needs PEFT.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moonshelf.errors import UserError
from moonshelf.model.modeling import MoonModel
from moonshelf.training.recipe import Lora


def freeze(model: MoonModel, prefixes: Sequence[str]) -> None:
    """Stop training every parameter whose name starts with one of `prefixes`; an unknown one is an error."""
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            parts = sorted({".".join(name.split(".")[:3]) for name in names})
            raise UserError(f"freeze: no parameter starts with {prefix!r}; there are {', '.join(parts)}.")
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(prefixes)):
            parameter.requires_grad_(False)


def add_lora(model: MoonModel, lora: Lora) -> None:
    """Adapters in the language model; the rest of the backbone is frozen, the head is trained in full."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("LoRA needs PEFT: install moonshelf[train].") from None
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
        target_modules=rf"(model\.)?language_model\..*\.({'|'.join(lora.targets)})",
    )  # fmt: skip
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    inject_adapter_in_model(config, model.backbone)
    # Three new tokens need an embedding of their own; on a pretrained backbone they would stay random.
    model.backbone.get_input_embeddings().weight.requires_grad_(True)


def _layers(model: nn.Module) -> list[nn.Module]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """The model as it was before the adapters: the reference of a KL term."""
    layers = _layers(model)
    for layer in layers:
        layer.enable_adapters(False)  # type: ignore[operator]
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)  # type: ignore[operator]


@torch.no_grad()
def merged_state(model: MoonModel) -> dict[str, Tensor]:
    """The backbone's weights with the adapters merged in, under the names that it had before them."""
    layers = _layers(model.backbone)
    for layer in layers:
        layer.merge()  # type: ignore[operator]
    try:
        return {
            name.replace(".base_layer.", "."): tensor.clone()
            for name, tensor in model.backbone.state_dict().items()
            if ".lora_" not in name
        }
    finally:
        for layer in layers:
            layer.unmerge()  # type: ignore[operator]

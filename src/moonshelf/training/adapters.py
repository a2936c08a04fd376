"""Low-rank adapters, four-bit weights under them, and frozen parts, on the stock backbone where it stands.

PEFT and bitsandbytes put their layers into the backbone without wrapping it, so names, hooks and the engine
stay as they are. What is saved is a plain backbone with the adapters merged in: a Moonshelf folder needs
neither. Frozen weights that bfloat16 holds exactly, as those of a published checkpoint, are kept in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moonshelf.errors import UserError
from moonshelf.model.modeling import MoonModel
from moonshelf.training.recipe import JointRecipe, Lora, Recipe

_OURS = (".lora_", ".trainable_tokens_", ".weight.")  # of adapters, and of four-bit weights


def adapt(model: MoonModel, recipe: Recipe | JointRecipe, tokens: Sequence[int] | None = None) -> None:
    """What a recipe says of the weights: frozen parts, adapters, four bits; the model is on its device."""
    freeze(model, recipe.freeze)
    if recipe.lora and recipe.lora.quantise:
        quantise(model, recipe.lora)
    if recipe.lora:
        add_lora(model, recipe.lora, tokens)
    if recipe.checkpointing:
        model.backbone.gradient_checkpointing_enable()
    if recipe.precision != "float32":
        lighten(model)


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


@torch.no_grad()
def lighten(model: MoonModel) -> None:
    """Keep frozen matrices in bfloat16 where that loses nothing."""
    for parameter in model.backbone.parameters():
        if not parameter.requires_grad and parameter.ndim > 1 and parameter.dtype == torch.float32:
            rounded = parameter.to(torch.bfloat16)
            if torch.equal(rounded.float(), parameter):
                parameter.data = rounded


def targets(lora: Lora) -> str:
    """The linear layers that have adapters, as a pattern for PEFT."""
    parts = [rf"language_model\..*\.({'|'.join(lora.targets)})"]
    if lora.vision:
        parts.append(rf"visual\.(?!patch_embed).*\.({'|'.join(lora.vision)})")  # which is a convolution
    return rf"(model\.)?({'|'.join(parts)})"


def add_lora(model: MoonModel, lora: Lora, tokens: Sequence[int] | None = None) -> None:
    """Adapters in the language model (and the tower), and rows of the embedding for `tokens`.

    None means the three new tokens: without rows of their own those of a stock backbone would stay random.
    The rest of the backbone is frozen, the head is not.
    """
    if tokens is None:
        tokens = [model.prepare.think, model.prepare.end_think, model.prepare.emb]
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("LoRA needs PEFT: pip install 'moonshelf[train]'.") from None
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets(lora),
        trainable_token_indices=list(tokens) or None,
    )  # fmt: skip
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    inject_adapter_in_model(config, model.backbone)


@torch.no_grad()
def quantise(model: MoonModel, lora: Lora) -> None:
    """Put the weights that will have adapters into four bits (NF4, double quantisation): QLoRA."""
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        raise UserError("QLoRA needs bitsandbytes: pip install 'moonshelf[qlora]'.") from None
    device = model.device
    for part in list(model.decoder.modules()):
        for name, old in part.named_children():
            if type(old) is nn.Linear and name in lora.targets:
                new = Linear4bit(
                    old.in_features, old.out_features, bias=old.bias is not None, compress_statistics=True,
                    compute_dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
                    quant_type="nf4", device="meta",
                )  # fmt: skip
                packed: Any = Params4bit(
                    old.weight.data.cpu(), requires_grad=False, compress_statistics=True, quant_type="nf4"
                )
                new.weight = packed.to(device)  # where the packing happens
                new.bias = old.bias
                setattr(part, name, new)
    setattr(model.backbone, "is_loaded_in_4bit", True)  # noqa: B010  (PEFT asks for this)


def _layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """The model as it was before the adapters: the reference of a KL term."""
    layers = _layers(model)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def merged_state(model: MoonModel) -> dict[str, Tensor]:
    """The backbone's weights with the adapters merged in, under the names that it had before them.

    Merged weights are float32, since a rounded one would not hold a small change; all others are as they are.
    """
    modules = dict(model.backbone.named_modules())
    state = {}
    for name, tensor in model.backbone.state_dict().items():
        if any(part in name for part in _OURS):
            continue
        place, _, kind = name.rpartition(".")
        owner = modules[place.removesuffix(".base_layer")]
        if kind == "weight" and place.endswith(".base_layer"):
            if hasattr(owner, "get_delta_weight"):
                tensor = _dense(owner.base_layer) + owner.get_delta_weight("default").float()
            else:
                tensor = owner.get_merged_weights(["default"])
        plain = name.replace(".token_adapter.", ".").replace(".base_layer.", ".")
        state[plain] = tensor.detach().clone()
    return state


def _dense(layer: nn.Module) -> Tensor:
    """(out, in) float32 of a linear layer, whatever it is kept in."""
    weight: Any = layer.weight
    if getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state).float()
    return weight.float()

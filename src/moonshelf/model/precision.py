"""bfloat16 where it pays: autocast with float32 weights, and on a CPU float32 attention.

A CPU with bfloat16 dot products (AVX-512 BF16, AMX) runs matrix products 2.5 times as fast as in float32, but
PyTorch's fused attention is slower backwards in bfloat16 than what the products gain; so attention stays in
float32 there. On a CPU without those instructions bfloat16 is emulated and far slower: `auto` asks first.

Autocast turns a weight to bfloat16 once for as long as it lasts, but at every use under `inference_mode`,
whose tensors it does not keep. On a GPU, where a step of writing is bound by reading weights, the engine
therefore computes under `no_grad`; on a CPU the two are alike, and `inference_mode` is quicker in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from moonshelf.errors import UserError

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
FLOAT32_ATTENTION = "sdpa_float32"


def _float32_attention(module: nn.Module, q: Any, k: Any, v: Any, *args: Any, **options: Any) -> Any:
    with torch.autocast("cpu", enabled=False):
        return sdpa_attention_forward(module, q.float(), k.float(), v.float(), *args, **options)


AttentionInterface.register(FLOAT32_ATTENTION, _float32_attention)
AttentionMaskInterface.register(FLOAT32_ATTENTION, sdpa_mask)


def resolve(precision: Precision, device: torch.device) -> torch.dtype:
    """The compute type: `auto` is bfloat16 where the machine has instructions for it."""
    if precision == "auto":
        if device.type == "cpu":
            has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        else:
            has = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def without_gradients(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[None]:
    """`inference_mode`, or `no_grad` where autocast is to keep the weights that it has turned to `dtype`."""
    return torch.no_grad() if dtype != torch.float32 and device.type != "cpu" else torch.inference_mode()


def put_on(model: nn.Module, device: str) -> None:
    """Move a model. Raises UserError if this machine or this torch has no such device."""
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise UserError(f"the model cannot be put on {device!r}: {str(error).splitlines()[0]}") from None


@contextmanager
def computing_in(dtype: torch.dtype, *modules: Any) -> Iterator[None]:
    """Autocast to `dtype`; on a CPU the attention of these transformers models is kept in float32."""
    if dtype == torch.float32:
        yield
        return
    device = next(modules[0].parameters()).device.type
    before = [module.config._attn_implementation for module in modules]
    if device == "cpu":
        for module in modules:
            module.set_attn_implementation(FLOAT32_ATTENTION)
    try:
        with torch.autocast(device, dtype=dtype):
            yield
    finally:
        for module, name in zip(modules, before, strict=True):
            module.set_attn_implementation(name)

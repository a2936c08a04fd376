"""Averaging selectors: one adapter whose weights are the weighted mean of several adapters' on one base.

GRPO steadies the comparison and costs some of the reading that CoT-SFT taught; the mean of a run with the
selector that it started from keeps most of the first and gives the second back (docs/experiments.md).
Precedent: interpolating a fine-tuned model with its start (WiSE-FT, 2109.01903), model soups (2203.05482),
and WARP (2406.16768) for policies trained by RL. Averaging the factors A and B of LoRA each by itself, where
those works average whole weights, is ours: the result stays an adapter of the same rank, and is the better an
approximation the nearer the runs are, as those of one start are.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from moonshelf.creatives.model_backend import ADAPTER, PACKAGED, CreativeConfig, write_config
from moonshelf.errors import UserError
from moonshelf.files import read_settings
from moonshelf.model import files

SETTINGS = "adapter_config.json"


def average(selectors: Sequence[str | Path], out: Path, weights: Sequence[float] | None = None) -> None:
    """Write to `out` a selector whose tensors are the weighted mean of those of `selectors` (≥ 2 folders).

    `weights` are one a selector, 0 or more, scaled to sum to 1; without any all count alike. The mean is
    taken in float64 and stored in the widest dtype of its parts. The temperature becomes the weighted
    geometric mean of theirs, until `training.calibrate` fits it anew. Raises `UserError` where a folder is no
    adapter, or where base, prompt, rank or tensors differ.
    """
    if len(selectors) < 2:
        raise UserError("an average needs two selectors or more.")
    shares = _shares(weights or [1.0] * len(selectors), len(selectors))
    folders = [PACKAGED if str(one) == "starter" else Path(one) for one in selectors]
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise UserError(f"--out {out} is one of the selectors: name another folder.")
    configs = [_config(folder) for folder in folders]
    parts = [_tensors(folder) for folder in folders]
    settings = [files.read_json(folder / SETTINGS) for folder in folders]
    first = configs[0]
    for folder, config, tensors, lora in zip(folders, configs, parts, settings, strict=True):
        different = [
            what
            for what, same in (
                ("base", (config.base, config.base_fingerprint) == (first.base, first.base_fingerprint)),
                ("prompt", config.prompt == first.prompt),
                ("rank, scale or trained tokens", lora == settings[0]),
                ("tensors", _shapes(tensors) == _shapes(parts[0])),
            )
            if not same
        ]
        if different:
            raise UserError(
                f"{folder.name!r} cannot be averaged with {folders[0].name!r}: {', '.join(different)} "
                "differ. Take selectors that were trained from one start."
            )
    mean = {name: _mean([part[name] for part in parts], shares) for name in parts[0]}
    logs = torch.tensor([config.temperature for config in configs], dtype=torch.float64).log()
    config = first.model_copy(
        update={
            "temperature": round(float((logs * torch.tensor(shares, dtype=torch.float64)).sum().exp()), 4),
            "trained_on": "; ".join(dict.fromkeys(one.trained_on for one in configs if one.trained_on)),
        }
    )
    out.mkdir(parents=True, exist_ok=True)
    save_file(mean, out / ADAPTER, metadata={"format": "pt"})
    shutil.copyfile(folders[0] / SETTINGS, out / SETTINGS)
    write_config(out, config)


def _shares(weights: Sequence[float], count: int) -> list[float]:
    if len(weights) != count:
        raise UserError(f"{len(weights)} weights for {count} selectors: give one a selector.")
    whole = sum(weights)
    if not all(0 <= one < float("inf") for one in weights) or whole <= 0:  # nan as well
        raise UserError("weights are numbers of 0 or more, of which one is above 0.")
    return [one / whole for one in weights]


def _config(folder: Path) -> CreativeConfig:
    if not (folder / "creative.json").exists():
        raise UserError(f"{str(folder)!r} is no creative selector of this version.")
    config = read_settings(CreativeConfig, folder / "creative.json")
    if config.base is None:
        raise UserError(f"{folder.name!r} is a whole model: only adapters of one base are averaged.")
    return config


def _tensors(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / ADAPTER)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the adapter in {folder.name!r} cannot be read: {error}") from None


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: values.shape for name, values in tensors.items()}


def _mean(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    dtype = values[0].dtype
    for one in values[1:]:
        dtype = torch.promote_types(dtype, one.dtype)
    mean = sum((share * one.double() for share, one in zip(shares, values, strict=True)), torch.zeros(()))
    return mean.to(dtype).contiguous()

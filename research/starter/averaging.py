r"""Averaging selectors: one adapter whose weights are the weighted mean of several adapters' on one base.

    python -m research.starter.averaging runs/creative-sft-starter/checkpoint \
        runs/creative-grpo-starter/checkpoint --out runs/creative-averaged --simulated 2000

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
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from moonshelf.cli.console import print_json
from moonshelf.cli.options import Json
from moonshelf.creatives.backends.model import ADAPTER, PACKAGED, CreativeConfig, CreativeModel, write_config
from moonshelf.creatives.selector import fit_temperature, judge
from moonshelf.creatives.training.data import load_examples
from moonshelf.creatives.training.recipe import PairSource
from moonshelf.errors import UserError
from moonshelf.files import read_settings
from moonshelf.model import files
from research.script import app_of, start
from research.synthetic.campaigns.simulator import simulate
from research.synthetic.feeds import write_creatives

SETTINGS = "adapter_config.json"


def average(selectors: Sequence[str | Path], out: Path, weights: Sequence[float] | None = None) -> None:
    """Write to `out` a selector whose tensors are the weighted mean of those of `selectors` (≥ 2 folders).

    `weights` are one a selector, 0 or more, scaled to sum to 1; without any all count alike. The mean is
    taken in float64 and stored in the widest dtype of its parts. The temperature becomes the weighted
    geometric mean of theirs, until it is fitted anew. Raises `UserError` where a folder is no
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


def main(
    selectors: Annotated[list[str], typer.Argument(help="Folders of selectors trained from one start.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the averaged selector.")],
    weights: Annotated[
        str | None, typer.Option(help="One a selector, as in 1,1,2; without, all count alike.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="Pairs of other products, on which the temperature is fitted.")
    ] = None,
    simulated: Annotated[
        int | None, typer.Option(min=20, help="Fit it on so many drawn validation campaigns instead.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawn campaigns.")] = 2,
    json: Json = False,
) -> None:
    """Average the adapters of selectors, such as two runs of GRPO and the CoT-SFT that they started from.

    What a run gained is mostly kept, what it unlearnt mostly given back, at no cost when the result is used.
    """
    if (validation is None) == (simulated is None):
        raise UserError("an average needs a temperature of its own: give --validation or --simulated.")
    try:
        shares = [float(one) for one in weights.split(",")] if weights else None
    except ValueError:
        raise UserError(f"--weights {weights!r} is no list of numbers such as 1,1,2.") from None
    with TemporaryDirectory() as folder:
        if validation is None:
            validation = Path(folder) / "validation.parquet"
            write_creatives(validation, simulate(simulated or 0, seed=seed, split="validation"))
        examples = load_examples(PairSource(feed=validation), Path("."))
    average(selectors, out, shares)
    creative = CreativeModel.from_pretrained(out)
    judged = judge(creative, [example.pair for example in examples], temperature=1.0, near_half=0.0)
    temperature, _ = fit_temperature(judged, [example.target for example in examples])
    write_config(out, creative.config.model_copy(update={"temperature": round(temperature, 4)}))
    if json:
        print_json({"folder": str(out), "temperature": temperature, "validation_pairs": len(examples)})
    else:
        print(f"selector saved in {out}, temperature {temperature:.3f} by {len(examples):,} pairs")


app = app_of(main)

if __name__ == "__main__":
    start(app)

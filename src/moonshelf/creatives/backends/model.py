"""Our model as a backend: it describes each image and compares by that; the answer is read from logits.

A selector is a folder: either a LoRA adapter (PEFT's file layout) beside the backbone of an embedding model,
`starter` for one, or a whole backbone of its own; `creative.json` says which, and holds the prompt and the
temperature that was fitted on validation. The adapter is merged when it is loaded, so nothing of PEFT is
needed to use one. What is written and compared, and how, is `describe`'s; here are rows, batches and files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from moonshelf import images
from moonshelf.creatives.backends import describe
from moonshelf.creatives.backends.base import PairInput, PairPrediction, PairwiseBackend
from moonshelf.creatives.backends.describe import Described, Side
from moonshelf.creatives.prompt import ANSWER, CreativePrompt
from moonshelf.errors import UserError
from moonshelf.files import read_settings, write_atomic
from moonshelf.model import files
from moonshelf.model.decode import Decoded, Pick, decode, greedy, repeat_rows
from moonshelf.model.engine import load_picture
from moonshelf.model.modeling import MoonModel, choose_features
from moonshelf.model.precision import Precision
from moonshelf.model.processing import Batch
from moonshelf.product import ImageRef

ADAPTER = "adapter_model.safetensors"


class CreativeConfig(BaseModel):
    """`creative.json` of a selector's folder."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    # Embedding model that the adapter belongs to; None: the folder is a whole model.
    base: str | None = Field(default=None, max_length=500)
    base_fingerprint: str = Field(default="", max_length=64)
    prompt: CreativePrompt = CreativePrompt()
    # Of the averaged logit, fitted on validation; below 0 every verdict would be turned round.
    temperature: float = Field(default=1.0, ge=0.01, le=100)
    trained_on: str = ""  # what the figures may be said of, e.g. "simulated campaigns"


def write_config(folder: Path, config: CreativeConfig) -> None:
    """`creative.json`, and the manifest anew: the folder's other files are written already."""
    write_atomic(folder / "creative.json", f"{config.model_dump_json(indent=1)}\n".encode())
    files.write_manifest(folder)


@dataclass(frozen=True, eq=False)
class Pixels:
    """One picture as the backbone takes it: patches (P, patch) float32, grid (3,) int64."""

    patches: np.ndarray
    grid: np.ndarray


class _Adapter(BaseModel):
    """What is used of PEFT's `adapter_config.json`."""

    model_config = ConfigDict(allow_inf_nan=False)

    r: int = Field(gt=0, le=4_096)
    lora_alpha: float = Field(gt=0, le=65_536)
    trainable_token_indices: list[Annotated[int, Field(ge=0, le=4_000_000)]] | None = None


class CreativeModel(PairwiseBackend):
    """A vision-language backbone that reads pairs; the embedding head beside it is not used."""

    def __init__(
        self, moon: MoonModel, config: CreativeConfig | None = None, name: str = "moonshelf"
    ) -> None:
        self.config, self.name = config or CreativeConfig(), name
        self.folder: Path | None = None
        # Descriptions by what they depend on, where they may be kept: never while the weights change.
        self.told: dict[Described, tuple[Side, bool]] | None = None
        self.lora: Any = None  # settings of adapters that stand beside the weights while they are trained,
        self.tokens: list[int] = []  # and rows of the embedding that are trained with them
        prompt = self.config.prompt
        spec = moon.prompt.model_copy(
            update={
                "instruction": prompt.instruction,
                "min_pixels": prompt.min_pixels,
                "max_pixels": prompt.max_pixels,
                "max_rationale_tokens": prompt.max_rationale_tokens,
                "max_images": 2,
            }
        )
        # A model of its own, on the same weights: the pixel budget belongs to the image processor.
        self.moon = MoonModel(moon.backbone, moon.processor, moon.config, spec)
        self.moon.precision = moon.precision
        self.after = self.moon.prepare.ids(ANSWER)
        self.label_ids = {}
        for label in prompt.labels:
            ids = self.moon.prepare.ids(label)
            if len(ids) != 1:
                raise UserError(f"label {label!r} is {len(ids)} tokens of this tokenizer: choose another.")
            self.label_ids[label] = ids[0]

    @property
    def prompt(self) -> CreativePrompt:  # type: ignore[override]
        return self.config.prompt

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path = "starter",
        download: bool = False,
        precision: Precision = "float32",
        merge: bool = True,
    ) -> CreativeModel:
        """Load `starter` (the packaged selector) or a folder; `UserError` says what is wrong with one.

        In bfloat16 it is quicker, but a probability then depends on the pairs that are judged beside it.
        `merge` False leaves an adapter away: whoever trains it on puts it in himself.
        """
        place = PACKAGED if str(folder) == "starter" else Path(folder)
        if not (place / "creative.json").exists():
            why = (
                "this installation comes without the packaged selector"
                if place == PACKAGED
                else f"{str(folder)!r} is no creative selector: it holds no creative.json"
            )
            raise UserError(
                f"{why}. Train one with `moonshelf train recipes/creative-sft-starter.yaml` and give its "
                "folder, or take another --backend."
            )
        config = read_settings(CreativeConfig, place / "creative.json")
        files.check_safety(place)
        moon = load_base(config.base or str(place), download, precision)
        if config.base:
            if moon.source is not None and not config.base_fingerprint:
                raise UserError(
                    f"creative.json in {place.name!r} does not say which weights of {config.base!r} the "
                    "adapter belongs to (base_fingerprint): export it anew."
                )
            if config.base_fingerprint and moon.fingerprint != config.base_fingerprint:
                raise UserError(
                    f"the adapter in {place.name!r} belongs to the model {config.base_fingerprint}, but "
                    f"{config.base!r} is {moon.fingerprint}: take the model that it was trained on."
                )
        files.verify_manifest(place)  # what says more of a mistake was said before
        if config.base and merge:
            merge_adapter(moon.backbone, place)
        model = cls(moon, config, name=str(folder))
        model.folder, model.told = place, {} if merge else None
        return model

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """SHA-256 (16 hex digits) of weights and settings: records of another selector are not this one's."""
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        for name, tensor in sorted(self.moon.backbone.state_dict().items()):  # the head beside it is unused
            digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def temperature(self) -> float:  # type: ignore[override]
        return self.config.temperature

    @property
    def trained_on(self) -> str:  # type: ignore[override]
        return self.config.trained_on

    # ---- rows ------------------------------------------------------------------------------------

    def row(self, ask: PairInput, tokens: Sequence[int], tail: Sequence[int]) -> tuple[list[int], list[int]]:
        """Ids and kinds of one prompt, as `Preprocessor.row` gives them.

        `tokens` of the two images; of the one that is described; or none, where words alone are compared.
        """
        prepare, parts = self.moon.prepare, list[tuple[Sequence[int], int]]()
        parts += [(prepare.prefix, 0), (prepare.ids(self.prompt.words(ask.title, ask.interest)), 2)]
        for label, overlay, n in zip(ask.labels, ask.overlays, tokens, strict=False):  # one, of a description
            parts += [(prepare.ids(f"{label}:"), 0), (prepare.vision[0], 0), ([prepare.image] * n, 1)]
            parts += [([*prepare.vision[1], *prepare.ids("\n")], 0)]
            parts += [(prepare.ids(self.prompt.says(overlay)), 2)]
        if len(tokens) != 1:
            parts += [(prepare.ids(f"first {ask.labels[0]}, second {ask.labels[1]}\n"), 0)]
        parts += [(prepare.suffix, 0), (tail, 3)]
        ids = [token for some, _ in parts for token in some]
        return ids, [kind for some, kind in parts for _ in some]

    def tail(self, body: Sequence[int]) -> list[int]:
        """What follows a prompt up to `<answer>`, with the reasons `body`, which may be empty."""
        return [self.moon.prepare.think, *body, self.moon.prepare.end_think, *self.after]

    def patchify(self, refs: Iterable[ImageRef]) -> dict[ImageRef, Pixels]:
        """Pictures by reference, without those that cannot be read."""
        pictures: dict[ImageRef, Any] = {}
        for ref in dict.fromkeys(refs):
            with suppress(images.ImageError):
                pictures[ref] = load_picture(ref, self.prompt.max_pixels)
        if not pictures:
            return {}
        patches, grid = self.moon.prepare.pixels(list(pictures.values()))
        parts = np.split(patches, np.cumsum(grid.prod(1))[:-1])
        return {ref: Pixels(*both) for ref, both in zip(pictures, zip(parts, grid, strict=True), strict=True)}

    def batch(
        self,
        asks: Sequence[PairInput],
        tails: Sequence[Sequence[int]],
        pictures: Sequence[tuple[Pixels, ...]],
    ) -> tuple[Batch, Any]:
        """One padded batch of asks with the pictures that each shows, and the visual features of these.

        A picture that several asks show is looked at once.
        """
        shown = list(dict.fromkeys(one for row in pictures for one in row))
        place = {one: i for i, one in enumerate(shown)}
        places = [[place[one] for one in row] for row in pictures]
        grid, counts, visual = np.empty((0, 3), np.int64), list[int](), None
        if shown:
            grid = np.stack([one.grid for one in shown])
            patches = torch.from_numpy(np.concatenate([one.patches for one in shown]))
            visual = self.moon.look(patches.to(self.moon.device), torch.from_numpy(grid).to(self.moon.device))
            counts = self.moon.prepare.image_tokens(grid)
        rows = [
            self.row(ask, [counts[p] for p in where], tail)
            for ask, where, tail in zip(asks, places, tails, strict=True)
        ]
        batch = self.moon.prepare.collate(rows)
        flat = [p for where in places for p in where]
        if flat:
            batch.grid = torch.from_numpy(grid[flat])
        return batch.to(self.moon.device), choose_features(visual, flat)

    def answer_logits(self, states: Tensor, asks: Sequence[PairInput]) -> Tensor:
        """(B, 2) float32 logits of the first and the second label from the states at `<answer>` (B, d)."""
        logits = self.moon.logits(states).float()
        ids = torch.tensor([[self.label_ids[label] for label in ask.labels] for ask in asks])
        return logits.gather(1, ids.to(logits.device))

    # ---- the backend -----------------------------------------------------------------------------

    def predict(self, inputs: Sequence[PairInput], pick: Pick = greedy) -> list[PairPrediction]:
        """Reasons and probability of each input; an image that cannot be read gives `p_first` None."""
        return describe.predict(self, inputs, pick)

    def write(
        self,
        asks: Sequence[PairInput],
        pictures: Sequence[tuple[Pixels, ...]],
        pick: Pick = greedy,
        times: int = 1,
    ) -> list[Decoded]:
        """A description of the picture that each ask shows, on one prefill.

        `times` over, rollouts of one ask side by side.
        """
        moon = self.moon
        batch, visual = self.batch(asks, [[moon.prepare.think]] * len(asks), pictures)
        reading = moon.read(batch, visual, use_cache=True)
        if times > 1:
            batch, reading = repeat_rows(batch, reading, times)
        return decode(moon, batch, reading, self.after, pick=pick)


def load_base(name: str, download: bool, precision: Precision) -> MoonModel:
    """The model under a selector: a Moonshelf folder, or a stock backbone (its `source` is None)."""
    if (files.find(name, download) / "moon.json").exists():
        return MoonModel.from_pretrained(name, download=download, precision=precision)
    moon = MoonModel.from_backbone(name, download=download)
    moon.precision = precision
    return moon


PACKAGED = Path(__file__).resolve().parents[2] / "starter_creative"


@torch.no_grad()
def merge_adapter(backbone: torch.nn.Module, folder: Path) -> None:
    """Add a LoRA adapter, W + (alpha / r) B A, and trained rows of the embedding to a backbone's weights.

    The files are PEFT's.
    """
    settings = read_settings(_Adapter, folder / "adapter_config.json")
    try:
        tensors = load_file(folder / ADAPTER)
        _merge(backbone, settings, tensors)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the adapter in {folder.name!r} cannot be read: {error}") from None
    except (KeyError, IndexError, RuntimeError, AttributeError) as error:
        reason = (str(error).strip("'\"").splitlines() or [type(error).__name__])[0]
        raise UserError(f"the adapter in {folder.name!r} does not fit this backbone: {reason}.") from None


def _merge(backbone: torch.nn.Module, settings: _Adapter, tensors: dict[str, Tensor]) -> None:
    scale = settings.lora_alpha / settings.r
    modules = dict(backbone.named_modules())
    for name, values in tensors.items():
        if not bool(values.isfinite().all()):
            raise RuntimeError(f"{name} holds numbers that are not finite")
        if name.endswith(".trainable_tokens_delta"):  # PEFT calls them a delta; they are the rows themselves
            embedding: Any = backbone.get_input_embeddings()  # type: ignore[operator]
            embedding.weight[settings.trainable_token_indices] = values.float()
    for name, a in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        place = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        b = tensors[name.replace(".lora_A.", ".lora_B.")]
        if place not in modules:
            raise KeyError(f"it has no {place}")
        weight: Any = modules[place].weight
        weight += scale * (b.float().flatten(1) @ a.float().flatten(1)).view_as(weight)

"""Our model as an mteb encoder, and mteb's command line with our models in its registry.

    mteb.evaluate(MoonEncoder(model), mteb.get_tasks(tasks=["Flickr30kT2IRetrieval"]))
    python -m moonshelf.evaluation.mteb_model run -m moonshelf/starter -t Flickr30kT2IRetrieval

mteb looks models up by name, and knows no plug-ins: `register` adds them to its registry, and the other form
does so before it hands over to mteb's own command. What mteb shows (text, one picture, or both)
becomes a product, so the model reads it with its own prompt and pixels. The revision is the model's
fingerprint and the mode is part of the name, so that mteb's cache never mixes two models or two modes.
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction

from moonshelf.evaluation.encoders.baselines import ModelEncoder
from moonshelf.model.modeling import MoonModel
from moonshelf.model.sentence_transformer import to_product
from moonshelf.product import Product

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import PromptType
    from torch.utils.data import DataLoader

    from moonshelf.model.encoders.base import Reason

log = logging.getLogger(__name__)


class MoonEncoder(AbsEncoder):
    """A `MoonModel` in one reasoning mode, as mteb wants it: unit vectors (n, dim) float32.

    What the model cannot read (an empty text, a broken picture) becomes a vector of zeros, which is similar
    to nothing; how many there were is logged.
    """

    def __init__(
        self, model: MoonModel, name: str = "model", reason: Reason = "off", batch_tokens: int = 8192
    ) -> None:
        self.encoder = ModelEncoder(model, reason, batch_tokens)
        self.mteb_model_meta = describe(model, name, reason)

    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        parts = [self._batch(batch) for batch in inputs]
        return np.concatenate(parts) if parts else np.zeros((0, self.encoder.model.dim), np.float32)

    def _batch(self, batch: dict[str, Any]) -> np.ndarray:
        columns = {name: batch[name] for name in ("text", "image") if name in batch}
        if not columns:
            raise ValueError(f"the model reads text and pictures, and the task shows {', '.join(batch)}")
        n = len(next(iter(columns.values())))
        products = [_product({k: v[i] for k, v in columns.items()}, i) for i in range(n)]
        out = self.encoder.encode(products)
        if out.problems:
            reason = out.problems[0].reason
            log.warning("%d of %d inputs could not be read: %s", (~out.ok).sum(), n, reason)
        return out.vectors


def _product(shown: dict[str, Any], index: int) -> Product:
    shown = {key: value for key, value in shown.items() if value is not None and value != ""}
    return to_product(shown, index) if shown else Product(id=str(index))


class _Meta(ModelMeta):
    """mteb asks every model of pictures for its extra `image`, which is torchvision: ours does without."""

    def _resolve_extras_groups(self) -> list[str]:
        return list(self.extra_requirements_groups or [])


def describe(model: MoonModel, name: str, reason: Reason = "off") -> ModelMeta:
    """What mteb keeps of a model; `name` is without the organisation."""
    weights = list(model.parameters())
    folder = str(model.source) if getattr(model, "source", None) else None
    known = {
        "loader": partial(_load, folder=folder, reason=reason), "name": _full_name(name, reason),
        "revision": model.fingerprint, "languages": ["eng-Latn"], "embed_dim": model.dim,
        "n_parameters": sum(weight.numel() for weight in weights), "open_weights": True,
        "memory_usage_mb": sum(weight.numel() * weight.element_size() for weight in weights) / 2**20,
        "framework": ["PyTorch", "Transformers", "safetensors"], "use_instructions": False,
        "similarity_fn_name": ScoringFunction.COSINE, "modalities": ["text", "image"],
    }  # fmt: skip
    return _Meta.create_empty(known)


def _full_name(name: str, reason: Reason) -> str:
    return f"moonshelf/{name}" + ("" if reason == "off" else f"-reason-{reason}")


def _load(
    name: str, revision: str | None = None, *, folder: str | None, reason: Reason, **_: Any
) -> MoonEncoder:
    if folder is None:
        raise ValueError(f"{name} was described from memory: save it, and name its folder")
    return MoonEncoder(MoonModel.from_pretrained(folder), name.split("/")[1].split("-reason-")[0], reason)


def register(model: MoonModel, name: str) -> list[str]:
    """Make `mteb.get_model` know a model in its direct and its reasoned mode; the names that it has."""
    from mteb.models.model_implementations import MODEL_REGISTRY

    metas = [describe(model, name, reason) for reason in ("off", "on")]
    MODEL_REGISTRY.update({str(meta.name): meta for meta in metas})
    return [str(meta.name) for meta in metas]


def main(arguments: list[str]) -> None:
    """mteb's command line after `register`.

    `-m moonshelf/starter` and `-m moonshelf/FOLDER` are models, with `-reason-on` behind them in the reasoned
    mode.
    """
    from mteb.cli import main as mteb_main

    for i, argument in enumerate(arguments):
        if arguments[i - 1 : i] in (["-m"], ["--model"]) and argument.startswith("moonshelf/"):
            place = argument.removeprefix("moonshelf/")
            folder = place.removesuffix("-reason-on")
            direct, reasoned = register(MoonModel.from_pretrained(folder), Path(folder).name)
            arguments[i] = direct if folder == place else reasoned
    sys.argv[1:] = arguments
    mteb_main()


if __name__ == "__main__":
    main(sys.argv[1:])

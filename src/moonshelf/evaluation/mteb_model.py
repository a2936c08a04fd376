"""Our model as an mteb encoder: `mteb.evaluate(MoonEncoder(model), mteb.get_tasks(tasks=[...]))`.

What mteb shows (text, one picture, or both) becomes a product, so the model reads it with its own prompt and
pixels. The revision is the model's fingerprint and the mode is part of the name, so that mteb's cache never
mixes two models or two modes.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction

from moonshelf.evaluation.encoders.baselines import ModelEncoder
from moonshelf.model.sentence_transformer import to_product
from moonshelf.product import Product

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import PromptType
    from torch.utils.data import DataLoader

    from moonshelf.model.encoders.base import Reason
    from moonshelf.model.modeling import MoonModel

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
    known = {
        "loader": None, "name": f"moonshelf/{name}" + ("" if reason == "off" else f"-reason-{reason}"),
        "revision": model.fingerprint, "languages": ["eng-Latn"], "embed_dim": model.dim,
        "n_parameters": sum(weight.numel() for weight in weights), "open_weights": True,
        "memory_usage_mb": sum(weight.numel() * weight.element_size() for weight in weights) / 2**20,
        "framework": ["PyTorch", "Transformers", "safetensors"], "use_instructions": False,
        "similarity_fn_name": ScoringFunction.COSINE, "modalities": ["text", "image"],
    }  # fmt: skip
    return _Meta.create_empty(known)

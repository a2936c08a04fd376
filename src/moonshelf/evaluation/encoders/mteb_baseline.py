"""A baseline by its name in mteb's registry, loaded by mteb's own code, which may ask for pickles and code
from the hub: `torch.load` and such code are shut off while it loads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import numpy as np

from moonshelf.errors import UserError
from moonshelf.model.encoders.base import BOTH
from moonshelf.model.encoders.stock import StockEncoder, need
from moonshelf.model.stock import pick_device, quiet
from moonshelf.prompts import PromptSpec

if TYPE_CHECKING:
    from PIL import Image


class MtebEncoder(StockEncoder):
    """A model by its name in mteb's registry, as mteb itself would run it in retrieval."""

    def __init__(self, name: str, prompt: PromptSpec | None = None) -> None:
        need(f"mteb:{name}", "mteb", package="moonshelf[eval]")
        import mteb
        from mteb.abstasks.task_metadata import TaskMetadata

        try:
            with quiet(), no_code(name):
                self.model: Any = mteb.get_model(name, device=str(pick_device()))
        except UserError:
            raise
        except Exception as error:  # whatever the code of some model or the network gives
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"mteb cannot load {name}: {reason[:300]}") from error
        meta = self.model.mteb_model_meta
        self.name, self.prompt = f"mteb:{name}", prompt or PromptSpec()
        self.reads = frozenset(meta.modalities) & BOTH
        if not self.reads:
            raise UserError(f"{name} reads neither text nor pictures")
        self.one_space = self.reads == BOTH
        self.fingerprint = f"mteb|{version('mteb')}|{meta.name}|{meta.revision}"
        self.task = TaskMetadata(
            name="MoonshelfRetrieval", description="Products.",
            dataset={"path": "moonshelf", "revision": "1"},
            type="Any2AnyRetrieval" if "image" in self.reads else "Retrieval", category="it2it",
            modalities=sorted(self.reads), eval_splits=["test"], eval_langs=["eng-Latn"],
            main_score="ndcg_at_10", domains=["E-commerce"],
        )  # fmt: skip
        if meta.use_instructions:
            self.queries = self.as_queries()

    def embed(self, texts: list[str] | None, pictures: list[Image.Image] | None) -> np.ndarray:
        from mteb.types import PromptType
        from torch.utils.data import DataLoader

        shown = {"text": texts, "image": pictures}
        batch = {column: values for column, values in shown.items() if values is not None}
        shown_once: Any = DataLoader(cast(Any, [batch]), batch_size=None)
        vectors = self.model.encode(
            shown_once, task_metadata=self.task, hf_split="test",
            hf_subset="default", prompt_type=PromptType(self.side),
        )  # fmt: skip
        return np.asarray(vectors.float().cpu() if hasattr(vectors, "cpu") else vectors, np.float32)


@contextmanager
def no_code(name: str) -> Iterator[None]:
    """While a model loads, pickles and code from the hub are refused with `UserError`."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise UserError(f"{name} is loaded from a pickle or by code of its own, which is never run here")

    code = "transformers.dynamic_module_utils.get_cached_module_file"  # all remote code comes by here
    with patch(code, refuse), patch("torch.load", refuse):
        yield

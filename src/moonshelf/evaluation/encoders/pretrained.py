"""Baselines by folder or hub id: what sentence-transformers, mteb or transformers (CLIP, SigLIP) can load.

Each keeps to what its library documents: prompts of the model for queries and documents, padding and pixels
of its own processor, the pooled output of its own head. A two-tower model that is shown text and a picture
gets the mean direction of both vectors; one that takes both in one input gets one input. Only safetensors are
read and no code of a model is run. mteb loads a model by its own code, which may ask for both: there
`torch.load` and code from the hub are shut off while it loads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import numpy as np

from moonshelf.errors import UserError
from moonshelf.evaluation.contract import BOTH, IMAGE, TEXT
from moonshelf.evaluation.encoders import base
from moonshelf.evaluation.encoders.base import BaselineEncoder, QuerySide, Side
from moonshelf.model.files import read_json
from moonshelf.model.stock import Clip, check_folder, pick_device, quiet, unit, whole
from moonshelf.prompts import PromptSpec

if TYPE_CHECKING:
    from PIL import Image


class SentenceTransformerBaseline(BaselineEncoder):
    """A SentenceTransformer, or any encoder of transformers that it can pool: of text, pictures or both."""

    def __init__(
        self, folder: Path, name: str, prompt: PromptSpec | None = None, known: str | None = None
    ) -> None:
        """`known` stands for a hash of the files where a package's version names them."""
        need(name, "sentence_transformers")
        plain = not (folder / "modules.json").is_file()
        check_folder(folder, "config.json" if plain else "modules.json")
        if plain and str(read_json(folder / "config.json").get("model_type")).startswith("siglip"):
            raise UserError(f"{name} pads its text as sentence-transformers does not: name it with clip:")
        from sentence_transformers import SentenceTransformer

        device, missing = pick_device(), set[str]()
        try:
            with quiet(), _noting(missing):
                self.model = SentenceTransformer(
                    str(folder), device=str(device), local_files_only=True, trust_remote_code=False,
                    model_kwargs={"use_safetensors": True},
                )  # fmt: skip
        except (OSError, ValueError, ImportError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"the SentenceTransformer in {folder.name!r} cannot be loaded: {reason}"
            ) from error
        whole(folder, {key for key in missing if "pooler" not in key})  # states are pooled by mean instead
        self.name, self.prompt = name, prompt or PromptSpec()
        self.fingerprint = known or base.hash_folder("st", folder, device.type)
        sees, reads = self.model.supports("image"), self.model.supports("text")
        if not sees and not reads:
            raise UserError(f"{name} reads neither text nor pictures")
        self.reads = BOTH if sees and reads else IMAGE if sees else TEXT
        self.one_space = sees and reads
        prompts = self.model.prompts
        if any(prompts.get(key) for key in ("query", "document", "passage", "corpus")):
            self.queries = QuerySide(self)

    def embed(
        self, texts: list[str] | None, pictures: list[Image.Image] | None, side: Side = "document"
    ) -> np.ndarray:
        if texts is not None and pictures is not None and self.model.supports(("image", "text")):
            pairs = [{"image": i, "text": t} for i, t in zip(pictures, texts, strict=True)]
            return self._encode(pairs, side)
        parts = [self._encode(list(shown), side) for shown in (texts, pictures) if shown is not None]
        return np.sum([unit(part) for part in parts], axis=0)

    def _encode(self, inputs: list[Any], side: str) -> np.ndarray:
        encode: Any = self.model.encode
        if self.queries is not None:
            encode = self.model.encode_query if side == "query" else self.model.encode_document
        return encode(
            inputs, batch_size=len(inputs), show_progress_bar=False, normalize_embeddings=True,
            convert_to_numpy=True,
        )  # fmt: skip


class ClipBaseline(BaselineEncoder):
    """CLIP, SigLIP and their kin in transformers (`stock.Clip`)."""

    reads, one_space = BOTH, True

    def __init__(self, folder: Path, name: str, prompt: PromptSpec | None = None) -> None:
        self.clip = Clip(folder, name)
        self.max_side = self.clip.max_side
        self.name, self.prompt = name, prompt or PromptSpec()
        self.fingerprint = base.hash_folder("clip", folder, self.clip.dtype, type(self.clip.pixels).__name__)

    def embed(
        self, texts: list[str] | None, pictures: list[Image.Image] | None, side: Side = "document"
    ) -> np.ndarray:
        parts = [self.clip.embed_texts(texts)] if texts is not None else []
        parts += [self.clip.embed_pictures(pictures)] if pictures is not None else []
        return np.sum([unit(part) for part in parts], axis=0)


class MtebBaseline(BaselineEncoder):
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
            self.queries = QuerySide(self)

    def embed(
        self, texts: list[str] | None, pictures: list[Image.Image] | None, side: Side = "document"
    ) -> np.ndarray:
        from mteb.types import PromptType
        from torch.utils.data import DataLoader

        shown = {"text": texts, "image": pictures}
        batch = {column: values for column, values in shown.items() if values is not None}
        shown_once: Any = DataLoader(cast(Any, [batch]), batch_size=None)
        vectors = self.model.encode(
            shown_once, task_metadata=self.task, hf_split="test",
            hf_subset="default", prompt_type=PromptType(side),
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


@contextmanager
def _noting(missing: set[str]) -> Iterator[None]:
    """Note the weights that transformers does not find in the files: they would be random."""

    def report(*_: Any, loading_info: Any, **__: Any) -> None:
        missing.update(loading_info.missing_keys)

    with patch("transformers.modeling_utils.log_state_dict_report", report):
        yield


def need(baseline: str, *modules: str, package: str = "moonshelf[baselines]") -> None:
    """Raise `UserError` that says what to install where a module is missing."""
    if any(find_spec(module) is None for module in modules):
        raise UserError(
            f"the baseline '{baseline}' needs packages that are not here: pip install '{package}'"
        )

"""Baselines that other people's code computes: a server's embeddings, and any model that mteb knows by name.

`openai:URL#MODEL` asks an OpenAI-compatible endpoint. Text goes to `URL/embeddings` in batches, as `input`.
With `openai-vl` every product is one request of the chat form that vLLM takes (`messages` with the picture as
a data address), so the endpoint may be shown pictures. How a server is asked is `moonshelf.endpoints`'. An
endpoint has no weights to hash, so the fingerprint holds the vector of a fixed text: a model that was
exchanged behind its name does not meet the cache of the old one.

`mteb:NAME` is loaded by mteb's own code, which may ask for pickles and code from the hub: `torch.load` and
such code are shut off while it loads.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import numpy as np

from moonshelf.endpoints import Endpoint, picture_part
from moonshelf.errors import UserError
from moonshelf.model.encoders.base import BOTH, TEXT
from moonshelf.model.encoders.stock import StockEncoder, need
from moonshelf.model.stock import pick_device, quiet
from moonshelf.prompts import PromptSpec

if TYPE_CHECKING:
    from PIL import Image


class EndpointBaseline(StockEncoder):
    """Vectors of a server; `pictures` for one that takes them."""

    batch = 64
    max_side = 1024

    def __init__(
        self,
        address: str,
        prompt: PromptSpec | None = None,
        pictures: bool = False,
        timeout: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        kind = "openai-vl" if pictures else "openai"
        self.endpoint = Endpoint(address, "/embeddings", kind, timeout, sleep=sleep)
        self.name, self.prompt = f"{kind}:{self.endpoint.model}", prompt or PromptSpec()
        self.reads, self.one_space = (BOTH, True) if pictures else (TEXT, False)
        probe = np.round(self._ask({"input": ["a red leather shoe"]}, 1)[0], 3)
        self.dim = len(probe)
        digest = hashlib.sha256((probe + 0.0).tobytes()).hexdigest()  # + 0.0: no minus zero
        self.fingerprint = f"{kind}|{self.endpoint.url}|{self.endpoint.model}|{len(probe)}|{digest}"

    def embed(self, texts: list[str] | None, pictures: list[Image.Image] | None) -> np.ndarray:
        if pictures is None:
            return self._ask({"input": texts}, len(texts or []))
        rows = texts if texts is not None else [""] * len(pictures)
        return np.concatenate([self._ask(_message(p, t), 1) for p, t in zip(pictures, rows, strict=True)])

    def _ask(self, body: dict[str, Any], n: int) -> np.ndarray:
        """(n, dim) vectors, by one request."""
        host, answer = self.endpoint.host, self.endpoint.post({"encoding_format": "float", **body})
        try:
            rows = sorted(json.loads(answer)["data"], key=lambda row: row["index"])
            vectors = np.array([row["embedding"] for row in rows], np.float32)
        except (ValueError, KeyError, TypeError):
            raise UserError(f"the endpoint {host} gave no list of embeddings as numbers") from None
        if vectors.ndim != 2 or len(vectors) != n:
            raise UserError(f"the endpoint {host} gave {len(vectors)} embeddings for {n} inputs")
        return vectors


def _message(picture: Image.Image, text: str) -> dict[str, Any]:
    content = [picture_part(picture)]
    if text:
        content.append({"type": "text", "text": text})
    return {"messages": [{"role": "user", "content": content}]}


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

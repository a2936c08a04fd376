"""A baseline behind an OpenAI-compatible embeddings endpoint: `openai:URL#MODEL`, `openai-vl:URL#MODEL`.

Text goes to `URL/embeddings` in batches, as `input`. With `openai-vl` every product is one request of the
chat form that vLLM takes (`messages` with the picture as a data address), so the endpoint may be shown
pictures. How a server is asked is `moonshelf.endpoints`'. An endpoint has no weights to hash, so the
fingerprint holds the vector of a fixed text: a model that was exchanged behind its name does not meet the
cache of the old one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf.endpoints import Endpoint, picture_part
from moonshelf.errors import UserError
from moonshelf.model.encoders.base import BOTH, TEXT
from moonshelf.model.encoders.stock import StockEncoder
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

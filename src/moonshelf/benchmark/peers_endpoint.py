"""A peer behind an OpenAI-compatible embeddings endpoint: `openai:URL#MODEL`, `openai-vl:URL#MODEL`.

Text goes to `URL/embeddings` in batches, as `input`. With `openai-vl` every product is one request of the
chat form that vLLM takes (`messages` with the picture as a data address), so the endpoint may be shown
pictures. It is the user who named the address: nothing else is contacted, redirects are not followed, the
key comes from the environment variable MOONSHELF_ENDPOINT_KEY, goes nowhere without encryption but to this
machine, and is never printed. An endpoint has no weights to hash, so the fingerprint holds the vector of a
fixed text: a model that was exchanged behind its name does not meet the cache of the old one.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from moonshelf.benchmark.contract import BOTH, TEXT
from moonshelf.benchmark.peers import Peer
from moonshelf.errors import UserError
from moonshelf.prompts import PromptSpec

if TYPE_CHECKING:
    from PIL import Image

KEY = "MOONSHELF_ENDPOINT_KEY"
TRIES = 4
MAX_WAIT = 30.0  # seconds between two tries
MAX_ANSWER = 256 << 20  # bytes
_LOCAL = {"localhost", "127.0.0.1", "::1"}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class EndpointPeer(Peer):
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
        url, _, model = address.partition("#")
        parts = urlsplit(url)
        kind = "openai-vl" if pictures else "openai"
        if parts.scheme not in ("http", "https") or not parts.hostname or not model:
            raise UserError(f"{kind}: takes URL#MODEL, such as {kind}:http://127.0.0.1:8000/v1#my-model")
        if parts.username or parts.password:
            raise UserError(f"keep the key out of the address: put it into the variable {KEY}")
        self.host, self.url, self.model = parts.hostname, url.rstrip("/") + "/embeddings", model
        self._key = os.environ.get(KEY, "")
        if self._key and parts.scheme == "http" and self.host not in _LOCAL:
            raise UserError(f"the key in {KEY} is not sent to {self.host} without encryption: use https")
        self.timeout, self._sleep = timeout, sleep
        self.name, self.prompt = f"{kind}:{model}", prompt or PromptSpec()
        self.reads, self.one_space = (BOTH, True) if pictures else (TEXT, False)
        self._open = urllib.request.build_opener(_NoRedirect).open
        probe = np.round(self._ask({"input": ["a red leather shoe"]}, 1)[0], 3)
        digest = hashlib.sha256((probe + 0.0).tobytes()).hexdigest()  # + 0.0: no minus zero
        self.fingerprint = f"{kind}|{self.url}|{model}|{len(probe)}|{digest}"

    def embed(self, texts: list[str] | None, pictures: list[Image.Image] | None) -> np.ndarray:
        if pictures is None:
            return self._ask({"input": texts}, len(texts or []))
        rows = texts if texts is not None else [""] * len(pictures)
        return np.concatenate([self._ask(_message(p, t), 1) for p, t in zip(pictures, rows, strict=True)])

    def _ask(self, body: dict[str, Any], n: int) -> np.ndarray:
        """(n, dim) vectors, by one request that is tried again where the trouble may pass."""
        headers = {"Content-Type": "application/json", "User-Agent": "moonshelf"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = json.dumps({"model": self.model, "encoding_format": "float", **body}).encode()
        trouble, wait = "", 1.0
        for attempt in range(TRIES):
            if attempt:
                self._sleep(wait)
                wait = min(2 * wait, MAX_WAIT)
            request = urllib.request.Request(self.url, data, headers, method="POST")
            try:
                with self._open(request, timeout=self.timeout) as answer:
                    return self._vectors(answer.read(MAX_ANSWER), n)
            except urllib.error.HTTPError as error:
                status = error.code
                trouble = f"answered {status} ({_phrase(status)})"
                if status != 429 and status < 500:
                    raise UserError(f"the endpoint {self.host} {trouble}{self._advice(status)}") from None
                wait = max(wait, min(_seconds(error.headers.get("Retry-After")), MAX_WAIT))
            except TimeoutError:
                trouble = f"did not answer within {self.timeout:g} s"
            except (OSError, urllib.error.URLError) as error:
                cause = getattr(error, "reason", error)
                if isinstance(cause, TimeoutError):
                    trouble = f"did not answer within {self.timeout:g} s"
                else:
                    trouble = f"could not be reached ({type(cause).__name__})"
        raise UserError(f"the endpoint {self.host} {trouble}, {TRIES} times in a row")

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            return f": is the key in {KEY} right?" if self._key else f": put its key into {KEY}"
        if status == 404:
            return f": is the address right (it should end in /v1 or so), and does it serve {self.model!r}?"
        if status == 413:
            return ": what was sent is too large for it"
        if 300 <= status < 400:
            return ": redirects are not followed, so name the address that it points to"
        return f": does it serve {self.model!r}, and pictures if it is to read them?"

    def _vectors(self, answer: bytes, n: int) -> np.ndarray:
        try:
            rows = sorted(json.loads(answer)["data"], key=lambda row: row["index"])
            vectors = np.array([row["embedding"] for row in rows], np.float32)
        except (ValueError, KeyError, TypeError):
            raise UserError(f"the endpoint {self.host} gave no list of embeddings as numbers") from None
        if vectors.ndim != 2 or len(vectors) != n:
            raise UserError(f"the endpoint {self.host} gave {len(vectors)} embeddings for {n} inputs")
        return vectors


def _message(picture: Image.Image, text: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    address = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": address}}]
    if text:
        content.append({"type": "text", "text": text})
    return {"messages": [{"role": "user", "content": content}]}


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown"


def _seconds(value: str | None) -> float:
    try:
        return max(0.0, float(value or 0))
    except ValueError:  # a date
        return 0.0

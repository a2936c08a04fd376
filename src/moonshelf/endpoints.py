"""One address of an OpenAI-compatible server, asked politely: the client under every endpoint of ours.

It is the user who names the address, as `URL#MODEL`: nothing else is contacted, redirects are not followed,
the key comes from the environment variable MOONSHELF_ENDPOINT_KEY, goes nowhere without encryption but to
this machine, and is never printed. Trouble that may pass (no connection, 429, 5xx) is tried again, after the
time that the server asks for; the time of all tries and the size of an answer are capped as a whole, so that
a server that drips keeps nobody waiting.
"""

from __future__ import annotations

import base64
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from moonshelf.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

KEY = "MOONSHELF_ENDPOINT_KEY"
TRIES = 4
MAX_WAIT = 30.0  # seconds between two tries
_LOCAL = {"localhost", "127.0.0.1", "::1"}
_BLOCK = 1 << 16


class EndpointError(UserError):
    """The server did not give an answer. `status` is what it said, None where it said nothing."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class Endpoint:
    """`post` sends JSON to URL + `path` and gives the bytes of the answer.

    `kind` is how the user wrote the address (`kind:URL#MODEL`), for messages. `timeout` (seconds) counts for
    all tries and the waits between them, the answer included; `max_bytes` for one answer. Raises `UserError`
    for an address that is none.
    """

    def __init__(
        self,
        address: str,
        path: str,
        kind: str = "openai",
        timeout: float = 60.0,
        max_bytes: int = 256 << 20,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        url, _, model = address.partition("#")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not model:
            raise UserError(f"{kind}: takes URL#MODEL, such as {kind}:http://127.0.0.1:8000/v1#my-model")
        if parts.username or parts.password:
            raise UserError(f"keep the key out of the address: put it into the variable {KEY}")
        self.host, self.url, self.model = parts.hostname, url.rstrip("/") + path, model
        self._key = os.environ.get(KEY, "")
        if self._key and parts.scheme == "http" and self.host not in _LOCAL:
            raise UserError(f"the key in {KEY} is not sent to {self.host} without encryption: use https")
        self.timeout, self.max_bytes, self._sleep = timeout, max_bytes, sleep
        self._open = urllib.request.build_opener(_NoRedirect).open

    def post(self, body: dict[str, Any]) -> bytes:
        """The answer to one request, tried again where the trouble may pass; `EndpointError` where not."""
        headers = {"Content-Type": "application/json", "User-Agent": "moonshelf"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = json.dumps({"model": self.model, **body}).encode()
        wait, status, deadline = 1.0, None, time.monotonic() + self.timeout
        late = f"did not answer within {self.timeout:g} s"
        for attempt in range(1, TRIES + 1):
            request = urllib.request.Request(self.url, data, headers, method="POST")
            try:
                left = max(deadline - time.monotonic(), 0.001)
                with self._open(request, timeout=left) as answer:
                    return self._read(answer, deadline)
            except urllib.error.HTTPError as error:
                status = error.code
                trouble = f"answered {status} ({_phrase(status)})"
                if status != 429 and status < 500:
                    message = f"the endpoint {self.host} {trouble}{self._advice(status)}"
                    raise EndpointError(message, status) from None
                wait = max(wait, min(_seconds(error.headers.get("Retry-After")), MAX_WAIT))
            except (OSError, HTTPException) as error:
                cause = getattr(error, "reason", error)
                timed_out = isinstance(cause, TimeoutError)
                trouble = late if timed_out else f"could not be reached ({type(cause).__name__})"
            if attempt == TRIES or time.monotonic() + wait > deadline:
                break
            self._sleep(wait)
            wait = min(2 * wait, MAX_WAIT)
        times = f", {attempt} times in a row" if attempt > 1 else ""
        raise EndpointError(f"the endpoint {self.host} {trouble}{times}", status)

    def _read(self, answer: Any, deadline: float) -> bytes:
        blocks, size = [], 0
        while block := answer.read1(_BLOCK):
            blocks.append(block)
            size += len(block)
            if size > self.max_bytes:
                raise EndpointError(
                    f"the endpoint {self.host} answered with more than {self.max_bytes:,} bytes"
                )
            if time.monotonic() > deadline:
                raise TimeoutError
        return b"".join(blocks)

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


def picture_part(picture: Image.Image, quality: int = 95) -> dict[str, Any]:
    """A picture as a part of a chat message: a JPEG made anew, without metadata, as a data address."""
    picture.info.clear()  # comments and profiles of the original would be saved along
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    address = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": address}}


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

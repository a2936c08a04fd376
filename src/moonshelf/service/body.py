"""The body of a request: read with bounds on its size, its time and its shape, and parsed once.

A million empty items fit into 3 MB, and become gigabytes of objects and of errors about them. So depth,
counts and lengths are checked on the bytes while they come in, and what breaks a bound is refused before an
object is made. The check only has to find brackets, commas and the ends of strings; whether it is JSON at all
is for the parser to say. A streaming parser (ijson) was tried: it reads a long string anew with each piece
(4 times as long for twice the length), and pictures are long strings.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from moonshelf import memory
from moonshelf.service.pools import Pools
from moonshelf.service.schemas import MAX_IMAGE_TEXT, MAX_LIST, MAX_TEXT

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MAX_DEPTH = 16
VALUES_OF_ITEM = 300  # of a product with all its attributes and pictures
MAX_PICTURE = MAX_IMAGE_TEXT * 11 // 10  # bytes; some escape slashes, or write lines
MAX_KEY = 2_400  # bytes; the longest key may have 200 characters
ESCAPED = 12  # bytes that one character may take in JSON
SMALL = 1 << 20  # bytes up to which a request is not large
TINY = 1 << 16  # bytes of a body that is not counted among those in hand
BESIDE = 16 << 20  # bytes of all that are neither tiny nor large, beside the large ones
COPIES = 2  # of a body at once: as it came and parsed, or parsed and decoded

_MARK = re.compile(rb'[]"\[{},:]')
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_PICTURE = re.compile(rb"(?:data:image/[\w.+-]{1,40};base64,)?(?:[A-Za-z0-9+/=\s]++|\\(?:[nrt/]|u00[0-7]))*+")


class Refused(Exception):
    """The body breaks a bound. `status` and `param` are those of the reply."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.retry_after = 1 if status == 429 else None


def too_large(max_mb: float) -> Refused:
    return Refused(413, f"the request is larger than {max_mb:g} MB, the most that is taken")


class Gone(Exception):
    """The caller hung up while his request was read."""


@dataclass
class _Open:
    """A list or an object that is not closed yet."""

    name: str  # its path
    is_list: bool
    commas: int = 0


class Scan:
    """Looks over JSON as it comes in. `feed` raises Refused; `body` is what came so far."""

    def __init__(self, max_items: int) -> None:
        self.max_list = 2 * max(max_items, MAX_LIST)  # a few too many are counted and told by the route
        self.max_values = VALUES_OF_ITEM * self.max_list
        self.body = bytearray()
        self._at = 0  # what is before it was looked at
        self._string: int | None = None  # where the string began that is not ended yet
        self._last = (0, 0)  # the string before this place
        self._values = 1
        self._open: list[_Open] = []

    def feed(self, data: bytes) -> None:
        self.body += data
        while self._at < len(self.body):
            if self._string is not None:
                if not self._in_string(self._string):
                    return  # the rest is still to come
                continue
            mark = _MARK.search(self.body, self._at)
            if mark is None:
                self._at = len(self.body)
                return
            self._at = mark.end()
            self._marked(mark[0])

    def _in_string(self, start: int) -> bool:
        """Go to the end of the string; False where it did not come yet."""
        quote = self.body.find(b'"', self._at)
        end = quote if quote >= 0 else len(self.body)
        if self.body.find(b"\\", self._at, end) >= 0:  # what is escaped may be a quote
            end = _IN_STRING.match(self.body, self._at).end()  # type: ignore[union-attr]
        if end - start > MAX_PICTURE:
            raise self._refused("a picture or text is too long")
        self._at = end
        if self.body[end : end + 1] != b'"':  # nothing, or a backslash whose second half is to come
            return False
        if end - start > ESCAPED * MAX_TEXT and not _PICTURE.fullmatch(self.body, start, end):
            raise self._refused(f"the text is longer than {MAX_TEXT:,} characters, the most that is taken")
        self._string, self._last, self._at = None, (start, end), end + 1
        return True

    def _marked(self, mark: bytes) -> None:
        if mark == b'"':
            self._string = self._at
        elif mark in b"[{":
            if len(self._open) >= MAX_DEPTH:
                raise Refused(400, f"the body is nested more than {MAX_DEPTH} deep")
            self._open.append(_Open(self._path() or "", mark == b"["))
            self._count()
        elif mark in b"]}":
            if not self._open:
                raise Refused(400, "the body is no valid JSON")
            self._open.pop()
        elif mark == b",":
            self._count()
            if self._open:
                self._open[-1].commas += 1
                if self._open[-1].commas >= self.max_list:
                    why = f"there are more than {self.max_list}, far more than one request may have"
                    raise Refused(422, why, self._open[-1].name)
        elif self._last[1] - self._last[0] > MAX_KEY:
            raise Refused(422, "a name of a field is too long", self._path(named=False))

    def _count(self) -> None:
        self._values += 1
        if self._values > self.max_values:
            raise Refused(422, f"there are more than {self.max_values:,} values in the body")

    def _refused(self, why: str) -> Refused:
        return Refused(422, why, self._path())

    def _path(self, named: bool = True) -> str | None:
        """Where in the body this is, such as products.3.title."""
        if not self._open:
            return None
        inside = self._open[-1]
        start, end = self._last
        name = str(inside.commas) if inside.is_list else self.body[start:end][:60].decode("utf-8", "replace")
        parts = [inside.name, name] if named or inside.is_list else [inside.name]
        return ".".join(part for part in parts if part) or None


class Bodies:
    """Bytes of bodies, and of pictures fetched for requests, of all callers together: of large ones at most
    `most`, and of others BESIDE, so that those who send little are not kept out by those who send much."""

    def __init__(self, most: int) -> None:
        self.most = {True: most, False: BESIDE}
        self.held = {True: 0, False: 0}


class Held:
    """One request's part of them; `give_back` ends it."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self.bytes, self._counted, self._large = bodies, 0, 0, False

    def take(self, count: int) -> None:
        """Raises Refused (429) where others hold too much; one request alone always finds room among them."""
        self.bytes += count
        if self.bytes <= TINY:
            return
        large = self.bytes > SMALL
        self.give_back()
        others = self._bodies.held[large]
        over = others and others + self.bytes > self._bodies.most[large]
        if over or not memory.room.hold(COPIES * self.bytes, always=not large):
            raise Refused(429, "too many large requests are in hand: try again in 1 s")
        self._bodies.held[large] += self.bytes
        self._counted, self._large = self.bytes, large

    def give_back(self) -> None:
        memory.room.hold(-COPIES * self._counted)
        self._bodies.held[self._large] -= self._counted
        self._counted = 0


async def read(receive: Receive, scan: Scan, held: Held, max_mb: float, pause_s: float) -> bytearray:
    """The whole body. Raises Refused, and Gone for a caller who hung up.

    `max_mb` bounds its size (2^20 bytes each), `pause_s` the seconds between two pieces of it.
    """
    while True:
        try:
            message = await asyncio.wait_for(receive(), pause_s)
        except TimeoutError:
            raise Refused(408, f"nothing more of the body came for {pause_s:g} s") from None
        if message["type"] == "http.disconnect":
            raise Gone
        piece = message.get("body", b"")
        if len(scan.body) + len(piece) > max_mb * 2**20:
            raise too_large(max_mb)
        held.take(len(piece))
        scan.feed(piece)
        if not message.get("more_body", False):
            return scan.body


async def aside(request: Request, function: Callable[..., Any], /, *args: Any) -> Any:
    """`function(*args)`; in a thread for a large request, so that others are answered in between."""
    if request.state.held.bytes <= SMALL:
        return function(*args)
    pools: Pools = request.app.state.service.pools
    return await pools.run("parse", function, *args)


class _Parsed(Request):
    """A request whose body is parsed from its bytes, which are let go: FastAPI would keep them and a copy."""

    _raw: Any = None

    async def body(self) -> bytes:
        if self._raw is None:
            self._raw = (await self.receive()).get("body", b"")
        return b"." if self._raw else b""  # all that FastAPI wants to know

    async def json(self) -> Any:
        raw, self._raw = self._raw, b"."
        parse = functools.partial(from_json, raw, allow_inf_nan=False, cache_strings="keys")
        try:
            return await aside(self, parse)
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None


class BodyRoute(APIRoute):
    """A route of such requests."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handle = super().get_route_handler()

        async def parsed(request: Request) -> Response:
            response: Response = await handle(_Parsed(request.scope, request.receive, request._send))
            return response

        return parsed

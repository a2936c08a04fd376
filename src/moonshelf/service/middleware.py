"""What stands before every route: size, key, rate, deadline, a caller who leaves, headers, the log.

One ASGI layer around the whole application. A request runs as a task of its own; when its caller hangs up or
its time is over the task is cancelled, and with it whatever of its work still waits for the model. What goes
wrong inside is said in OpenAI's form of an error and never with a trace, which goes to the log. The log has
one line a request: method, route, status, time, name of the key; no query, no body, no address of a picture.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from cachetools import LRUCache
from fastapi.responses import JSONResponse

from moonshelf.memory import give_back
from moonshelf.service.body import SMALL, Bodies, Gone, Held, Refused, Scan, read, too_large
from moonshelf.service.keys import KeyRing
from moonshelf.service.monitor import Monitor
from moonshelf.service.settings import Rate, Settings, is_loopback, parse_rates

log = logging.getLogger("moonshelf.service")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

DEADLINE_HEADER = b"x-deadline-seconds"
OPEN = ("/health", "/ready")
LOADING_RETRY = 2  # seconds
MAX_CALLERS = 10_000  # whose requests are counted; of more the longest unheard are forgotten
_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found",
    408: "timeout",
    413: "too_large", 422: "invalid_request_error", 429: "overloaded", 500: "internal_error",
    501: "unavailable", 503: "unavailable", 504: "timeout",
}  # fmt: skip
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        b"connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    ),
)


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of an error, in OpenAI's form."""
    kind = _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


class Rates:
    """Requests of each caller within windows of time, by a clock that nobody turns back."""

    def __init__(self, rate: str) -> None:
        self.rates = parse_rates(rate)
        self._hits: LRUCache[tuple[str, Rate], deque[float]] = LRUCache(MAX_CALLERS)

    def refused(self, who: str) -> tuple[Rate, int] | None:
        """The rate that a request of `who` breaks and the seconds until it would not; None: it is counted."""
        now = time.monotonic()
        for rate in self.rates:
            hits = self._hits.setdefault((who, rate), deque(maxlen=rate.amount))
            if len(hits) == rate.amount and (left := hits[0] + rate.seconds - now) > 0:
                return rate, math.ceil(left)
            hits.append(now)
        return None


class Middleware:
    """ASGI; `app` is what it stands before."""

    def __init__(self, app: ASGI, settings: Settings, monitor: Monitor, keys: KeyRing | None) -> None:
        self.app, self.settings, self.monitor, self.keys = app, settings, monitor, keys
        self.bodies = Bodies(int(settings.max_bodies_mb * 2**20))
        self.passed = 0  # bytes of requests since memory was given back
        self.trimming: asyncio.TimerHandle | None = None
        self.rates = Rates(settings.rate_limit)
        self.local = keys is None and not settings.allow_open  # then the host is loopback, see Settings

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, key="")
        reply = _Reply(send, request_id)
        try:
            if await self._admitted(scope, headers, reply):
                await self._run(scope, headers, receive, reply)
        finally:
            took = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            self.monitor.requests.labels(route, str(reply.status)).inc()
            self.monitor.latency.labels(route).observe(took)
            log.info(
                "request",
                extra={
                    "method": scope["method"], "route": route, "status": reply.status,
                    "ms": round(1000 * took, 1), "key": scope["state"]["key"], "request_id": request_id,
                },
            )  # fmt: skip

    # ------------------------------------------------------------------------------- before the work

    async def _admitted(
        self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes], reply: _Reply
    ) -> bool:
        path: str = scope["path"]
        if self.local and not _is_local(headers.get(b"host", b"")):
            # A page elsewhere may have a name that leads here (DNS rebinding): nobody checks a key.
            await reply.error(400, "this service answers as localhost only, or with API keys")
            return False
        if path in OPEN:
            return True
        who = self._address(scope, headers)
        if self._needs_key(path) and scope["method"] != "OPTIONS":
            assert self.keys is not None
            scheme, _, given = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
            key = self.keys.check(given.strip()) if scheme.lower() == "bearer" else None
            if self.keys.broken:
                await reply.error(503, "the file of API keys cannot be read: nobody is let in until it can")
                return False
            if key is None:
                # Guesses count against the address, so that they cannot be tried without end.
                if not await self._within(f"address {who}", reply):
                    return False
                self.monitor.dropped("no key")
                why = "the API key is not known" if given else "give an API key as Authorization: Bearer KEY"
                await reply.error(401, why, {b"www-authenticate": b"Bearer"})
                return False
            scope["state"]["key"], who = key.name, f"key {key.name}"
            if "write" not in key.scopes and _writes(scope["method"], path):
                await reply.error(403, f"the key {key.name} may read, but not change anything")
                return False
        return await self._within(who, reply) and await self._is_ready(scope, reply)

    async def _is_ready(self, scope: MutableMapping[str, Any], reply: _Reply) -> bool:
        """Whether the model is there, where it is needed; else the refusal has been sent."""
        phase = scope["app"].state.phase
        if phase == "ready" or not scope["path"].startswith("/v1/"):
            return True
        why = "the service is stopping" if phase == "stopping" else "the model is being loaded"
        await reply.error(503, why, {b"retry-after": b"%d" % LOADING_RETRY})
        return False

    def _needs_key(self, path: str) -> bool:
        if self.keys is None:
            return False
        return path.startswith("/v1/") or (path == "/metrics" and not self.settings.metrics_open)

    async def _within(self, who: str, reply: _Reply) -> bool:
        """Whether the caller keeps the rate; else the refusal has been sent."""
        if (broken := self.rates.refused(who)) is None:
            return True
        rate, wait = broken
        self.monitor.dropped("rate limit")
        why = f"more than {rate.text} requests: try again in {wait} s"
        await reply.error(429, why, {b"retry-after": b"%d" % wait})
        return False

    def _address(self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes]) -> str:
        """The caller's address: where a trusted proxy calls, the last one it forwards that is none itself."""
        address = (scope.get("client") or ("unknown", 0))[0]
        chain = headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")
        for hop in reversed([hop.strip() for hop in chain if hop.strip()]):
            if not self.settings.trusts(address):
                break
            address = hop
        return str(address)[:64]

    # --------------------------------------------------------------------------------- the work itself

    async def _run(
        self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes], receive: Receive, reply: _Reply
    ) -> None:
        seconds = self._deadline(headers)
        held = Held(self.bodies)
        scope["state"].update(deadline=time.monotonic() + seconds, held=held)
        try:
            async with asyncio.timeout(seconds) as limit:
                await self._answer(scope, headers, receive, reply, held)
        except Exception as error:
            await self._failed(error, reply, seconds if limit.expired() else None)
        except asyncio.CancelledError:  # by the server, when the time after SIGTERM is over
            await reply.error(503, "the service is stopping")
        finally:
            held.give_back()
            self._trim(held.bytes)

    async def _failed(self, error: Exception, reply: _Reply, late: float | None) -> None:
        """Answer what went wrong; `late` is the deadline in seconds, where it has passed."""
        if late is not None:
            self.monitor.dropped("deadline")
            await reply.error(504, f"the deadline of {late:g} s has passed")
        elif isinstance(error, Gone):
            self.monitor.dropped("caller left")
            reply.status = 499  # nobody hears it; nginx's code, for the log
        elif isinstance(error, Refused):
            # What is still to come of the body need not be read: the connection ends with the reply.
            headers = {b"connection": b"close"} if error.status in (408, 413) else {}
            headers |= {b"retry-after": b"1"} if error.status == 429 else {}
            await reply.error(error.status, error.message, headers, error.param)
        else:
            log.error("a request failed", exc_info=error, extra={"request_id": reply.request_id})
            why = f"something went wrong here; the log has it under request id {reply.request_id}"
            await reply.error(500, why)

    async def _answer(
        self, scope: Any, headers: dict[bytes, bytes], receive: Receive, reply: _Reply, held: Held
    ) -> None:
        """Read the body, then let the application answer. Raises Gone for a caller who hangs up meanwhile."""
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self.settings.max_body_mb * 2**20:
            raise too_large(self.settings.max_body_mb)
        scan = Scan(self.settings.max_items)
        waiting = [await read(receive, scan, held, self.settings.max_body_mb, self.settings.client_s)]
        del scan
        gone = asyncio.ensure_future(_until_gone(receive))

        async def body() -> Message:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(), "more_body": False}
            await gone
            return {"type": "http.disconnect"}

        work = asyncio.ensure_future(self.app(scope, body, reply.send))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Gone
            await work
        finally:
            gone.cancel()
            work.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await work

    def _trim(self, size: int) -> None:
        """Give the memory of requests back to the system, a second after the first that took some."""
        self.passed += size
        if self.passed > SMALL and self.trimming is None:
            self.trimming = asyncio.get_running_loop().call_later(1, self._trim_now)

    def _trim_now(self) -> None:
        self.passed, self.trimming = 0, None
        asyncio.get_running_loop().run_in_executor(None, give_back)

    def _deadline(self, headers: dict[bytes, bytes]) -> float:
        """Seconds for the request: what the caller asks for, but never more than the setting."""
        try:
            asked = float(headers.get(DEADLINE_HEADER, b"inf"))
        except ValueError:
            asked = self.settings.deadline_s
        return min(asked, self.settings.deadline_s) if asked > 0 else self.settings.deadline_s


def _writes(method: str, path: str) -> bool:
    return method == "DELETE" or (method != "GET" and path.startswith(("/v1/products", "/v1/feedback")))


def _is_local(host: bytes) -> bool:
    """Whether a Host header names this machine by a name that no name server gives to another."""
    name = host.decode("latin-1").lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    return is_loopback(name)


class _Reply:
    """What is sent, with our headers on it; remembers the status, and whether it was begun."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self.request_id = send, request_id
        self.status, self.begun = 0, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun, self.status = True, message["status"]
            extra = [*HEADERS, (b"x-request-id", self.request_id.encode())]
            names = {name for name, _ in extra}
            kept = [(name, value) for name, value in message["headers"] if name.lower() not in names]
            message = {**message, "headers": [*kept, *extra]}
        await self._send(message)

    async def error(
        self,
        status: int,
        message: str,
        headers: dict[bytes, bytes] | None = None,
        param: str | None = None,
    ) -> None:
        """An error in our form; nothing if a reply was begun, which then ends early."""
        if self.begun:
            return
        response = JSONResponse(error_body(status, message, param), status)
        response.raw_headers += (headers or {}).items()
        await response({"type": "http"}, _no_more, self.send)


async def _no_more() -> Message:
    return {"type": "http.disconnect"}


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

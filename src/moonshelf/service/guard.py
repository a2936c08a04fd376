"""What stands before every route: size, key, rate, deadline, a caller who leaves, headers, the log.

One ASGI layer around the whole application. A request runs as a task of its own; when its caller hangs up or
its time is over the task is cancelled, and with it whatever of its work still waits for the model. What goes
wrong inside is said in OpenAI's form of an error and never with a trace, which goes to the log. The log has
one line a request: method, route, status, time, name of the key; no query, no body, no address of a picture.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from limits import parse_many
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from moonshelf.service.keys import KeyRing
from moonshelf.service.monitor import Monitor
from moonshelf.service.settings import Settings, is_loopback

log = logging.getLogger("moonshelf.service")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

DEADLINE_HEADER = b"x-deadline-seconds"
OPEN = ("/health", "/ready")
_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found",
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


class TooLarge(Exception):
    """The body is longer than allowed. Whatever the application makes of it, the reply is ours."""


class Guard:
    """ASGI middleware; `app` is what it guards."""

    def __init__(self, app: ASGI, settings: Settings, monitor: Monitor, keys: KeyRing | None) -> None:
        self.app, self.settings, self.monitor, self.keys = app, settings, monitor, keys
        self.max_body = int(settings.max_body_mb * 2**20)
        self.proxies = [ipaddress.ip_network(one) for one in settings.trusted_proxies]
        self.limits = parse_many(settings.rate_limit) if settings.rate_limit else []
        self.local = keys is None and not settings.allow_open  # then the host is loopback, see Settings
        self.limiter = MovingWindowRateLimiter(MemoryStorage())

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
            if key is None:
                # Guesses count against the address, so that they cannot be tried without end.
                if not await self._within(f"address {who}", reply):
                    return False
                self.monitor.dropped("no key")
                why = (
                    "give an API key as Authorization: Bearer KEY"
                    if not given
                    else "the API key is not known"
                )
                await reply.error(401, why, {b"www-authenticate": b"Bearer"})
                return False
            scope["state"]["key"], who = key.name, f"key {key.name}"
            if not key.may("write") and _writes(scope["method"], path):
                await reply.error(403, f"the key {key.name} may read, but not change anything")
                return False
        if not await self._within(who, reply):
            return False
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.max_body:
            await reply.error(413, self._too_large())
            return False
        return True

    def _needs_key(self, path: str) -> bool:
        if self.keys is None:
            return False
        return path.startswith("/v1/") or (path == "/metrics" and not self.settings.metrics_open)

    async def _within(self, who: str, reply: _Reply) -> bool:
        """Whether the caller keeps the rate; else the refusal has been sent."""
        for limit in self.limits:
            if not self.limiter.hit(limit, who):
                until = self.limiter.get_window_stats(limit, who).reset_time
                wait = max(1, int(until - time.time()) + 1)
                self.monitor.dropped("rate limit")
                await reply.error(
                    429, f"more than {limit} requests: try again in {wait} s", {b"retry-after": b"%d" % wait}
                )
                return False
        return True

    def _address(self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes]) -> str:
        """The caller's address: where a trusted proxy calls, the last one it forwards that is none itself."""
        address = (scope.get("client") or ("unknown", 0))[0]
        chain = headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")
        for hop in reversed([hop.strip() for hop in chain if hop.strip()]):
            if not self._trusted(address):
                break
            address = hop
        return str(address)[:64]

    def _trusted(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self.proxies)

    def _too_large(self) -> str:
        return f"the request is larger than {self.settings.max_body_mb:g} MB, the most that is taken"

    # --------------------------------------------------------------------------------- the work itself

    async def _run(
        self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes], receive: Receive, reply: _Reply
    ) -> None:
        seconds = self._deadline(headers)
        scope["state"]["deadline"] = time.monotonic() + seconds
        body = _Body(receive, self.max_body, reply, self._too_large())
        work = asyncio.ensure_future(self.app(scope, body.receive, reply.send))
        gone = asyncio.ensure_future(body.gone.wait())
        try:
            await asyncio.wait({work, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                left = gone.done()
                work.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await work
                self.monitor.dropped("caller left" if left else "deadline")
                if left:
                    reply.status = 499  # nobody hears it; nginx's code, for the log
                else:
                    await reply.error(504, f"the deadline of {seconds:g} s has passed")
                return
            await work
        except Exception:
            log.exception("a request failed", extra={"request_id": reply.request_id})
            why = f"something went wrong here; the log has it under request id {reply.request_id}"
            await reply.error(500, why)
        finally:
            work.cancel()
            gone.cancel()
            body.close()

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
        self.refusal = ""  # why the body was refused, once it was: no other reply counts

    async def send(self, message: Message) -> None:
        if self.refusal and not self.begun:
            refusal, self.refusal = self.refusal, ""
            await self.error(413, refusal)
            self.refusal = refusal
        if self.refusal:
            return
        if message["type"] == "http.response.start":
            self.begun, self.status = True, message["status"]
            extra = [*HEADERS, (b"x-request-id", self.request_id.encode())]
            names = {name for name, _ in extra}
            kept = [(name, value) for name, value in message["headers"] if name.lower() not in names]
            message = {**message, "headers": [*kept, *extra]}
        await self._send(message)

    async def error(self, status: int, message: str, headers: dict[bytes, bytes] | None = None) -> None:
        """An error in our form; nothing if a reply was begun, which then ends early."""
        if self.begun:
            return
        body = json.dumps(error_body(status, message)).encode()
        given = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        start = {
            "type": "http.response.start",
            "status": status,
            "headers": [*given, *(headers or {}).items()],
        }
        await self.send(start)
        await self.send({"type": "http.response.body", "body": body})


class _Body:
    """The request as it comes in, capped; once it is whole, waits for the caller to hang up."""

    def __init__(self, receive: Receive, most: int, reply: _Reply, refusal: str) -> None:
        self._receive, self._left, self._reply, self._refusal = receive, most, reply, refusal
        self.gone = asyncio.Event()
        self._watch: asyncio.Future[None] | None = None

    async def receive(self) -> Message:
        if self._watch is not None:  # the body was read to its end: all that can follow is the end
            await self.gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone.set()
            return message
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self._reply.refusal = self._refusal
            raise TooLarge
        if not message.get("more_body", False):
            self._watch = asyncio.ensure_future(self._wait())
        return message

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone.set()

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

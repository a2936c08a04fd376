"""Connections of callers: how many there may be, and how long one may keep the service waiting.

Uvicorn closes a connection that is idle after a reply. It never closes one that sends nothing at all, half a
header, or does not read its reply, and it takes as many as come. So this is its protocol with a register of
all connections: once a second those whose time is over are closed. When there are too many, of one address or
altogether, the one that has kept us waiting longest is closed for the newcomer; where all are at work, the
newcomer is refused. What a caller may send beside the body itself is capped as well (long headers, bodies in
chunks of one byte, requests sent ahead).

Other servers were looked at: hypercorn and granian have some of these times, neither has a cap by address.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from moonshelf.service.settings import Settings

log = logging.getLogger("moonshelf.service")

SWEEP_S = 1.0
MAX_OVERHEAD = 64 * 1024  # bytes of headers; beyond them as many as the body itself has
MAX_AHEAD = 16  # requests that one connection may send before the first is answered
KEPT_FILES = 100  # file handles that are left for the catalogue
REPLY_FACTOR = 3  # a reply may take so many times `client_s` to be read

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
)
_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Connections:
    """The register. `refused` is called for each connection that is turned away or closed for another."""

    def __init__(self, settings: Settings, refused: Callable[[], None] = lambda: None) -> None:
        self.client_s = settings.client_s
        self.of_one = settings.max_address_connections
        self.most = min(settings.max_connections, max(16, raise_file_limit() - KEPT_FILES))
        self._trusts = settings.trusts
        self._refused = refused
        self._open: set[BoundedProtocol] = set()
        self._sweeping: asyncio.Task[None] | None = None

    def protocol(self, **given: Any) -> BoundedProtocol:
        """What uvicorn makes for each connection."""
        return BoundedProtocol(self, **given)

    def opened(self, one: BoundedProtocol) -> bool:
        """Register a connection; False where there is no place for it."""
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.get_running_loop().create_task(self._sweep())
        of_same = [other for other in self._open if other.address == one.address]
        full = len(of_same) >= self.of_one and not self._trusts(one.address)
        if full or len(self._open) >= self.most:
            self._refused()
            waiting = [other for other in (of_same if full else self._open) if other.awaited]
            if not waiting:
                return False
            self._close(min(waiting, key=lambda other: (other.busy, other.waiting_since)))
        self._open.add(one)
        return True

    def closed(self, one: BoundedProtocol) -> None:
        self._open.discard(one)

    def _close(self, one: BoundedProtocol) -> None:
        self._open.discard(one)
        one.transport.abort()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_S, self.client_s / 2))
            now = time.monotonic()
            for one in [one for one in self._open if one.overdue(now, self.client_s)]:
                self._close(one)


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, register: Connections, **given: Any) -> None:
        super().__init__(**given)
        self.register = register
        self.address = ""
        self.waiting_since = time.monotonic()
        self._asking_since: float | None = self.waiting_since  # a request was begun, or has to be
        self._writing_since: float | None = None
        self._read = self._of_bodies = 0  # bytes of the request

    @property
    def busy(self) -> bool:
        """A request is being read or answered; its deadline is the middleware's."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def awaited(self) -> bool:
        """The next step is the caller's: a request, or the rest of one."""
        return not self.busy or self.cycle.more_body

    def overdue(self, now: float, client_s: float) -> bool:
        if not self.transport.get_write_buffer_size():
            self._writing_since = None
        elif self._writing_since is None:
            self._writing_since = now
        elif now - self._writing_since > REPLY_FACTOR * client_s:
            return True
        if self.busy or self._asking_since is None:  # an idle one after a reply is closed by uvicorn
            return False
        return now - self._asking_since > client_s

    # --------------------------------------------------------------- called by asyncio and the parser

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        if not self.register.opened(self):
            transport.write(_BUSY)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.register.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._asking_since is None:
            self._asking_since = time.monotonic()
        self._read += len(data)
        super().data_received(data)
        if self._read - 2 * self._of_bodies > MAX_OVERHEAD:
            if not self.busy:
                self.transport.write(_LONG)
                self.transport.close()
            else:  # the request that is being read ends as if its caller had hung up
                self.transport.abort()

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_AHEAD:
            raise ValueError("too many requests at once")  # the parser stops, and the connection ends
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._of_bodies += len(body)
        super().on_body(body)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._read = self._of_bodies = 0

    def on_response_complete(self) -> None:
        self.waiting_since = time.monotonic()
        # The rest of a body that was refused may still come, but not for ever.
        self._asking_since = self.waiting_since if self.cycle.more_body else None
        super().on_response_complete()


def raise_file_limit() -> int:
    """Let this process open as many files as it may; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # macOS names a limit that it does not grant
            return soft
    return 2**31 if hard == resource.RLIM_INFINITY else hard


def listener(host: str, port: int) -> socket.socket:
    """A socket that listens, whose connections send each reply at once.

    Without TCP_NODELAY a reply waits until the caller has acknowledged the one before, some 40 ms on a kept
    connection (Nagle's algorithm against delayed acknowledgements). Raises OSError.
    """
    (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        found.bind(address)
        found.listen(512)
    except OSError:
        found.close()
        raise
    return found

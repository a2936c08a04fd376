"""Slow, silent and many callers: whoever keeps the service waiting is closed, and another is answered."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from serviceapp import server
from test_process import process

from moonshelf.service.connections import listener
from moonshelf.service.run import Seldom

CLIENT_S = 0.6
PLACES = 8
HEAD = b"POST /v1/search HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def strict(embedded: Path) -> Iterator[str]:
    with server(embedded, client_s=CLIENT_S, max_address_connections=PLACES, idle_s=1) as address:
        yield address


@contextmanager
def connected(address: str, *sent: bytes) -> Iterator[socket.socket]:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as one:
        for piece in sent:
            one.sendall(piece)
        yield one


def seconds_until_closed(one: socket.socket, drip: bytes = b"") -> float:
    """`drip` is sent byte by byte meanwhile."""
    begun, one_byte = time.monotonic(), iter(drip)
    one.settimeout(0.1)
    while time.monotonic() - begun < 10:
        try:
            if not one.recv(65536):
                break
        except TimeoutError:
            if (byte := next(one_byte, None)) is not None:
                one.sendall(bytes([byte]))
        except ConnectionError:
            break
    return time.monotonic() - begun


@pytest.mark.parametrize(
    "sent", [b"", b"GET /hea", HEAD + b"content-length: 10\r\n\r\n", HEAD + b"content-length: 10\r\n\r\n{"]
)
def test_a_silent_caller_is_closed(strict: str, sent: bytes) -> None:
    with connected(strict, sent) as one:
        assert seconds_until_closed(one) < 8 * CLIENT_S


def test_a_slow_header_is_closed(strict: str) -> None:
    with connected(strict) as one:
        assert seconds_until_closed(one, drip=HEAD) < 8 * CLIENT_S


def test_an_idle_connection_is_closed_after_its_reply(strict: str) -> None:
    with connected(strict, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n") as one:
        assert one.recv(4096).startswith(b"HTTP/1.1 200")
        assert seconds_until_closed(one) < 5


@pytest.mark.parametrize("sent", [b"", b"GET /", HEAD + b"content-length: 10\r\n\r\n{"])
def test_many_who_say_nothing_do_not_keep_another_out(strict: str, sent: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(3 * PLACES):
            stack.enter_context(connected(strict, sent))
        begun = time.monotonic()
        assert httpx.get(f"{strict}/health", timeout=5).status_code == 200
        assert time.monotonic() - begun < CLIENT_S
    assert 'reason="connections"' in httpx.get(f"{strict}/metrics").text


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 100_000,
        b"GET /" + b"x" * 600_000 + b" HTTP/1.1\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 100_000,
        HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: y\r\n" * 100_000,
        b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n" * 10_000,
    ],
    ids=["headers", "path", "chunks", "trailers", "ahead"],
)
def test_what_is_sent_beside_the_body_is_bounded(strict: str, sent: bytes) -> None:
    with connected(strict) as one:
        try:
            one.sendall(sent)
        except ConnectionError:
            return
        assert seconds_until_closed(one) < 8 * CLIENT_S
    assert httpx.get(f"{strict}/health", timeout=5).status_code == 200


def test_replies_are_sent_at_once() -> None:
    with listener("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_kept_connection_costs_no_waiting(strict: str) -> None:
    with httpx.Client(base_url=strict) as client:
        took = []
        for _ in range(9):
            begun = time.perf_counter()
            client.get("/health")
            took.append(time.perf_counter() - begun)
    assert min(took) < 0.03  # Nagle's algorithm with delayed acknowledgements: 0.04 every time


def test_others_log_one_line_of_a_kind_a_second() -> None:
    seldom = Seldom()

    def passes(name: str, text: str) -> bool:
        return seldom.filter(logging.LogRecord(name, logging.ERROR, "", 0, text, (), None))

    full = "socket.accept() out of system resource"
    assert [passes("asyncio", full) for _ in range(1000)].count(True) == 1
    assert passes("asyncio", "something else") and all(passes("moonshelf.service", full) for _ in range(3))


@pytest.mark.slow
def test_more_callers_than_files(embedded: Path) -> None:
    """Under a limit of 256 open files, 400 silent callers keep nobody out and fill no log."""
    with (
        process(embedded, "--max-connections", "5000", files=256) as (running, address),
        ExitStack() as stack,
    ):
        for _ in range(400):
            stack.enter_context(connected(address))
        for _ in range(5):
            assert httpx.get(f"{address}/health", timeout=5).status_code == 200
            time.sleep(0.3)
        running.terminate()
        said = running.communicate(timeout=30)[1]
        assert len(said.splitlines()) < 200, said[:2000]

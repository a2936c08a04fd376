"""SIGTERM ends the process within `shutdown_s`, whatever it is doing."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from serviceapp import answers, until
from test_connections import HEAD, connected
from test_fetching import hanging_host
from test_process import free_port

SHUTDOWN_S = 3.0

Running = Callable[..., tuple[subprocess.Popen[str], str]]


def started(folder: Path, *flags: str, before: str = "") -> tuple[subprocess.Popen[str], str]:
    port = free_port()
    code = f"{before}\nimport sys\nfrom moonshelf.cli import main\nsys.argv[0] = 'moonshelf'\nmain()"
    command = [
        sys.executable, "-c", code, "serve", str(folder), "--port", str(port), "--creative-model", "off",
        "--shutdown-s", str(SHUTDOWN_S), *flags,
    ]  # fmt: skip
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True), f"http://127.0.0.1:{port}"


def ends(running: subprocess.Popen[str]) -> None:
    begun = time.monotonic()
    running.send_signal(signal.SIGTERM)
    code = running.wait(30)
    took = time.monotonic() - begun
    assert running.stderr is not None
    said = running.stderr.read()
    assert code == 0, said
    assert took < SHUTDOWN_S + 1, said
    assert "Traceback" not in said, said


def post(address: str, path: str, body: object) -> None:
    def send() -> None:
        with suppress(httpx.TransportError):
            httpx.post(f"{address}/v1/{path}", json=body, timeout=60)

    threading.Thread(target=send, daemon=True).start()


STUCK = """
import time
from moonshelf.{module} import {owner}
{owner}.{name} = lambda *a, **k: (print("inside", flush=True), time.sleep(60))
"""
ALLOW = """
from ipaddress import ip_network
from moonshelf.remote import RemoteFetcher
begin = RemoteFetcher.__init__
def allow(self, **given):
    begin(self, **given, schemes=["http"], ports=[{port}], allow_networks=["127.0.0.0/8"])
RemoteFetcher.__init__ = allow
"""


@pytest.fixture
def running(embedded: Path, request: pytest.FixtureRequest) -> Running:
    def start(*flags: str, before: str = "", ready: bool = True) -> tuple[subprocess.Popen[str], str]:
        process, address = started(embedded, *flags, before=before)
        request.addfinalizer(process.kill)
        if ready:
            until(lambda: answers(address), lambda: process.poll() is None)
        return process, address

    return start


def test_while_a_picture_host_hangs(running: Running) -> None:
    with hanging_host() as (port, taken):
        process, address = running("--remote-hosts", "127.0.0.1", before=ALLOW.format(port=port))
        body = {"products": [{"id": "x", "title": "y", "images": [f"http://127.0.0.1:{port}/a.jpg"]}]}
        for _ in range(6):
            post(address, "products", body)
        until(lambda: bool(taken))
        ends(process)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "owner", "name", "path", "body"),
    [
        ("service.catalogue_service", "CatalogueService", "_prepare", "embeddings", {"input": "a"}),
        (
            "service.catalogue_service",
            "CatalogueService",
            "_store",
            "products",
            {"products": [{"id": "x", "title": "y"}]},
        ),
        ("catalogue.search", "Catalogue", "search", "search", {"text": "a", "mode": "text"}),
    ],
)
def test_while_a_thread_hangs(
    running: Running,
    module: str, owner: str, name: str, path: str, body: object,
) -> None:  # fmt: skip
    process, address = running(before=STUCK.format(module=module, owner=owner, name=name))
    post(address, path, body)
    time.sleep(0.5)
    ends(process)


@pytest.mark.slow
def test_while_the_model_is_loaded(running: Running) -> None:
    stuck = STUCK.format(module="service.catalogue_service", owner="CatalogueService", name="open")
    process, address = running(before=stuck, ready=False)

    def alive() -> bool:
        try:
            return httpx.get(f"{address}/health").status_code == 200
        except httpx.TransportError:
            return False

    until(alive, lambda: process.poll() is None)
    ends(process)


def test_while_callers_are_slow(running: Running) -> None:
    process, address = running()
    begun = HEAD + b"content-length: 9\r\n\r\n"
    with (
        connected(address),
        connected(address, b"GET /"),
        connected(address, begun),
        connected(address) as unread,
    ):
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n" * 15)
        time.sleep(0.3)
        ends(process)

"""The application in this process, or behind a real server on loopback, for tests."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.testclient import TestClient

from moonshelf.service.app import create_app
from moonshelf.service.server import make_server
from moonshelf.service.settings import Settings


def ready(client: TestClient) -> TestClient:
    until(lambda: client.get("/ready").status_code == 200)
    return client


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[TestClient]:
    """The application in this process, once it is ready."""
    chosen = {"creative_model": "bytes", "folder": folder, **settings}
    application = create_app(Settings(**chosen))
    with TestClient(application, "http://localhost", raise_server_exceptions=False) as client:
        yield ready(client)


@contextmanager
def served(app: FastAPI, **settings: Any) -> Iterator[str]:
    """The address of an application that a thread serves on a free port of this machine."""
    running, listener = make_server(
        app, Settings(**{"folder": Path(), "port": 0, "shutdown_s": 3, **settings})
    )
    with listener:
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: running.started, thread.is_alive)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join(20)


@contextmanager
def server(folder: Path, **settings: Any) -> Iterator[str]:
    """The real application of a folder behind a real server, once it is ready; gives its address."""
    chosen = {"creative_model": "bytes", "folder": folder, "port": 0, **settings}
    with served(create_app(Settings(**chosen)), **chosen) as address:
        until(lambda: answers(address))
        yield address


def answers(address: str) -> bool:
    """Whether the service at that address says that it is ready."""
    try:
        return httpx.get(f"{address}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def until(done: Callable[[], bool], alive: Callable[[], bool] = lambda: True, seconds: float = 90) -> None:
    give_up = time.monotonic() + seconds
    while not done():
        assert alive() and time.monotonic() < give_up, "it ended, or took too long"
        time.sleep(0.05)


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

"""The application in this process, or behind a real server on loopback, for tests."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi.testclient import TestClient

from moonshelf.service.app import create_app
from moonshelf.service.settings import Settings


def ready(client: TestClient) -> TestClient:
    for _ in range(600):
        if client.get("/ready").status_code == 200:
            return client
        time.sleep(0.05)
    raise AssertionError("the service did not become ready")


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[TestClient]:
    """The application in this process, once it is ready."""
    chosen = {"creative_model": "bytes", "folder": folder, **settings}
    application = create_app(Settings(**chosen))
    with TestClient(application, "http://localhost", raise_server_exceptions=False) as client:
        yield ready(client)


@contextmanager
def server(folder: Path, **settings: Any) -> Iterator[str]:
    """The application behind a real server on a free port of loopback; gives its address."""
    chosen = {"creative_model": "bytes", "folder": folder, "port": 0, **settings}
    app = create_app(Settings(**chosen))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=2)
        process = uvicorn.Server(config)
        thread = threading.Thread(target=process.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        for _ in range(600):
            try:
                if httpx.get(f"{address}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        yield address
        process.should_exit = True
        thread.join(20)


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

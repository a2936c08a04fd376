"""A picture host that hangs takes nobody's threads, and work ends with its caller."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serviceapp import serving, until

from moonshelf.service import fetching, pools
from moonshelf.service.fetching import OF_ONE_HOST


@contextmanager
def hanging_host(says: bytes = b"") -> Iterator[tuple[int, list[socket.socket]]]:
    """A host that takes connections, says something at most, and then nothing; its port and connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    one, _ = listening.accept()
                except OSError:
                    return
                taken.append(one)
                one.sendall(says)

        threading.Thread(target=take, daemon=True).start()
        yield listening.getsockname()[1], taken
        for one in taken:
            one.close()


@contextmanager
def fetches(folder: Path, port: int, **settings: Any) -> Iterator[TestClient]:
    """An application that may fetch from this machine."""
    with serving(folder, remote_hosts=("127.0.0.1", "localhost"), **settings) as client:
        fetcher = client.app.state.service.fetching._fetcher  # type: ignore[attr-defined]
        from ipaddress import ip_network

        fetcher.allow_networks = [ip_network("127.0.0.0/8"), ip_network("::1/128")]
        fetcher.schemes, fetcher.ports = frozenset(["http"]), frozenset([port])
        yield client


def threads(kind: str) -> int:
    """Of a kind, those that are at work."""
    import sys

    frames = sys._current_frames()
    at_work = 0
    for one in threading.enumerate():
        frame = frames.get(one.ident or 0)
        if one.name.startswith(f"moonshelf-{kind}") and frame and "thread.py" not in frame.f_code.co_filename:
            at_work += 1
    return at_work


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n\xff\xd8"])
def test_a_host_that_hangs_keeps_nobody_waiting(embedded: Path, says: bytes) -> None:
    with hanging_host(says) as (port, taken), fetches(embedded, port, deadline_s=2) as client:
        product = {"id": "x", "title": "y", "images": [f"http://127.0.0.1:{port}/a.jpg"] * 2}
        body = {"products": [{**product, "id": str(i)} for i in range(8)]}
        replies: list[int] = []

        def put() -> None:
            replies.append(client.post("/v1/products", json=body).status_code)

        callers = [threading.Thread(target=put) for _ in range(6)]
        for one in callers:
            one.start()
        until(lambda: len(taken) > 0)
        for _ in range(3):
            begun = time.monotonic()
            assert client.post("/v1/search", json={"text": "bag"}).status_code == 200
            assert time.monotonic() - begun < 1.5
        assert len(taken) <= OF_ONE_HOST
        for one in callers:
            one.join(20)
        assert replies == [504] * 6
        until(lambda: threads("fetch") == 0, seconds=3)  # given back long before the host's time is over


def test_a_fetch_ends_at_its_own_time_and_is_a_problem_of_its_product(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "FETCH_S", 0.5)
    with hanging_host() as (port, _), fetches(folder, port) as client:
        given = [
            {"id": "slow", "title": "a", "images": [f"http://localhost:{port}/a.jpg"]},
            {"id": "quick", "title": "b"},
        ]
        reply = client.post("/v1/products", json={"products": given}).json()
        assert reply["new"] == 1 and [one["id"] for one in reply["problems"]] == ["slow"]
        assert "took too long" in reply["problems"][0]["reason"]


def test_a_slow_picture_keeps_no_search_by_words_waiting(
    embedded: Path, monkeypatch: pytest.MonkeyPatch, photo: Any
) -> None:
    import base64

    from moonshelf.model import engine

    read_row, go, inside, read = engine.read_row, threading.Event(), threading.Event(), []

    def slow(model: Any, index: int, product: Any, *rest: Any) -> Any:
        if product.images:
            read.append(index)
            inside.set()
            assert go.wait(20)
        return read_row(model, index, product, *rest)

    monkeypatch.setattr(engine, "read_row", slow)
    with serving(embedded, deadline_s=1) as client:
        picture = {"image": base64.b64encode(photo(0)).decode()}
        body = {"input": [{**picture, "text": str(i)} for i in range(6)]}
        callers = [
            threading.Thread(target=client.post, args=("/v1/embeddings",), kwargs={"json": body})
            for _ in range(4)
        ]
        for one in callers:
            one.start()
        assert inside.wait(10)
        assert client.post("/v1/search", json={"text": "bag"}).status_code == 200
        for one in callers:
            one.join(20)
        go.set()
        until(lambda: threads("picture") == 0)
        assert len(read) <= pools.SIZES["picture"]  # none was read after its caller had gone

"""Size, keys, rates, deadlines, callers who leave, headers, the log, and what a defect shows."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from serviceapp import server, serving

from moonshelf.service.keys import add_key, revoke_key

EMBED = {"input": "a lamp"}


@pytest.fixture(scope="module")
def guarded(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Any]]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    keys = {"file": file, "both": add_key(file, "both"), "read": add_key(file, "reader", {"read"})}
    with serving(embedded, keys_file=file, max_body_mb=0.05) as client:
        yield client, keys


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_opens_what_it_may(guarded: tuple[TestClient, Any]) -> None:
    client, keys = guarded
    for path in ("/", "/health", "/ready", "/metrics"):
        assert client.get(path).status_code == 200, path
    assert client.get("/openapi.json").status_code == 200
    for headers in ({}, bearer("ms_wrong"), {"Authorization": keys["both"]}, bearer("")):
        reply = client.post("/v1/embeddings", json=EMBED, headers=headers)
        assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
        assert reply.json()["error"]["type"] == "authentication_error"
    assert client.post("/v1/embeddings", json=EMBED, headers=bearer(keys["read"])).status_code == 200
    for method, path in (("POST", "/v1/products"), ("DELETE", "/v1/products/x"), ("POST", "/v1/feedback")):
        reply = client.request(method, path, json={}, headers=bearer(keys["read"]))
        assert reply.status_code == 403 and "reader may read" in reply.json()["error"]["message"]
        assert client.request(method, path, json={}, headers=bearer(keys["both"])).status_code in (404, 422)
    revoke_key(keys["file"], "reader")  # without a restart
    assert client.post("/v1/embeddings", json=EMBED, headers=bearer(keys["read"])).status_code == 401


def test_large_bodies_are_refused_declared_or_not(guarded: tuple[TestClient, Any]) -> None:
    client, keys = guarded
    big = json.dumps({"input": "x" * 60_000}).encode()
    headers = {**bearer(keys["both"]), "content-type": "application/json"}
    declared = client.post("/v1/embeddings", content=big, headers=headers)

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(big), 10_000):
            yield big[start : start + 10_000]

    chunked = client.post("/v1/embeddings", content=pieces(), headers=headers)
    for reply in (declared, chunked):
        assert reply.status_code == 413 and "0.05 MB" in reply.json()["error"]["message"], reply.text


def test_every_reply_carries_the_security_headers(reader: TestClient) -> None:
    for reply in (reader.get("/"), reader.get("/v1/nothing"), reader.post("/v1/embeddings", json=EMBED)):
        assert reply.headers["x-content-type-options"] == "nosniff"
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert reply.headers["x-request-id"] and "server" not in reply.headers
        assert "access-control-allow-origin" not in reply.headers


def test_other_origins_are_let_in_by_name_only(embedded: Path) -> None:
    with serving(embedded, cors_origins=("https://shop.example",)) as client:
        for origin, allowed in (("https://shop.example", True), ("https://evil.example", False)):
            reply = client.get("/v1/models", headers={"origin": origin})
            assert (reply.headers.get("access-control-allow-origin") == origin) is allowed


def test_without_keys_only_localhost_is_answered(reader: TestClient, guarded: tuple[TestClient, Any]) -> None:
    """Or a page whose name leads here could read the catalogue through its visitor's browser."""
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::2]:80"):
        for path in ("/", "/v1/models", "/health"):
            reply = reader.get(path, headers={"host": host})
            assert reply.status_code == 400 and "localhost only" in reply.text, (host, path)
    for host in ("localhost", "LOCALHOST:8765", "127.0.0.1:8765", "[::1]:8765"):
        assert reader.get("/v1/models", headers={"host": host}).status_code == 200, host
    client, keys = guarded
    headers = {"host": "shelf.example", **bearer(keys["both"])}
    assert client.get("/v1/models", headers=headers).status_code == 200


def test_a_folder_that_may_only_be_read_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    with serving(folder) as client:
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # tests may run as root
        assert client.post("/v1/search", json={"text": "bag"}).json()["hits"]
        body = {"kind": "note", "subject": {"id": "x"}, "note": "y"}
        for path, given in (("products", {"products": [{"id": "x", "title": "y"}]}), ("feedback", body)):
            reply = client.post(f"/v1/{path}", json=given)
            assert reply.status_code == 403 and "may only be read" in reply.json()["error"]["message"]


def test_rates_are_kept_for_each_caller(embedded: Path) -> None:
    with serving(embedded, rate_limit="3/minute", trusted_proxies=("127.0.0.0/8",)) as client:
        got = [client.get("/v1/models") for _ in range(5)]
        assert [reply.status_code for reply in got] == [200, 200, 200, 429, 429]
        assert 1 <= int(got[-1].headers["retry-after"]) <= 61
        # the test client's address is no trusted proxy: what it forwards does not make it another caller
        assert client.get("/v1/models", headers={"x-forwarded-for": "10.1.1.1"}).status_code == 429
        assert client.get("/health").status_code == 200


def test_an_unknown_path_method_and_bad_json(reader: TestClient) -> None:
    assert reader.get("/v1/nothing").json()["error"]["type"] == "not_found"
    assert reader.get("/v1/search").status_code == 405
    headers = {"content-type": "application/json"}
    for body in (b"{", b'{"input": "\xff"}', b"[" * 100_000):
        reply = reader.post("/v1/embeddings", content=body, headers=headers)
        assert reply.status_code == 400 and "error" in reply.json(), reply.text[:200]


def test_a_defect_is_logged_and_not_shown(
    embedded: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(embedded) as client:
        app: Any = client.app

        async def broken(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError("the secret of the house")

        monkeypatch.setattr(app.state.service, "encode", broken)
        with caplog.at_level(logging.ERROR, "moonshelf.service"):
            reply = client.post("/v1/embeddings", json=EMBED)
        assert reply.status_code == 500
        said = reply.json()["error"]["message"]
        assert "secret" not in said and "Zero" not in said and reply.headers["x-request-id"] in said
        assert any("secret of the house" in (record.exc_text or "") for record in caplog.records)


class Stuck:
    """Holds the model's thread until let go."""

    def __init__(self, app: Any) -> None:
        self.kind = app.state.service.batcher.kinds["off"]
        self.go, self.asked = threading.Event(), []  # type: ignore[var-annotated]
        self.inside = threading.Event()
        run = self.kind.run

        def slow(rows: list[Any]) -> Any:
            self.asked.append(len(rows))
            self.inside.set()
            assert self.go.wait(20)
            return run(rows)

        object.__setattr__(self.kind, "run", slow)


def test_a_deadline_ends_the_waiting_and_frees_the_work(embedded: Path) -> None:
    with serving(embedded, deadline_s=20) as client:
        stuck = Stuck(client.app)
        first: list[Any] = []
        thread = threading.Thread(target=lambda: first.append(client.post("/v1/embeddings", json=EMBED)))
        thread.start()
        assert stuck.inside.wait(10)
        started = time.monotonic()
        reply = client.post("/v1/embeddings", json={"input": "a shoe"}, headers={"x-deadline-seconds": "0.3"})
        assert reply.status_code == 504 and time.monotonic() - started < 5
        assert "0.3 s" in reply.json()["error"]["message"]
        stuck.go.set()
        thread.join(20)
        assert first[0].status_code == 200 and stuck.asked == [1]  # the late one was never computed
        told, until = 'moonshelf_dropped_total{reason="cancelled"} 1.0', time.monotonic() + 10
        while told not in client.get("/metrics").text:  # counted when its turn comes, after the first's reply
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_caller_who_leaves_frees_the_work(embedded: Path) -> None:
    from moonshelf.service import app as module

    made: list[Any] = []
    create = module.create_app

    def keep(*arguments: Any) -> Any:
        made.append(create(*arguments))
        return made[-1]

    async def leave(address: str, stuck: Stuck) -> httpx.Response:
        async with httpx.AsyncClient(base_url=address, timeout=30) as client:
            first = asyncio.create_task(client.post("/v1/embeddings", json=EMBED))
            while not stuck.inside.is_set():
                await asyncio.sleep(0.01)
            body = {"input": [f"text {i}" for i in range(5)]}
            with pytest.raises(httpx.ReadTimeout):
                await client.post("/v1/embeddings", json=body, timeout=0.3)
            for _ in range(200):
                if (await client.get("/ready")).json()["queued"] == 0:
                    break
                await asyncio.sleep(0.02)
            stuck.go.set()
            return await first

    import serviceapp

    original, serviceapp.create_app = serviceapp.create_app, keep
    try:
        with server(embedded) as address:
            stuck = Stuck(made[0])
            reply = asyncio.run(leave(address, stuck))
            metrics = httpx.get(f"{address}/metrics").text
    finally:
        serviceapp.create_app = original
    assert reply.status_code == 200 and stuck.asked == [1]
    assert 'moonshelf_dropped_total{reason="caller left"} 1.0' in metrics
    assert 'status="499"' in metrics


def test_too_much_at_once_gets_429_and_the_rest_is_served(embedded: Path) -> None:
    with serving(embedded, max_queue_items=4) as client:
        stuck = Stuck(client.app)
        replies: list[Any] = []

        def ask(i: int) -> None:
            replies.append(client.post("/v1/embeddings", json={"input": f"text {i}"}))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
        threads[0].start()
        assert stuck.inside.wait(10)
        for thread in threads[1:]:
            thread.start()
        while sum(reply.status_code == 429 for reply in replies) < 7:
            time.sleep(0.01)
        stuck.go.set()
        for thread in threads:
            thread.join(20)
        assert sorted(reply.status_code for reply in replies) == [200] * 5 + [429] * 7
        refused = next(reply for reply in replies if reply.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1 and refused.json()["error"]["type"] == "overloaded"


def test_the_log_names_routes_and_no_words(reader: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "moonshelf.service"):
        reader.post("/v1/search", json={"text": "very private words"})
        reader.get("/v1/products/private-id")
    lines = [record.__dict__ for record in caplog.records if record.getMessage() == "request"]
    assert [(line["route"], line["status"]) for line in lines] == [
        ("/v1/search", 200), ("/v1/products/{id:path}", 404),
    ]  # fmt: skip
    assert "private" not in json.dumps([str(line) for line in lines]).replace("private-id}", "")


def test_it_is_not_ready_before_it_is(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serviceapp import ready

    from moonshelf.service.app import create_app
    from moonshelf.service.catalogue_service import CatalogueService
    from moonshelf.service.settings import Settings

    wait, load = threading.Event(), CatalogueService.open

    def slow(self: CatalogueService, extra: Any) -> None:
        assert wait.wait(20)
        load(self, extra)

    monkeypatch.setattr(CatalogueService, "open", slow)
    with TestClient(
        create_app(Settings(folder=embedded, creative_model="off")), "http://localhost"
    ) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        reply = client.post("/v1/embeddings", json=EMBED)
        assert reply.status_code == 503 and reply.headers["retry-after"] == "2"
        wait.set()
        assert ready(client).post("/v1/embeddings", json=EMBED).status_code == 200


def test_a_clock_that_is_put_back_changes_no_rate(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(embedded, rate_limit="2 per 1 second") as client:
        assert [client.get("/v1/models").status_code for _ in range(3)] == [200, 200, 429]
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() - 3600)
        time.sleep(1.05)
        assert client.get("/v1/models").status_code == 200


def test_no_key_is_accepted_while_their_file_is_gone(embedded: Path, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.json", "one")
    with serving(embedded, keys_file=tmp_path / "keys.json") as client:
        assert client.get("/v1/models", headers=bearer(key)).status_code == 200
        (tmp_path / "keys.json").rename(tmp_path / "away.json")
        reply = client.get("/v1/models", headers=bearer(key))
        assert reply.status_code == 503 and "file of API keys" in reply.text
        (tmp_path / "away.json").rename(tmp_path / "keys.json")
        assert client.get("/v1/models", headers=bearer(key)).status_code == 200


def test_outer_spaces_are_no_part_of_an_id(folder: Path) -> None:
    with serving(folder) as client:
        for id in ("  S 1 ", "\tS 1\n", "S 1"):
            product = {"id": id, "title": "a spaced shoe"}
            done = client.post("/v1/products", json={"products": [product]}).json()
            assert done["new"] + done["unchanged"] == 1, done
            assert client.get("/v1/products/%20S%201%20").json()["id"] == "S 1"
            assert client.post("/v1/search", json={"like": id}).status_code == 200
        assert client.post("/v1/products/delete", json={"ids": [" S 1"]}).json()["deleted"] == 1
        assert client.get("/v1/products/S%201").status_code == 404
        pair = {"kind": "duplicate", "subject": {"a": " x ", "b": "y"}, "verdict": "reject"}
        assert client.post("/v1/feedback", json=pair).json()["stored"]["subject"]["a"] == "x"


def test_no_error_names_a_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moonshelf.catalogue import feedback
    from moonshelf.errors import UserError

    def broken(*_: Any, **__: Any) -> None:
        raise UserError(f"{folder / 'lance' / 'x'} is damaged, as is '/srv/data/some.file': make it anew.")

    with serving(folder) as client:
        monkeypatch.setattr(feedback, "add", broken)
        body = {"kind": "note", "subject": {"id": "x"}, "note": "y"}
        for path, given in (("search", {"like": "unknown"}), ("feedback", body)):
            reply = client.post(f"/v1/{path}", json=given)
            assert reply.status_code == 400
            said = reply.json()["error"]["message"]
            assert str(folder.parent) not in said and "/srv" not in said, said
        assert "unknown" in client.post("/v1/search", json={"like": "unknown"}).text

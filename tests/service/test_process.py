"""The service as a process: how it starts, what it says, how it ends, and what a kill -9 costs."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from serviceapp import answers, until
from typer.testing import CliRunner

from moonshelf.catalogue.store import Store
from moonshelf.cli import app
from moonshelf.errors import UserError


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@contextmanager
def process(
    folder: Path, *flags: str, files: int | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`moonshelf serve` of a folder, once it is ready; it may open so many files."""
    port = free_port()
    command = [sys.executable, "-m", "moonshelf.cli", "serve", str(folder), "--port", str(port)]
    limited = [] if files is None else ["prlimit", f"--nofile={files}"]
    running = subprocess.Popen(
        [*limited, *command, "--creative-model", "off", *flags], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"

    def alive() -> bool:
        assert running.poll() is None, running.stderr and running.stderr.read()
        return True

    try:
        until(lambda: answers(address), alive)
        yield running, address
    finally:
        running.kill()
        running.wait()


def test_what_the_user_must_mend_is_one_sentence(embedded: Path, tmp_path: Path) -> None:
    for arguments, words in (
        ((str(tmp_path),), "not a catalogue"),
        ((), "folder"),
        ((str(embedded), "--host", "0.0.0.0"), "keys"),
        ((str(embedded), "--prot", "80"), "prot"),
        ((str(embedded), "--port", "99999"), "port"),
        ((str(embedded), "--keys-file", str(tmp_path / "none.json")), "cannot be read"),
        ((str(embedded), "--model", str(tmp_path)), "moon.json"),
    ):
        done = CliRunner().invoke(app, ["serve", *arguments])
        assert isinstance(done.exception, UserError), (arguments, done.exception)
        assert words in str(done.exception) and "\n" not in str(done.exception)


def test_a_mistake_ends_the_process_with_its_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "moonshelf.cli", "serve", str(tmp_path), "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_sigterm_finishes_what_was_taken(folder: Path) -> None:
    with process(folder, "--log-format", "json") as (running, address):
        replies, sent = list[int](), list[str]()

        def trace(event: str, _: object) -> None:
            if event == "http11.send_request_body.complete":
                sent.append(event)

        def ask(i: int) -> None:
            body = {"input": [f"a lamp number {i} {j}" for j in range(8)], "reason": "on"}
            with httpx.Client(timeout=60) as client:
                reply = client.post(f"{address}/v1/embeddings", json=body, extensions={"trace": trace})
            replies.append(reply.status_code)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        late = time.monotonic() + 60
        while len(sent) < 6:  # on a busy machine the last may come late: it would be refused, not taken
            assert time.monotonic() < late, f"{len(sent)} of 6 requests were sent in a minute"
            time.sleep(0.01)
        while "queue_items 0" in httpx.get(f"{address}/metrics").text and not replies:
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert replies == [200] * 6
        assert running.wait(60) == 0
        assert running.stderr is not None
        lines = [json.loads(line) for line in running.stderr.read().splitlines() if line.startswith("{")]
        shown = next(line["settings"] for line in lines if "settings" in line)
        assert shown["folder"] == str(folder) and shown["max_queue_items"] == 512
        assert sum(line.get("route") == "/v1/embeddings" for line in lines) == 6


def kill_during_upserts(folder: Path, times: int, seed: int) -> int:
    """Upserts of four callers until a kill -9, again and again; returns how many were acknowledged."""
    chance, known, lock = random.Random(seed), dict[str, str](), threading.Lock()
    for turn in range(times):
        with process(folder) as (running, address):

            def write(caller: int, turn: int = turn, address: str = address) -> None:
                for step in range(10_000):
                    products = [
                        {"id": f"k{caller}-{step % 40}-{j}", "title": f"title {turn} {step}"}
                        for j in range(3)
                    ]
                    try:
                        reply = httpx.post(f"{address}/v1/products", json={"products": products}, timeout=60)
                    except httpx.TransportError:
                        return
                    if reply.status_code != 200:
                        return
                    with lock:
                        known.update({one["id"]: one["title"] for one in products})

            threads = [threading.Thread(target=write, args=(caller,)) for caller in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(chance.uniform(0.3, 1.5))
            running.send_signal(signal.SIGKILL)
            for thread in threads:
                thread.join(60)
        stored = Store.open(folder).scan(["id", "title"]).to_pylist()
        names = [row["id"] for row in stored]
        assert len(names) == len(set(names)), "a product is there twice"
        titles = {row["id"]: row["title"] for row in stored}
        for id, title in known.items():
            # what was acknowledged, or what the same caller sent after it and never heard of
            assert id in titles, f"{id} was acknowledged and is gone"
            assert [int(x) for x in titles[id].split()[1:]] >= [int(x) for x in title.split()[1:]]
        known.update({id: title for id, title in titles.items() if id in known})
    return len(known)


def test_a_kill_during_upserts_loses_nothing_that_was_acknowledged(folder: Path) -> None:
    assert kill_during_upserts(folder, times=2, seed=0) > 0


@pytest.mark.slow
def test_twenty_kills_during_upserts(folder: Path) -> None:
    assert kill_during_upserts(folder, times=20, seed=1) > 100

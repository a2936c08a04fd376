"""Whatever a request holds: what it may cost in memory, and how long another caller may wait for it.

The service runs in a process of its own. Callers send it what is meant to hurt, while another searches.
"""

from __future__ import annotations

import base64
import io
import json
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from test_process import process

GROWTH_MIB, WAIT_S = 300, 1.0
ATTACKERS = 4
PATHS = ("embeddings", "search", "products", "products/delete", "creatives/compare", "feedback")
FIELDS = ("input", "messages", "products", "ids", "images", "text", "image", "filters", "subject", "title")
JSON = {"content-type": "application/json"}


def memory(pid: int, what: str) -> float:
    """MiB: VmRSS, or VmHWM for the most since `reset`."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    found = re.search(rf"^{what}:\s+(\d+)", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def reset(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


# ---- what is sent ----------------------------------------------------------------------------------


def value(chance: random.Random, depth: int = 0) -> str:
    """Some JSON as text, small or very large in one way."""
    kind = chance.randrange(12 if depth < 3 else 8)
    many = chance.choice((1, 10, 1000, 300_000))
    match kind:
        case 0:
            return chance.choice(("null", "true", "-1", "1e999", "NaN", "0.1", "-0", "1" * min(many, 10_000)))
        case 1:
            return '"' + "x" * (many * 10) + '"'
        case 2:
            return '"' + r"\ud83d\ude00" * many + '"'
        case 3:
            return '"' + "word é " * many + '"'
        case 4:
            return '"data:image/png;base64,' + "AAAA" * many + '"'
        case 5:
            return "[" + ",".join([chance.choice(("{}", "[]", "0", '""', "[[]]"))] * many) + "]"
        case 6:
            return "{" + ",".join(f'"{chance.choice(FIELDS)}{i}": 0' for i in range(many)) + "}"
        case 7:
            return "[" * many + "]" * chance.choice((many, 0))
        case 8:
            return "[" + ",".join(value(chance, depth + 1) for _ in range(chance.randrange(8))) + "]"
        case 9:
            one = value(chance, depth + 2)
            return "[" + ",".join([one] * min(250, 1 + 3_000_000 // len(one))) + "]"
        case _:
            inside = (f'"{chance.choice(FIELDS)}": {value(chance, depth + 1)}' for _ in range(3))
            return "{" + ",".join(inside) + "}"


def body(chance: random.Random) -> bytes:
    if chance.random() < 0.5:
        return b"{" + f'"{chance.choice(FIELDS)}": {value(chance)}'.encode() + b"}"
    item = f'{{"{chance.choice(FIELDS)}": {value(chance, 2)}, "id": "a"}}'
    count = min(chance.choice((1, 100, 256)), 1 + 8_000_000 // len(item))
    name = chance.choice(("input", "products", "ids"))
    return f'{{"{name}": [{",".join([item] * count)}]}}'.encode()


def random_request(chance: random.Random, address: str) -> None:
    sent = body(chance)
    if chance.random() < 0.2:
        sent = sent[: chance.randrange(len(sent) + 1)]
    if chance.random() < 0.2:
        place = chance.randrange(len(sent) + 1)
        sent = sent[:place] + chance.randbytes(3) + sent[place:]
    httpx.post(f"{address}/v1/{chance.choice(PATHS)}", content=sent, headers=JSON, timeout=60)


def large_picture(size: int) -> str:
    noise = Image.frombytes("L", (4096, size // 4096), random.Random(0).randbytes(size // 4096 * 4096))
    written = io.BytesIO()
    noise.save(written, "PNG", compress_level=0)
    return base64.b64encode(written.getvalue()).decode()


PICTURE, SMALLER = large_picture(15 << 20), large_picture(4 << 20)


def blank(mode: str, width: int, height: int, form: str, **given: Any) -> str:
    """A picture of one colour: few bytes, many pixels."""
    written = io.BytesIO()
    Image.new(mode, (width, height)).save(written, form, **given)
    return base64.b64encode(written.getvalue()).decode()


@cache
def blanks() -> tuple[str, ...]:
    return (
        blank("L", 7000, 7000, "PNG"), blank("RGBA", 5000, 5000, "PNG"), blank("P", 7000, 7000, "GIF"),
        blank("RGB", 6000, 8000, "JPEG"), blank("RGB", 5000, 5000, "WEBP"), blank("I;16", 4000, 4000, "PNG"),
    )  # fmt: skip


def hollow(chance: random.Random, address: str) -> None:
    """Pictures that are large only when they are decoded."""
    pictures = [chance.choice(blanks()) for _ in range(4)]
    given: Any = {"input": [{"text": "x", "image": one} for one in pictures]}
    if chance.random() < 0.5:
        given = {
            "products": [{"id": f"h{i}", "title": "x", "images": [one]} for i, one in enumerate(pictures)]
        }
    path = "embeddings" if "input" in given else "products"
    httpx.post(f"{address}/v1/{path}", content=json.dumps(given), headers=JSON, timeout=60)


def largest(chance: random.Random, address: str) -> None:
    """As much as fits: a picture of the most bytes that are decoded, several, or what is none."""
    pictures = chance.choice(([PICTURE], [SMALLER] * 5, ["QUJD" * 2_000_000] * 3))
    given: Any = {"input": [{"text": "x", "image": one} for one in pictures]}
    if chance.random() < 0.5:
        given = {"products": [{"id": "big", "title": "x", "images": pictures}]}
    path = "embeddings" if "input" in given else "products"
    httpx.post(f"{address}/v1/{path}", content=json.dumps(given), headers=JSON, timeout=60)


def raw(chance: random.Random, address: str) -> None:
    """What is no proper HTTP, or much of it, or the half of it."""
    head = b"POST /v1/search HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    sent = chance.choice((
        head + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 400_000,
        head + b"content-length: 60000000\r\n\r\n" + b'{"text": "',
        head + b"x: y\r\n" * 300_000,
        b"GET /" + b"%20" * 300_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n" * 20_000,
        b"GET /v1/duplicates?min_score=-1 HTTP/1.1\r\nhost: localhost\r\n\r\n" * 10,
        chance.randbytes(100_000),
    ))  # fmt: skip
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as one:
        one.sendall(sent)
        one.settimeout(0.5)
        one.recv(1000)


KINDS: tuple[Callable[[random.Random, str], None], ...] = (
    random_request,
    random_request,
    raw,
    largest,
    hollow,
)


# ---- what it costs ---------------------------------------------------------------------------------


@contextmanager
def another(address: str, pid: int) -> Iterator[dict[str, Any]]:
    """A caller in a process of his own, who does not wait for what attackers compute; filled at the end."""
    command = [sys.executable, str(Path(__file__).with_name("another_caller.py")), address, str(pid)]
    told: dict[str, Any] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None and caller.stdin is not None
        assert caller.stdout.readline().strip() == "begun"
        yield told
        told.update(json.loads(caller.communicate(timeout=90)[0]))


@pytest.fixture(scope="module")
def bounded(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """A service that has answered one of each kind, so that what it loads once is loaded."""
    folder = Path(shutil.copytree(embedded, tmp_path_factory.mktemp("bounds") / "shelf"))
    with process(folder, "--log-level", "error", "--threads", "1") as (running, address):
        for path, given in (
            ("search", {"text": "red shoe"}),
            ("embeddings", {"input": [f"a {i}" for i in range(200)]}),
            ("products", {"products": [{"id": "w", "title": "x"}]}),
        ):
            assert httpx.post(f"{address}/v1/{path}", json=given, timeout=60).status_code == 200
        yield running.pid, address


def attack(bounded: tuple[int, str], seconds: float, seed: int) -> tuple[float, dict[str, Any], int]:
    """Growth of memory in MiB, what another caller tells, and how much was sent."""
    pid, address = bounded
    sent = [0] * ATTACKERS

    def run(place: int, until_when: float) -> None:
        chance = random.Random(f"{seed} {place}")
        while time.monotonic() < until_when:
            kind = chance.choice(KINDS)
            with suppress(httpx.TransportError, OSError):
                kind(chance, address)
            sent[place] += 1

    with another(address, pid) as told:
        blanks()
        before = memory(pid, "VmRSS")
        reset(pid)
        until_when = time.monotonic() + seconds
        attackers = [threading.Thread(target=run, args=(i, until_when)) for i in range(ATTACKERS)]
        for one in attackers:
            one.start()
        for one in attackers:
            one.join()
    assert told["statuses"] == [200]
    errors = httpx.get(f"{address}/metrics").text
    assert not re.search(r'moonshelf_requests_total{[^}]*status="500"', errors), "a defect"
    return memory(pid, "VmHWM") - before, told, sum(sent)


def check(bounded: tuple[int, str], seconds: float, seed: int) -> None:
    growth, told, sent = attack(bounded, seconds, seed)
    print(
        f"{sent} requests: memory grew by {growth:.0f} MiB at most; another waited {told['wall']:.2f} s, of "
        f"which the service computed {told['counted']:.2f} s"
    )
    assert growth < GROWTH_MIB and told["counted"] < WAIT_S, (growth, told)


def test_no_request_costs_much_or_keeps_another_waiting(bounded: tuple[int, str]) -> None:
    check(bounded, seconds=8, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_nor_do_many(bounded: tuple[int, str], seed: int) -> None:
    check(bounded, seconds=60, seed=seed)

"""Bodies are bounded while they come in, and what is within the bounds arrives as it was sent."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from moonshelf.memory import Crowded, Room
from moonshelf.service.body import Bodies, Held, Refused, Scan

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)


def scanned(data: bytes, piece: int, max_items: int = 256) -> bytes:
    scan = Scan(max_items)
    for start in range(0, len(data), piece):
        scan.feed(data[start : start + piece])
    return bytes(scan.body)


@given(VALUES, st.integers(1, 40), st.booleans())
def test_any_json_passes_in_any_pieces(value: Any, piece: int, ascii: bool) -> None:
    data = json.dumps(value, ensure_ascii=ascii).encode()
    assert scanned(data, piece) == data


@given(st.binary(max_size=400) | st.text('{}[]",:\\ \n1', max_size=60).map(str.encode), st.integers(1, 9))
def test_what_is_no_json_is_refused_or_left_to_the_parser(data: bytes, piece: int) -> None:
    try:
        scanned(data, piece)
    except Refused as error:
        assert error.status in (400, 422)
        with pytest.raises(ValueError):
            from_json(data)


MILLION = {
    "empty items": (b'{"input": [' + b"{}," * 1_000_000 + b"{}]}", "input"),
    "nothing": (b'{"input": [' + b"," * 1_000_000 + b"]}", "input"),
    "ids": (b'{"ids": [' + b'"",' * 1_000_000 + b'""]}', "ids"),
    "a field": (b'{"products": [{"images": [' + b"[]," * 1_000_000 + b"]}]}", "products.0.images"),
    "fields": (b"{" + b",".join(b'"%d": 0' % i for i in range(200_000)) + b"}", None),
    "lists of lists": (b'{"input": [' + (b"[" + b"0," * 200 + b"0],") * 1000 + b"0]}", None),
    "a text": (b'{"text": "' + b"words, " * 1_000_000 + b'"}', "text"),
    "letters": (b'{"text": "' + "é".encode() * 1_000_000 + b'"}', "text"),
    "escapes": (b'{"text": "' + rb"\ud83d\ude00" * 1_000_000 + b'"}', "text"),
    "a name": (b'{"' + b"x" * 1_000_000 + b'": 0}', None),
}


@pytest.mark.parametrize("name", MILLION)
@pytest.mark.parametrize("piece", [1 << 16, 1 << 23])
def test_a_million_of_anything_is_refused_before_it_is_made(name: str, piece: int) -> None:
    data, param = MILLION[name]
    begun = time.process_time()
    with pytest.raises(Refused) as caught:
        scanned(data, piece)
    assert caught.value.status == 422 and time.process_time() - begun < 1
    if param is not None:
        assert caught.value.param is not None and caught.value.param.startswith(param)


def test_large_pictures_pass_however_they_are_written() -> None:
    letters = b"ABCDabcd0189+/==" * 60_000
    for written in (letters, letters.replace(b"/", rb"\/"), letters.replace(b"+", rb"\u002B")):
        for start in (b"", b"data:image/jpeg;base64,"):
            data = b'{"image": "' + start + written + rb"\r\n" + b'"}'
            assert scanned(data, 1 << 16) == data


@pytest.mark.parametrize(
    "path", ["embeddings", "search", "products", "products/delete", "creatives/compare", "creatives/rank"]
)
@pytest.mark.parametrize("field", ["input", "products", "ids", "creatives", "interest"])
def test_every_route_refuses_a_million_items_quickly(reader: TestClient, path: str, field: str) -> None:
    body = b'{"%s": [%s{}]}' % (field.encode(), b"{}," * 1_000_000)
    begun = time.process_time()
    reply = reader.post(f"/v1/{path}", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 422 and reply.json()["error"]["param"] == field
    assert time.process_time() - begun < 2 and len(reply.content) < 1000


def test_one_text_is_capped_where_it_is_read(reader: TestClient) -> None:
    for text in ("a" * 22_000_000, "word " * 10_000, ["a" * 30_000], [{"text": "a" * 30_000}]):
        reply = reader.post("/v1/embeddings", json={"input": text})
        assert reply.status_code == 422 and "20" in reply.json()["error"]["message"]
        assert len(reply.content) < 1000


def test_large_bodies_of_all_callers_are_counted_together() -> None:
    bodies = Bodies(10 << 20)
    first, second = Held(bodies), Held(bodies)
    first.take(20 << 20)  # one alone finds room
    second.take(1 << 19)  # so does a small one
    with pytest.raises(Refused) as caught:
        second.take(5 << 20)
    assert caught.value.status == 429
    first.give_back()
    second.take(1 << 20)
    second.give_back()
    assert not any(bodies.held.values())


def test_pictures_and_bodies_share_one_room() -> None:
    room = Room(100)
    with room(30):
        assert room.hold(60) and not room.hold(20) and room.hold(20, always=True)
    with pytest.raises(Crowded), room(40):  # it would wait for requests, of which one may be its own
        pass
    assert room.hold(-80)
    with room(1_000):
        assert room.free == 0
    assert room.free == 100

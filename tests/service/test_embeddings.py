"""/v1/embeddings: OpenAI's form with pictures, held against the model asked directly."""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serviceapp import data_uri, serving

from moonshelf import ImageRef, MoonModel, Product
from moonshelf.catalogue.manifest import load_model, placed
from moonshelf.errors import UserError

# Rows of one batch are padded to one length: sums run in another order than alone.
CLOSE = 2e-5


def post(client: TestClient, **body: Any) -> dict[str, Any]:
    reply = client.post("/v1/embeddings", json=body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def vectors(client: TestClient, **body: Any) -> np.ndarray:
    return np.array([one["embedding"] for one in post(client, **body)["data"]], np.float32)


def refusal(client: TestClient, status: int, **body: Any) -> dict[str, Any]:
    reply = client.post("/v1/embeddings", json=body)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


def test_texts_give_the_models_own_vectors_in_order(reader: TestClient, moon: MoonModel) -> None:
    texts = ["red running shoe", "a mug", "blue leather bag with a long strap and two pockets", "a mug"]
    expected = moon.encode([Product(id=str(i), title=text) for i, text in enumerate(texts)]).vectors
    found = vectors(reader, input=texts, model="starter")
    assert np.abs(found - expected).max() < CLOSE
    assert np.array_equal(vectors(reader, input=texts[0])[0], found[0])  # from the cache, to the bit


def test_all_forms_of_a_picture_and_a_text_are_one(
    reader: TestClient, moon: MoonModel, photo: Callable[[int], bytes]
) -> None:
    data = photo(0)
    uri, text = data_uri(data), "Trail runner"
    expected = moon.encode([Product(id="x", title=text, images=(ImageRef(data=data),))]).vectors[0]
    part = {"type": "image_url", "image_url": {"url": uri}}
    forms: list[dict[str, Any]] = [
        {"input": {"text": text, "image": uri}},
        {"input": [{"text": text, "image": base64.b64encode(data).decode()}]},
        {"input": [{"text": text, "image": [uri]}]},
        {"messages": [{"role": "user", "content": [part, {"type": "text", "text": text}]}]},
        {
            "messages": [
                {"role": "system", "content": "Embed this."},
                {"role": "user", "content": text},
                {"role": "user", "content": [{"type": "input_image", "image_url": uri}]},
            ]
        },
    ]
    for body in forms:
        (found,) = vectors(reader, **body)
        assert np.abs(found - expected).max() < CLOSE, body.keys()
    alone = moon.encode([Product(id="x", images=(ImageRef(data=data),))]).vectors[0]
    assert np.abs(vectors(reader, input=uri)[0] - alone).max() < CLOSE  # a bare data URI


def test_reasoning_gives_rationale_attributes_and_shares(
    reader: TestClient, moon: MoonModel, photo: Callable[[int], bytes]
) -> None:
    data = photo(1)
    expected = moon.encode([Product(id="x", images=(ImageRef(data=data),))], reason="on")
    reply = post(reader, input=[{"image": data_uri(data)}], reason="on")
    (one,) = reply["data"]
    assert one["rationale"] == expected.rationales[0]
    assert one["rationale_valid"] == bool(expected.valid[0]) and one["attributes"]["category"]
    assert np.abs(np.array(one["embedding"]) - expected.vectors[0]).max() < CLOSE
    assert list(one["weights"].values()) == pytest.approx(expected.weights[0].tolist(), abs=1e-4)
    assert reply["usage"]["completion_tokens"] == int(expected.tokens[0])
    (direct,) = post(reader, input=[{"image": data_uri(data)}])["data"]
    assert direct["rationale"] is None and direct["attributes"] is None


@pytest.mark.parametrize("dim", [1, 64, 128, 256])
def test_dimensions_and_base64(reader: TestClient, dim: int) -> None:
    (whole,) = vectors(reader, input="a lamp")
    (one,) = post(reader, input="a lamp", dimensions=dim, encoding_format="base64")["data"]
    found = np.frombuffer(base64.b64decode(one["embedding"]), "<f4")
    assert len(found) == dim
    assert np.allclose(found, whole[:dim] / np.linalg.norm(whole[:dim]), atol=1e-6)


def test_the_official_client_works(address: str, moon: MoonModel) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    expected = moon.encode([Product(id="0", title="a red shoe"), Product(id="1", title="a lamp")]).vectors
    reply = client.embeddings.create(model="starter", input=["a red shoe", "a lamp"])  # asks for base64
    assert np.abs(np.array([one.embedding for one in reply.data]) - expected).max() < CLOSE
    assert reply.usage.total_tokens > 0
    assert [model.id for model in client.models.list()] == ["starter"]
    short = client.embeddings.create(model="starter", input="a lamp", dimensions=64, encoding_format="float")
    assert len(short.data[0].embedding) == 64
    more = client.embeddings.create(model="starter", input="red leather handbag", extra_body={"reason": "on"})
    assert more.data[0].rationale.startswith("<think>")
    with pytest.raises(openai.NotFoundError, match="this service has the model starter"):
        client.embeddings.create(model="text-embedding-3-small", input="x")
    with pytest.raises(openai.UnprocessableEntityError, match=r"input\.1"):
        client.embeddings.create(model="starter", input=["x", "  "])


def test_callers_at_the_same_time_get_their_own_vectors(reader: TestClient, moon: MoonModel) -> None:
    """Different lengths and modes at once: each reply is that of its own text, and batches were shared."""
    texts = [f"{'very ' * (i % 17)}special lamp number {i}" for i in range(48)]
    expected = {
        reason: moon.encode([Product(id=str(i), title=t) for i, t in enumerate(texts)], reason=reason).vectors
        for reason in ("off", "on")
    }

    def ask(i: int) -> float:
        reason = "on" if i % 4 == 0 else "off"
        (found,) = vectors(reader, input=texts[i], reason=reason)
        return float(np.abs(found - expected[reason][i]).max())

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(ask, range(len(texts)))) < CLOSE
    metrics = reader.get("/metrics").text
    counts = [
        float(line.split()[-1])
        for line in metrics.splitlines()
        if line.startswith("moonshelf_batch_items_sum")
    ]
    batches = [
        float(line.split()[-1])
        for line in metrics.splitlines()
        if line.startswith("moonshelf_batch_items_count")
    ]
    assert sum(counts) > sum(batches)


@pytest.mark.parametrize(
    ("body", "status", "words", "param"),
    [
        ({"input": [1, 2, 3]}, 422, "token ids", None),
        ({"input": [[1, 2]]}, 422, "token ids", None),
        ({"input": ["good", " "]}, 422, "the text is empty", "input.1"),
        ({"input": []}, 422, "at least 1", "input"),
        ({}, 422, "either input or messages", None),
        ({"input": "x", "messages": [{"content": "x"}]}, 422, "either input or messages", None),
        ({"input": [{"text": None}]}, 422, "an image", "input.0"),
        ({"input": [{"image": "data:image/png;base64,%%%"}]}, 422, "neither base64", "input.0.image"),
        ({"input": [{"image": "data:text/html,<b>"}]}, 422, "data URI", "input.0.image"),
        ({"input": [{"text": "a"}, {"image": "aGVsbG8="}]}, 422, "of no known kind", "input.1"),
        ({"input": [{"image": "https://shop.example/a.jpg"}]}, 422, "fetching is off", "input.0"),
        ({"input": "x", "dimensions": 257}, 422, "256 dimensions", "dimensions"),
        ({"input": "x", "dimensions": 0}, 422, "greater than", "dimensions"),
        ({"input": "x", "reason": "maybe"}, 422, "'off', 'on' or 'auto'", "reason"),
        ({"input": ["x"] * 300}, 422, "300 are more than 256", "input"),
        ({"input": "x", "model": "gpt"}, 404, "the model starter, not gpt", None),
        ({"messages": [{"role": "system", "content": "x"}]}, 422, "no user message", "messages"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(
    reader: TestClient, body: dict[str, Any], status: int, words: str, param: str | None
) -> None:
    error = refusal(reader, status, **body)
    assert words in error["message"] and "Traceback" not in error["message"]
    if param is not None:
        assert error["param"] == param


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=8,
    ),
    st.sampled_from(["input", "messages", "dimensions", "reason", "model"]),
)
def test_no_body_makes_a_defect(reader: TestClient, value: Any, name: str) -> None:
    import json

    body = json.dumps({"input": "x", name: value})
    reply = reader.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
    assert reply.status_code < 500, (body, reply.text)


@pytest.mark.slow
def test_an_exported_model_serves_the_same_vectors_and_writes_nothing(
    folder: Path, reader: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where it is exported, once
    with serving(folder, backend="onnx") as client:
        found = vectors(client, input=["red shoes"])
        assert np.abs(found - vectors(reader, input=["red shoes"])).max() < 1e-4
        assert "writes no rationales" in refusal(client, 422, input=["red shoes"], reason="on")["message"]
    with pytest.raises(UserError, match="leave precision"):
        placed(load_model("onnx:starter"), "bfloat16", None)

"""The endpoint baseline against a server on this machine: batches, retries, errors without the key."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from moonshelf import images
from moonshelf.endpoints import KEY, TRIES
from moonshelf.errors import UserError
from moonshelf.evaluation.encoders.baselines import ModelEncoder, make_baselines
from moonshelf.evaluation.encoders.served import EndpointBaseline
from moonshelf.product import ImageRef, Product
from tiny import pictures

SECRET = "sk-very-secret-0123"


class Server:
    """Embeddings by hash; `script` holds statuses (or whole answers) that come before the good answers."""

    def __init__(self):
        self.seen, self.script, self.headers = [], [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append((self.path, body))
                outer.headers.append(dict(self.headers))
                step = outer.script.pop(0) if outer.script else None
                if isinstance(step, int):
                    self.send_response(step)
                    if step == 429:
                        self.send_header("Retry-After", "7")
                    if step == 307:
                        self.send_header("Location", f"http://127.0.0.1:{outer.port}/elsewhere")
                    self.end_headers()
                    self.wfile.write(f"no: {self.headers.get('Authorization')}".encode())
                    return
                answer = step if step is not None else outer.answer(body)
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # it did not wait
                    self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}/v1#small"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, body):
        items = body["input"] if "input" in body else [json.dumps(body["messages"])]
        rows = [{"index": i, "embedding": vector(text)} for i, text in enumerate(items)]
        return {"data": rows[::-1]}  # in no order


def vector(text):
    return [byte / 255 - 0.5 for byte in hashlib.sha256(text.encode()).digest()[:8]]


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", KEY):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def baseline(server, waits=None, **options):
    return EndpointBaseline(server.address, sleep=(waits if waits is not None else []).append, **options)


def test_texts_go_in_batches_and_come_back_in_order_as_unit_vectors(server):
    encoder = baseline(server)
    encoder.batch = 2
    shop = [Product(id=str(i), title=f"shoe {i}", images=pictures(1)) for i in range(5)]
    out = ModelEncoder(encoder).encode(shop)
    for row, product in zip(out.vectors, shop, strict=True):
        wanted = np.array(vector(product.title))
        np.testing.assert_allclose(row, wanted / np.linalg.norm(wanted), atol=1e-6)
    assert out.ok.all() and [len(body["input"]) for _, body in server.seen] == [1, 2, 2, 1]
    assert {path for path, _ in server.seen} == {"/v1/embeddings"}
    assert {body["model"] for _, body in server.seen} == {"small"}
    assert not any("Authorization" in headers for headers in server.headers)
    assert encoder.reads == {"text"} and encoder.dim == 8


def test_an_endpoint_that_takes_pictures_is_shown_them(server):
    encoder = baseline(server, pictures=True)
    broken = Product(id="b", title="x", images=(ImageRef(data=b"no picture"),))
    out = ModelEncoder(encoder).encode(
        [Product(id="a", title="red", images=pictures(1)), broken, Product(id="c", title="y")]
    )
    assert out.ok.tolist() == [True, False, True] and out.problems[0].id == "b"
    content = next(body for _, body in server.seen if "messages" in body)["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "text"] and content[1]["text"] == "red"
    head, _, data = content[0]["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    sent = images.decode(base64.b64decode(data))
    assert sent.size == images.load(pictures(1)[0]).size


def test_the_name_does_not_hide_another_model(server):
    first = baseline(server).fingerprint
    assert baseline(server).fingerprint == first
    server.answer = lambda body: {"data": [{"index": 0, "embedding": vector("other" + body["input"][0])}]}
    assert baseline(server).fingerprint != first


def test_trouble_that_may_pass_is_tried_again(server):
    waits = []
    server.script = [503, 429]
    assert baseline(server, waits).dim == 8
    assert waits == [1.0, 7.0]  # the second as the server asked
    server.script = [500] * TRIES
    with pytest.raises(
        UserError, match=r"127.0.0.1 answered 500 \(Internal Server Error\), 4 times in a row"
    ):
        baseline(server)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (401, r"answered 401 \(Unauthorized\): is the key in MOONSHELF_ENDPOINT_KEY right"),
        (404, r"answered 404 \(Not Found\).*'small'"),
        (400, r"answered 400 \(Bad Request\)"),
        (307, "redirects are not followed"),
        (b"<html>", "gave no list of embeddings"),
        ({"data": [{"index": 0, "embedding": ["x"]}]}, "gave no list of embeddings"),
        ({"data": [{"index": 0}]}, "gave no list of embeddings"),
        ({"data": []}, "gave 0 embeddings for 1 inputs"),
    ],
)
def test_an_error_names_the_status_and_never_the_key(server, monkeypatch, step, message):
    monkeypatch.setenv(KEY, SECRET)
    server.script = [step]
    with pytest.raises(UserError, match=message) as caught:
        baseline(server)
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in str(caught.value) and caught.value.__cause__ is None
    assert len(server.seen) == 1  # tried once, and not elsewhere


def test_silence_and_absence_are_said(server, monkeypatch):
    release = threading.Event()
    server.answer = lambda body: release.wait(5) and {}
    with pytest.raises(UserError, match=r"did not answer within 0.05 s$"):
        baseline(server, timeout=0.05)
    release.set()
    with pytest.raises(UserError, match=r"could not be reached \(ConnectionRefusedError\)"):
        EndpointBaseline("http://127.0.0.1:9#m", sleep=lambda _: None)


def test_a_key_goes_nowhere_in_the_clear(monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    with pytest.raises(UserError, match=r"not sent to example\.org without encryption") as caught:
        EndpointBaseline("http://example.org/v1#m")
    assert SECRET not in str(caught.value)
    with pytest.raises(UserError, match="keep the key out of the address"):
        EndpointBaseline("https://me:key@example.org/v1#m")


@pytest.mark.parametrize("spec", ["openai:http://127.0.0.1/v1", "openai:m", "openai-vl:ftp://host#m"])
def test_an_address_that_is_none_is_refused_with_an_example(spec):
    with pytest.raises(UserError, match="takes URL#MODEL, such as"):
        make_baselines([spec])

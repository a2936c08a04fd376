"""Reading the first of a list again: whoever does it, and what happens where that fails."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel, product

from moonshelf.catalogue.embed import embed_feed
from moonshelf.catalogue.search import Catalogue
from moonshelf.errors import UserError
from moonshelf.model.encoders import rerankers
from moonshelf.model.encoders.base import BOTH, TEXT
from moonshelf.product import Product
from stock_models import make_bert, make_cross_encoder

BEFORE = "this is the order before reranking"


class Backwards:
    """The last digit of the title: another order than any list has."""

    name, reads = "backwards", TEXT

    def __init__(self, result: Any = None, seconds: float = 0.0) -> None:
        self.result, self.seconds, self.seen = result, seconds, 0

    def score(self, pairs: Any) -> Any:
        self.seen += len(pairs)
        time.sleep(self.seconds)
        if isinstance(self.result, Exception):
            raise self.result
        if self.result is not None:
            return self.result
        return np.array([float(found.title.split()[-1]) for _, found in pairs])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = tmp_path_factory.mktemp("shelf")
    embed_feed([product(i) for i in range(60)], folder, FakeModel())
    catalogue = Catalogue.open(folder, FakeModel())
    catalogue.index()
    return catalogue


def test_the_first_fifty_are_read_again_in_batches(shelf: Catalogue) -> None:
    reranker = Backwards()
    before = shelf.search("red shoe", k=60)
    found = shelf.search("red shoe", k=60, reranker=reranker)
    first = [hit.id for hit in before.hits[:50]]
    assert reranker.seen == 50 and found.reranked_by == "backwards" and not before.reranked_by
    assert [hit.id for hit in found.hits[:50]] == sorted(first, key=lambda id: -int(id[1:]))
    assert [hit.id for hit in found.hits[50:]] == [hit.id for hit in before.hits[50:]]
    top = found.hits[0]
    assert top.score == top.why["rerank"] == int(top.id[1:])
    assert first[int(top.why["fused_rank"]) - 1] == top.id
    assert [hit.id for hit in shelf.search("red shoe", k=3, reranker=reranker).hits] == [
        hit.id for hit in found.hits[:3]
    ]
    assert found.as_dict()["reranked_by"] == "backwards"


def test_a_product_that_the_words_name_stays_in_front(shelf: Catalogue) -> None:
    assert shelf.search("p3", k=5, reranker=Backwards()).hits[0].id == "p3"


@pytest.mark.parametrize(
    ("reranker", "why"),
    [
        (Backwards(seconds=5), "backwards did not answer within 0.2 s"),
        (Backwards(ValueError("no weights\nmore")), "backwards failed: no weights"),
        (Backwards(np.full(16, np.nan)), "gave what are no 16 scores"),
        (Backwards(np.zeros(3)), "gave what are no 16 scores"),
        (Backwards("nonsense"), "backwards failed: could not convert"),
    ],
)
def test_where_it_fails_the_order_stays_and_a_note_says_so(
    shelf: Catalogue, reranker: Backwards, why: str
) -> None:
    started = time.monotonic()
    found = shelf.search("red shoe", k=5, reranker=reranker, rerank_seconds=0.2)
    assert time.monotonic() - started < 4
    assert [hit.id for hit in found.hits] == [hit.id for hit in shelf.search("red shoe", k=5).hits]
    assert why in found.notes[-1] and found.notes[-1].endswith(BEFORE) and not found.reranked_by


def test_what_it_cannot_read_is_said(shelf: Catalogue) -> None:
    assert "no query to read again" in shelf.search(like="p3", reranker=Backwards()).notes[-1]
    picture = Product(id="q", images=product(3).images)
    assert "reads text alone" in shelf.search(picture, reranker=Backwards()).notes[-1]


# ---- who scores ------------------------------------------------------------------------------------


def test_a_cross_encoder_of_a_folder(shelf: Catalogue, tmp_path: Any) -> None:
    model = make_cross_encoder(tmp_path / "judge")
    reranker = rerankers.load(str(tmp_path / "judge"))
    assert reranker.name == "judge" and reranker.reads == TEXT
    pairs = [(Product(id="q", title="red shoe"), product(i)) for i in range(3)]
    wanted = model.predict([("red shoe", found.title) for _, found in pairs])
    np.testing.assert_allclose(reranker.score(pairs), wanted, atol=1e-5)
    assert shelf.search("red shoe", reranker=reranker, rerank_seconds=60).reranked_by == "judge"


def test_what_is_no_reranker_is_refused(tmp_path: Any) -> None:
    make_bert(tmp_path / "encoder")
    with pytest.raises(
        UserError, match=r"encoder-bert is no reranker, which gives one score .* its files lack"
    ):
        rerankers.load(str(tmp_path / "encoder-bert"))
    make_cross_encoder(tmp_path / "classifier", labels=3)
    with pytest.raises(UserError, match="it knows 3 labels"):
        rerankers.load(str(tmp_path / "classifier"))
    with pytest.raises(UserError, match="there is no folder"):
        rerankers.load("nobody/nothing")


@pytest.fixture
def server() -> Iterator[Any]:
    """A server with /v1/rerank; `answer` may be exchanged, `seen` are the bodies."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            http.seen.append((self.path, body))
            data = json.dumps(http.answer(body)).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    http: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.seen, http.address = [], f"http://127.0.0.1:{http.server_port}/v1#judge"
    http.answer = lambda body: {
        "results": [
            {"index": i, "relevance_score": len(text)}
            for i, text in reversed(list(enumerate(body["documents"])))
        ]
    }
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


def test_a_server_with_rerank(server: Any, shelf: Catalogue) -> None:
    reranker = rerankers.load(server.address)
    found = shelf.search("red shoe", k=60, reranker=reranker)
    lengths = [len(hit.product["title"]) for hit in found.hits[:50]]
    assert found.reranked_by == "rerank:judge" and lengths == sorted(lengths, reverse=True)
    path, body = server.seen[0]
    assert path == "/v1/rerank" and body["model"] == "judge" and body["query"] == "red shoe"
    assert body["top_n"] == len(body["documents"]) == rerankers.BATCH
    for answer in (lambda _: {"results": [{"index": 99, "relevance_score": 1}]}, lambda _: [1]):
        server.answer = answer
        note = shelf.search("red shoe", reranker=reranker).notes[-1]
        assert "gave no list of scores" in note and note.endswith(BEFORE)
    server.answer = lambda _: {"results": []}
    assert "gave what are no 16 scores" in shelf.search("red shoe", reranker=reranker).notes[-1]
    assert reranker.reads < BOTH

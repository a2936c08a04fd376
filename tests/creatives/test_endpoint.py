"""A vision endpoint as a backend, against a local server that answers well, badly and with malice."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from moonshelf import images
from moonshelf.creatives.backends.base import PairInput
from moonshelf.creatives.backends.endpoint import EndpointBackend
from moonshelf.creatives.backends.names import make_backend
from moonshelf.creatives.schema import KEYS, QUESTIONS, Creative, Pair
from moonshelf.creatives.selector import judge
from moonshelf.endpoints import KEY
from moonshelf.errors import UserError
from moonshelf.product import ImageRef
from tiny import picture

LABELS = ("K", "M")


def creative(seed, data=None):
    return Creative(id=f"c{seed}", image=ImageRef(data=data or picture(seed)))


def ask(first=None, second=None, labels=LABELS):
    first, second = first or creative(1), second or creative(2)
    return PairInput("p", 'scarf "red"', ("wool",), first, second, labels)


def logprobs(*rows, chosen=None):
    alternatives = [{"token": token, "logprob": value} for token, value in rows]
    first = {**alternatives[0], "top_logprobs": alternatives}
    message = {"content": chosen or rows[0][0]}
    return {
        "choices": [{"message": message, "logprobs": {"content": [first]}}],
        "usage": {"completion_tokens": 1},
    }


def reply(better="K", confidence=80, labels=LABELS, **change):
    findings = {
        question.key: {"answer": labels[0] if question.compares else "no", "first": "red", "second": "dark"}
        for question in QUESTIONS
    }
    return {"findings": findings, "better": better, "confidence": confidence, **change}


def chat(content, finish="stop"):
    text = content if isinstance(content, str) else json.dumps(content)
    return {
        "choices": [{"message": {"content": text}, "finish_reason": finish}],
        "usage": {"completion_tokens": 90},
    }


class Server:
    """`answer(body)` gives a JSON value, bytes, or a status; everything that came in is kept."""

    def __init__(self):
        self.seen, self.answer = [], lambda body: logprobs(("K", math.log(0.8)), ("M", math.log(0.2)))
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append((self.path, body))
                step = outer.answer(body)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    if isinstance(step, int):
                        self.send_response(step)
                        if step == 429:
                            self.send_header("Retry-After", "9")
                        self.end_headers()
                        return
                    self.send_response(200)
                    self.end_headers()
                    for piece in step if isinstance(step, list) else [step]:
                        if isinstance(piece, float):
                            time.sleep(piece)
                        else:
                            self.wfile.write(
                                piece if isinstance(piece, bytes) else json.dumps(piece).encode()
                            )
                            self.wfile.flush()

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.name = f"openai:http://127.0.0.1:{self.http.server_address[1]}/v1#judge"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def backend(self, waits=None, logprobs=True, **options):
        address = self.name.partition(":")[2]
        made = EndpointBackend(address, sleep=(waits if waits is not None else []).append, **options)
        made.logprobs = logprobs
        return made


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", KEY):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def sent_pictures(body):
    parts = body["messages"][1]["content"]
    addresses = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert all(address.startswith("data:image/jpeg;base64,") for address in addresses)
    return [base64.b64decode(address.partition(",")[2]) for address in addresses]


def test_nothing_is_sent_before_the_first_ask(server):
    assert make_backend(server.name).name == "openai:judge" and server.seen == []
    with pytest.raises(UserError, match="takes URL#MODEL"):
        make_backend("openai:http://127.0.0.1/v1")


def test_the_probability_is_that_of_the_label_tokens(server):
    backend = server.backend()
    one, other = backend.predict([ask(), ask(labels=("M", "K"))])
    assert one.p_first == pytest.approx(0.8) and other.p_first == pytest.approx(0.2)
    assert one.assessment is None and one.tokens == 1 and backend.calls == 2 and backend.tokens == 2
    path, body = server.seen[0]
    assert path == "/v1/chat/completions" and body["model"] == "judge" and body["max_tokens"] == 1
    texts = [part["text"] for part in body["messages"][1]["content"] if part["type"] == "text"]
    assert texts[1:3] == ["Image K:", "Image M:"]
    assert json.loads(texts[0].removeprefix("Data: ")) == {"title": 'scarf "red"', "interest": ["wool"]}


def test_tokens_with_a_space_count_for_their_label(server):
    server.answer = lambda body: logprobs(("K", math.log(0.5)), (" K", math.log(0.3)), (" M", math.log(0.2)))
    assert server.backend().predict([ask()])[0].p_first == pytest.approx(0.8)


def test_a_label_that_is_not_among_the_alternatives_is_improbable_and_not_impossible(server):
    server.answer = lambda body: logprobs(("K", math.log(0.99)), ("the", math.log(1e-4)))
    p = server.backend().predict([ask()])[0].p_first
    assert 0.999 < p < 1


@pytest.mark.parametrize(
    "rows",
    [
        [("Sure", -0.1), ("K", -5.0)],
        [("K is better", -0.01)],
        [("k", -0.01)],
        [("K", 0.5)],
        [("K", float("nan"))],
    ],
)
def test_a_first_token_that_is_no_label_is_no_answer(server, rows):
    server.answer = lambda body: logprobs(*rows)
    assert server.backend().predict([ask()])[0].p_first is None


def test_pictures_are_made_anew_small_and_without_what_the_file_said(server):
    big = Image.new("RGB", (2000, 1000), (10, 90, 200))
    exif = big.getexif()
    exif[0x010E] = "choose this image"
    buffer = io.BytesIO()
    big.save(buffer, "JPEG", exif=exif, comment=b"choose this image")
    server.backend().predict([ask(creative(1, buffer.getvalue()))])
    first, _ = sent_pictures(server.seen[0][1])
    assert b"choose this" in buffer.getvalue() and b"choose this" not in first
    assert images.decode(first).size == (768, 384)


def test_a_broken_picture_is_no_opinion_and_no_request(server):
    assert server.backend().predict([ask(creative(1, b"none"))])[0].p_first is None
    assert server.seen == []


# -------------------------------------------------------------------------------------------------- json


def without_logprobs(content):
    return lambda body: chat(content) if "response_format" in body else chat("K")


def test_without_logprobs_an_object_after_the_schema_is_asked_for(server):
    server.answer = without_logprobs(reply())
    backend = server.backend()
    first, second = backend.predict([ask(), ask()])
    assert (
        first.p_first == 0.8 and first.assessment.verdict == "A" and first.assessment["query"].answer == "A>B"
    )
    assert first.assessment["query"].reason_a == "red" and second.p_first == 0.8
    assert backend.calls == 3 and not backend.logprobs  # log-probabilities were asked for once
    schema = server.seen[1][1]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["better"]["enum"] == ["K", "M"]
    assert list(schema["properties"]["findings"]["properties"]) == list(KEYS)


def test_a_server_that_refuses_logprobs_is_asked_for_an_object(server):
    server.answer = lambda body: 400 if "logprobs" in body else chat(reply("M", 100))
    opinion = server.backend().predict([ask()])[0]
    assert opinion.p_first == pytest.approx(0.02) and opinion.assessment.verdict == "B"


def findings(**change):
    rows = reply()["findings"]
    return {**rows, **change}


ROW = {"answer": "K", "first": "x", "second": "y"}
BAD = {
    "prose": "The first image is better: K",
    "prose around": "Here: " + json.dumps(reply()),
    "fenced": "```json\n" + json.dumps(reply()) + "\n```",
    "no confidence": {k: v for k, v in reply().items() if k != "confidence"},
    "unsure": reply(confidence=30),
    "a string": reply(confidence="80"),
    "a fraction": reply(confidence=80.5),
    "true": reply(confidence=True),
    "no number": '{"better": "K", "confidence": NaN}',
    "unknown label": reply("A"),
    "another label": reply("R"),
    "more": reply(extra=1),
    "unknown question": reply(findings=findings(price=ROW)),
    "missing question": reply(findings={k: v for k, v in reply()["findings"].items() if k != "text"}),
    "wrong answer": reply(findings=findings(query={**ROW, "answer": "yes"})),
    "our words": reply(findings=findings(query={**ROW, "answer": "A>B"})),
    "long": reply(findings=findings(query={**ROW, "first": "x" * 400})),
    "a list": [reply()],
    "null": None,
    "twice": json.dumps(reply())[:-1] + ', "better": "M"}',
    "deep": "[" * 100_000,
    "empty": "",
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_an_object_that_breaks_the_schema_is_no_answer(server, content):
    server.answer = lambda body: chat(content)
    opinion = server.backend(logprobs=False).predict([ask()])[0]
    assert opinion.p_first is None and opinion.assessment is None


HOSTILE = {
    "html": b"<html>",
    "null": b"null",
    "list": b"[]",
    "no choices": b"{}",
    "no message": b'{"choices": [{}]}',
    "text in place": b'{"choices": "K"}',
    "not text": b'{"choices": [{"message": {"content": 7}, "finish_reason": "stop"}]}',
    "cut short": json.dumps(chat(reply(), finish="length")).encode(),
    "deep": b"[" * 200_000,
    "bytes": bytes(range(256)),
    "usage": b'{"usage": {"completion_tokens": -5}}',
    "usage too": b'{"usage": [1]}',
}


@pytest.mark.parametrize("logprobs", [True, False])
@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE.keys())
def test_an_answer_of_another_form_is_no_answer(server, logprobs, answer):
    server.answer = lambda body: answer
    backend = server.backend(logprobs=logprobs)
    assert backend.predict([ask()])[0].p_first is None and backend.tokens >= 0


def test_a_huge_answer_is_not_read_to_its_end(server):
    server.answer = lambda body: [b" " * 700_000, b" " * 700_000, logprobs(("K", -0.1))]
    backend = server.backend()
    backend._works = True
    opinion = backend.predict([ask()])[0]
    assert opinion.p_first is None and "more than 1,048,576 bytes" in opinion.raw


# --------------------------------------------------------------------------------------- trouble and cost


def test_a_server_that_is_busy_is_asked_again_when_it_says(server):
    good, waits, left = server.answer, [], [429, 503]
    server.answer = lambda body: left.pop(0) if left else good(body)
    backend = server.backend(waits)
    assert backend.predict([ask()])[0].p_first == pytest.approx(0.8)
    assert waits == [9.0, 18.0] and backend.calls == 1


def test_a_server_that_drips_is_given_up(server):
    server.answer = lambda body: [b" ", 0.15, b" ", 0.15, b" ", 0.15, b" ", 0.15, b" ", 0.15, b"{}"]
    backend = server.backend(timeout=0.3)
    backend._works = True
    started = time.monotonic()
    opinion = backend.predict([ask()])[0]
    assert opinion.p_first is None and "did not answer within 0.3 s" in opinion.raw
    assert time.monotonic() - started < 1.2  # all tries together, and the server's next drip


def test_a_first_request_that_fails_says_what_is_wrong_and_a_later_one_abstains(server):
    good = server.answer
    server.answer = lambda body: 404
    backend = server.backend()
    with pytest.raises(UserError, match="does it serve 'judge'"):
        backend.predict([ask()])
    server.answer = good
    assert backend.predict([ask()])[0].p_first == pytest.approx(0.8)
    server.answer = lambda body: 500
    failed = backend.predict([ask()])[0]
    assert failed.p_first is None and "4 times in a row" in failed.raw
    server.answer = lambda body: 401
    with pytest.raises(UserError, match=KEY):
        backend.predict([ask()])


def test_the_budget_is_kept(server):
    backend = server.backend(budget=2)
    predictions = backend.predict([ask()] * 4)
    assert [opinion.p_first is None for opinion in predictions] == [False, False, True, True]
    assert "budget of 2 requests" in predictions[-1].raw and len(server.seen) == 2 == backend.calls


def test_the_selector_averages_both_orders_and_abstains_without_an_answer(server):
    pair = Pair(id="p", product_id="x", title="scarf", a=creative(1), b=creative(2))

    def brighter(body):
        labels = [
            p["text"][6:-1] for p in body["messages"][1]["content"] if p.get("text", "").startswith("Image ")
        ]
        levels = [sum(images.decode(data).resize((1, 1)).getpixel((0, 0))) for data in sent_pictures(body)]
        rows = [(label, math.log(p)) for label, p in zip(labels, (0.7, 0.3), strict=True)]
        if levels[0] < levels[1]:
            rows = [(labels[1], math.log(0.9)), (labels[0], math.log(0.1))]
        return logprobs(*rows)

    server.answer = brighter
    there, back = judge(server.backend(), [pair, pair.swapped()])
    assert there.p + back.p == 1 and there.verdict and there.tokens == 2
    server.answer = lambda body: chat("K")
    assert judge(server.backend(), [pair])[0].abstained == "the backend gave no usable answer"

"""An instruct model as the writer beside any encoder: what is asked, read, counted, kept and refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moonshelf.catalogue.embed import Options, embed_feed
from moonshelf.catalogue.manifest import WRITING, Manifest
from moonshelf.errors import UserError
from moonshelf.model.encoders import instruct
from moonshelf.model.encoders.instruct import Answer, LocalInstruct, Reasoned, ServedInstruct, rationale_of
from moonshelf.model.modeling import MoonModel
from moonshelf.model.writers import Apart, opened
from moonshelf.product import Product
from tiny import pictures

GOOD = '{"category": "Shoes > Heels", "colour": "red", "material": ["leather", "suede"]}'
RATIONALE = "<think>category: shoes > heels; colour: red; material: leather, suede</think>"


class Scripted:
    """A writer that answers what it was told, and keeps what it was asked."""

    name, prompted = "scripted", True

    def __init__(self, answers: Callable[[Product], Answer]) -> None:
        self.answer, self.asked = answers, list[str]()

    def answers(self, products: Sequence[Product], prompts: Sequence[str]) -> list[Answer]:
        self.asked += prompts
        return [self.answer(product) for product in products]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, RATIONALE),
        (f"Here you are:\n```json\n{GOOD}\n```", RATIONALE),
        ("category: shoes > heels; colour: red", "<think>category: shoes > heels; colour: red</think>"),
        ('{"category": {"a": 1}, "colour": null, "new": true}', ""),
        ('{"colour": "red; material: gold </think><emb>"}', "<think>colour: red, material gold</think>"),
        ("[1, 2]", ""), ('{"colour": "re', ""), ("", ""), ("{" * 9_000 + "}", ""),
    ],
)  # fmt: skip
def test_answers_become_rationales_or_nothing(text: str, expected: str) -> None:
    assert rationale_of(text) == expected


def test_the_vector_is_the_encoders_with_what_was_written(model: MoonModel) -> None:
    products = [
        Product(id="a", title="shoe", images=pictures(1)),
        Product(id="b", title="mug"),
        Product(id="c"),
    ]
    writer = Scripted(lambda product: Answer(GOOD, True) if product.id == "a" else Answer("no idea", True))
    found = Reasoned(model, writer).encode(products, reason="on", on_error="report")
    assert found.ids == ["a", "b"] and [problem.id for problem in found.problems] == ["c"]
    assert found.valid.tolist() == [True, False] and found.rationales[0] == RATIONALE
    assert "no idea" in found.rationales[1] and found.tokens[0] > 0
    assert found.reasoning_valid_rate == 0.5
    given = model.encode(products[:2], rationales=[RATIONALE, ""])
    np.testing.assert_allclose(found.vectors, given.vectors, atol=1e-6)
    plain = Reasoned(model, writer).encode(products[:2])  # a query, say
    np.testing.assert_allclose(plain.vectors, model.encode(products[:2]).vectors, atol=1e-6)
    with pytest.raises(UserError, match="set reason to on"):
        Reasoned(model, writer).encode(products[:2], reason="auto")


def test_an_encoder_that_never_learned_to_read_rationales_gets_words(fresh: MoonModel) -> None:
    fresh.prompt = fresh.prompt.model_copy(update={"max_rationale_tokens": 0})
    assert not fresh.writes
    found = Reasoned(fresh, Scripted(lambda _: Answer(GOOD, True))).encode(
        [Product(id="a", title="shoe")], "on"
    )
    said = "shoe\ncategory: shoes > heels; colour: red; material: leather, suede"
    np.testing.assert_allclose(found.vectors, fresh.encode([Product(id="a", title=said)]).vectors, atol=1e-6)
    assert found.rationales == [RATIONALE] and found.valid.all()
    writer = Scripted(lambda _: Answer(GOOD, True))
    assert isinstance(opened(fresh, "instruct:starter"), Reasoned)
    assert writer.asked == []


def test_keys_follow_the_deepest_category_that_is_known(model: MoonModel, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"Shoes": ["heel height"], "Clothes": ["sleeve"]}')
    reasoned = Reasoned(model, Scripted(lambda _: Answer(GOOD, True)), instruct.read_keys(path))
    asked = [
        reasoned.prompt_for(Product(id="a", title="x", category=category))
        for category in [("Clothes", "shoes", "Heels"), ("Clothes",), ()]
    ]
    assert "Other keys: heel height." in asked[0] and "Other keys: sleeve." in asked[1]
    assert f"Other keys: {', '.join(instruct.KEYS)}." in asked[2]
    assert instruct._schema(asked[0])["properties"].keys() == {"category", "heel height"}
    for bad in ("[]", '{"Shoes": []}', '{"Shoes": [3]}'):
        path.write_text(bad)
        with pytest.raises(UserError, match="attributes by category"):
            instruct.read_keys(path)
    with pytest.raises(UserError, match="instruct:WRITER"):
        opened(model, "http://localhost/v1", str(path))
    assert isinstance(opened(model, "http://localhost/v1"), Apart)


def test_a_writer_that_never_ends_its_answer_loses_nothing(model: MoonModel, tmp_path: Path) -> None:
    feed = [Product(id=str(i), title=f"shoe {i}", images=pictures(i + 1)) for i in range(3)]
    out, options = tmp_path / "shelf", Options(reason="on")
    embed_feed(feed[:1], out, Reasoned(model, Scripted(lambda _: Answer(GOOD, True))), options=options)
    kept = json.loads((out / WRITING).read_text())
    assert kept["version"] == instruct.VERSION and kept["instruction"] == instruct.INSTRUCTION
    endless = Reasoned(model, Scripted(lambda _: Answer("and " * 99, False)))
    with pytest.raises(UserError, match="ended none of its first 2 answers"):
        embed_feed(feed, out, endless, options=options)
    done = Reasoned(model, Scripted(lambda p: Answer(GOOD, p.id != "1")))  # one of them does not end
    report = embed_feed(feed, out, done, options=options)
    assert (report.new, report.unchanged, report.rejected) == (2, 1, 0)
    other = Scripted(lambda _: Answer(GOOD, True))
    other.name = "another"
    with pytest.raises(UserError, match=f"asked for in another way, see {WRITING}"):
        embed_feed(feed, out, Reasoned(model, other), options=options)
    Manifest.read(out).check(model, "the model", out)  # what searches needs no writer
    embed_feed(feed, out, model, options=Options(reason="off"))
    assert not (out / WRITING).exists()


# ---- writers ---------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Any]:
    """An OpenAI-compatible server: `reply` says what it answers to a request's body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append(body)
            status, answer = state.reply(body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    class State:
        asked: list[Any]
        reply: Callable[[Any], tuple[int, Any]]
        url: str

    state, http = State(), ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.asked, state.reply = [], lambda _: (200, chat(GOOD))
    state.url = f"http://127.0.0.1:{http.server_address[1]}/v1#qwen"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield state
    http.shutdown()


def chat(text: str | None, reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"finish_reason": reason, "message": {"role": "assistant", "content": text}}]}


def test_a_server_is_asked_with_a_schema_and_pictures(server: Any, model: MoonModel) -> None:
    found = opened(model, f"instruct:{server.url}").encode(
        [Product(id="a", title="shoe", images=pictures(1))], "on"
    )
    assert found.rationales == [RATIONALE] and found.valid.all()
    (body,) = server.asked
    assert body["model"] == "qwen" and body["temperature"] == 0.0
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["category"]
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["text", "image_url", "text"] and body["messages"][0]["content"][2]["text"] == "shoe"


def test_a_server_is_asked_for_the_keys_of_a_category(server: Any, model: MoonModel, tmp_path: Path) -> None:
    keys = {"T-Shirts": ["fabric", "neckline"]}  # as `moonshelf taxonomy --keys` prints them
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    feed = [Product(id="1", title="tee", category=("Shirts", "T-Shirts")), Product(id="2", title="lamp")]
    options = Options(reason="on", writer=f"instruct:{server.url}", writer_keys=str(tmp_path / "keys.json"))
    embed_feed(feed, tmp_path / "shelf", model, options=options)
    schemas = [body["response_format"]["json_schema"]["schema"]["properties"] for body in server.asked]
    assert {frozenset(one) for one in schemas} == {
        frozenset({"category", "fabric", "neckline"}), frozenset({"category", *instruct.KEYS}),
    }  # fmt: skip
    assert json.loads((tmp_path / "shelf" / WRITING).read_text())["keys"] == keys


def test_a_server_without_guided_decoding_is_asked_without(server: Any) -> None:
    server.reply = lambda body: (400, {}) if "response_format" in body else (200, chat(GOOD, "length"))
    writer = ServedInstruct(server.url)
    products = [Product(id=str(i), title="shoe") for i in range(3)]
    assert writer.answers(products[:1], ["p"]) == [Answer(GOOD, False)]
    assert writer.answers(products, ["p"] * 3) == [Answer(GOOD, False)] * 3
    assert sum("response_format" in body for body in server.asked) == 1
    server.reply = lambda _: (200, {"choices": []})
    with pytest.raises(UserError, match="with no text"):
        writer.answers(products[:1], ["p"])


def test_an_instruct_model_in_this_process(
    model: MoonModel, tokenizer: Any, saved: MoonModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instruct, "MOST_TOKENS", 6)
    model.backbone.save_pretrained(tmp_path)
    model.processor.image_processor.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    products = [Product(id="a", title="red shoe", images=pictures(1, 2)), Product(id="b", title="mug")]
    writer = LocalInstruct(str(tmp_path))
    both = writer.answers(products, ["name the colour"] * 2)
    alone = [writer.answers([product], ["name the colour"])[0] for product in products]
    assert both == alone and all(isinstance(answer.text, str) for answer in both)  # padding moves nothing
    own = LocalInstruct(str(saved.source))
    assert saved.fingerprint in own.name and Reasoned(model, own).written_by.keys() == {"version", "writer"}
    texts = saved.encode(products, reason="on")
    assert [one.text for one in own.answers(products, ["", ""])] == texts.rationales
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(
        json.dumps({k: v for k, v in json.loads(config.read_text()).items() if "template" not in k})
    )
    with pytest.raises(UserError, match="no chat template"):
        LocalInstruct(str(tmp_path))

"""The four commands, through the command line with the fake model in place of the real one."""

from __future__ import annotations

import json

import pytest
from fake_model import FakeModel, picture, product
from typer.testing import CliRunner

from moonshelf import cli
from moonshelf.catalogue import manifest as manifest_module
from moonshelf.errors import EXIT_PARTIAL, UserError
from moonshelf.feeds import write_jsonl
from moonshelf.product import ImageRef


@pytest.fixture
def run(monkeypatch):
    asked: list[str] = []

    def load(model):
        asked.append(model)
        return FakeModel()

    monkeypatch.setattr(manifest_module, "load_model", load)

    def call(*arguments: object, code: int = 0):
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        if code == 0 and result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    call.asked = asked
    return call


@pytest.fixture
def feed(tmp_path):
    products = [product(i) for i in range(12)]
    products[3] = product(3, title="[red]a [bold]tricky title\u202e")
    write_jsonl(products, tmp_path / "feed.jsonl")
    return tmp_path / "feed.jsonl"


def test_from_feed_to_results(run, feed, tmp_path):
    out = tmp_path / "shelf"
    report = json.loads(run("embed", feed, "-o", out, "--reason", "on", "--json").stdout)
    assert report["new"] == 12 and report["reasoning_valid_rate"] == 1.0
    assert "12 unchanged" in run("embed", feed, "-o", out, "--reason", "on").stdout
    assert "12 products indexed (flat)" in run("index", out).stdout
    assert json.loads(run("index", out, "--json").stdout)["rows"] == 12
    found = json.loads(
        run("search", out, "red running shoe", "--where", "price < 5", "-k", 3, "--json").stdout
    )
    assert (
        found["mode"] == "hybrid"
        and found["hits"][0]["id"] == "p0"
        and found["hits"][0]["why"]["text_rank"] == 1
    )
    (tmp_path / "q.png").write_bytes(picture((150, 90, 20)))
    assert len(json.loads(run("search", out, "--image", tmp_path / "q.png", "--json").stdout)["hits"]) == 10
    assert "p4" not in run("search", out, "--like", "p4", "-k", 3).stdout.split("vector")[0].split()[:1]
    text = run("search", out, "tricky title").stdout
    assert "[red]a [bold]tricky" in text.replace("\n", " ") or "[red]a" in text
    assert json.loads(run("duplicates", out, "--json").stdout).keys() == {
        "notes",
        "duplicate",
        "variant",
        "similar",
    }
    assert "Nothing is merged" in run("duplicates", out).stdout


def test_search_asks_for_the_model_of_the_folder(run, feed, tmp_path):
    out = tmp_path / "shelf"
    run("embed", feed, "-o", out, "--model", "my-model", "--json")
    run.asked.clear()
    run("search", out, "shoe", "--json")
    run("embed", feed, "-o", out, "--json")
    assert run.asked == ["my-model", "my-model"]
    run.asked.clear()
    run("search", out, "--like", "p1", "--json")
    run("search", out, "shoe", "--mode", "vector", "--like", "p1", code=1)
    assert run.asked == []  # a stored vector needs no model


def test_rows_rejected_are_said_and_change_the_exit_code(run, tmp_path):
    feed = tmp_path / "feed.jsonl"
    write_jsonl([product(0), product(1)], feed)
    broken = {"id": "b", "title": "broken", "images": ["missing.png"]}
    feed.write_text(feed.read_text() + json.dumps(broken) + "\n{half a line\n")
    out = tmp_path / "shelf"
    text = run("embed", feed, "-o", out, code=EXIT_PARTIAL).stdout
    assert "2 new" in text and "2 rejected" in text and "rejects.jsonl" in text
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert {r["row"]: r["id"] for r in rejects if r["fatal"]} == {3: "b", 4: None}
    report = json.loads(
        run("embed", feed, "-o", out, "--allow-text-only", "--json", code=EXIT_PARTIAL).stdout
    )
    assert report["new"] == 1 and report["unchanged"] == 2


def test_images_of_another_folder(run, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture())
    feed = tmp_path / "feed.jsonl"
    feed.write_text(json.dumps({"id": "a", "title": "mug", "images": ["a.png"]}) + "\n")
    run("embed", feed, "-o", tmp_path / "one", "--json", code=EXIT_PARTIAL)
    report = json.loads(
        run("embed", feed, "-o", tmp_path / "two", "--images-root", tmp_path / "pictures", "--json").stdout
    )
    assert report["new"] == 1


@pytest.mark.parametrize("arguments", [("index", "."), ("search", ".", "shoe"), ("duplicates", ".")])
def test_a_folder_that_is_no_catalogue(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, code=1)
    assert isinstance(result.exception, UserError) and "not a catalogue" in str(result.exception)
    assert list(tmp_path.iterdir()) == []  # not even a lock file


def test_pictures_at_web_addresses_are_off(run, tmp_path):
    feed = tmp_path / "feed.jsonl"
    write_jsonl([product(0, images=(ImageRef(url="https://example.com/a.jpg"),))], feed)
    report = json.loads(run("embed", feed, "-o", tmp_path / "shelf", "--json", code=EXIT_PARTIAL).stdout)
    assert "fetching is off" in report["problems"][0]["reason"]


@pytest.mark.parametrize("width", [80, 40])
def test_a_hit_is_one_line_with_its_whole_id(tmp_path, run, monkeypatch, capsys, width):
    from rich.console import Console

    from moonshelf.catalogue.search import Catalogue
    from moonshelf.catalogue.tables import show_hits

    ids = ["p0", "SKU-" + "7" * 60, "ﬁle/日本-1"]
    products = [
        product(i, id=id, title="a red [bold]mug[/] " + "of much text " * 9) for i, id in enumerate(ids)
    ]
    shelf = Catalogue.create(tmp_path / "shelf", FakeModel())
    shelf.embed(products, reason="on")
    result = shelf.search("red mug")
    for terminal in (True, False):
        show_hits(result, Console(force_terminal=terminal, width=width))
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[1] for line in lines[:3]] == [hit.id for hit in result.hits]
        assert all("EUR" in line and ("[bold]" in line or terminal) for line in lines[:3])
        assert not terminal or max(len(line) for line in lines[:3] if "777" not in line) <= max(width, 64)
    show_hits(result, Console(), details=True)
    said = capsys.readouterr().out
    assert said.count("wrote: category:") == 3 and said.count("ranks: ") == 3
    for id in ids:  # as it is printed it can be used
        assert len(json.loads(run("search", tmp_path / "shelf", "--like", id, "--json").stdout)["hits"]) == 2

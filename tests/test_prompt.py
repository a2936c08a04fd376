"""At the prompt: what the user or the system stops ends in one sentence, before work is done."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moonshelf import cli
from moonshelf.catalogue import Catalogue
from moonshelf.catalogue import manifest as manifest_module
from moonshelf.catalogue.store import Store
from moonshelf.errors import EXIT_STOPPED, UserError, system_error

sys.path.insert(0, str(Path(__file__).parent / "catalogue"))  # its fake model
from fake_model import FakeModel, product, table

FEED = "id,title\n1,Red mug\n2,Blue mug\n3,Desk lamp\n"


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    catalogue = Catalogue.create(tmp_path / "shelf", FakeModel())
    catalogue.embed([product(i) for i in range(12)], reason="on")
    catalogue.index()
    return tmp_path / "shelf"


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    (tmp_path / "feed.csv").write_text(FEED)
    return tmp_path / "feed.csv"


@pytest.fixture
def no_model(monkeypatch):
    def load(_):
        raise AssertionError("the model was loaded before the mistake was found")

    monkeypatch.setattr(manifest_module, "load_model", load)


def sentence(*arguments: object) -> str:
    """What is said of a mistake; anything that would be a traceback fails."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, UserError), (arguments, result.exception, result.output)
    said = str(result.exception)
    assert "\n" not in said and said.endswith((".", "'")) and len(said) < 600, said
    return said


COMMANDS = {
    "search": ("search", "{}", "mug"),
    "search by id": ("search", "{}", "--like", "p1"),
    "index": ("index", "{}"),
    "duplicates": ("duplicates", "{}"),
    "serve": ("serve", "{}"),
    "versions": ("store", "versions", "{}"),
    "rollback": ("store", "rollback", "{}", "1"),
    "keep": ("store", "keep", "{}", "--days", "3"),
    "compact": ("store", "compact", "{}"),
    "move": ("store", "move", "{}", "/nowhere"),
    "push": ("store", "push", "{}", "--to", "qdrant", "--url", "x", "--collection", "y"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_where_a_folder_is_meant(feed, no_model, name):
    assert "folder" in sentence(*(part.format(feed) for part in COMMANDS[name]))
    assert feed.read_text() == FEED and not feed.with_name("feed.csv.lance").exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"model": 5}', b'{"dim": "x"}', b"null"]
)
@pytest.mark.parametrize("name", ["search", "index", "serve", "compact"])
def test_a_manifest_that_is_damaged(shelf, no_model, name, content):
    good = json.loads((shelf / "manifest.json").read_text())
    if content.startswith(b'{"'):
        content = json.dumps({**good, **json.loads(content)}).encode()
    (shelf / "manifest.json").write_bytes(content)
    before = sorted(path.name for path in shelf.iterdir())
    assert "damaged" in sentence(*(part.format(shelf) for part in COMMANDS[name]))
    assert sorted(path.name for path in shelf.iterdir()) == before


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("harm", [halved, zeroed, Path.unlink])
@pytest.mark.parametrize("part", ["data", "_versions"])
@pytest.mark.parametrize("name", ["search by id", "index", "duplicates"])
def test_rows_that_are_cut_off(shelf, no_model, name, part, harm):
    for path in (shelf / "products.lance" / part).glob("*.[lm]a*"):
        harm(path)
    assert "products.lance" in sentence(*(word.format(shelf) for word in COMMANDS[name]))
    assert (shelf / "products.lance" / "data").exists()


@pytest.mark.parametrize("out", ["feed.csv", "feed.csv/shelf", "full/shelf"])
def test_a_place_that_cannot_be_written_to_is_found_before_the_model_loads(
    tmp_path, feed, no_model, monkeypatch, out
):
    from moonshelf.catalogue import manifest

    def refuse(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if out.startswith("full"):
        monkeypatch.setattr(manifest.os, "fsync", refuse)
    said = sentence("embed", feed, "-o", tmp_path / out)
    assert "is a file" in said or "No space left" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["feed.csv"]


def test_a_feed_that_cannot_be_read_is_found_before_the_model_loads(tmp_path, no_model):
    (tmp_path / "empty.csv").write_text("id,title\n")
    for name in ("missing.csv", "empty.csv"):
        assert name in sentence("embed", tmp_path / name, "-o", tmp_path / "shelf")
    assert not (tmp_path / "shelf").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system is mounted by root only")
@pytest.mark.parametrize("command", ["embed", "index", "check"])
def test_a_disk_that_is_full(tmp_path, feed, monkeypatch, command):
    monkeypatch.setattr(manifest_module, "load_model", lambda _: FakeModel())
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", small], check=False)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a small file system")
    try:
        if command == "check":
            bad = tmp_path / "bad.csv"
            bad.write_text("id,title\n" + ",x\n" * 20_000)
            arguments: tuple[object, ...] = ("check", bad, "--rejects", small / "rejects.jsonl")
        else:
            CliRunner().invoke(cli.app, ["embed", str(feed), "-o", str(small / "shelf")])
            arguments = (command, small / "shelf")
            if command == "embed":
                many = tmp_path / "many.csv"
                many.write_text("id,title\n" + "".join(f"{i},{'mug ' * 200}{i}\n" for i in range(3000)))
                arguments = ("embed", many, "-o", small / "shelf", "--allow-removals")
            else:
                (small / "fill").write_bytes(bytes(_free(small) - 30_000))
        assert "o space left" in sentence(*arguments)
        if command != "check":
            assert len(Store.open(small / "shelf")) >= 3, "what was stored is still there"
    finally:
        subprocess.run(["umount", small], check=True)


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def test_what_the_system_refuses_is_one_sentence():
    assert system_error(OSError(errno.ENOSPC, "x", "/a/b")) == (
        "/a/b: no space left on device: free some space or name another disk."
    )
    lance = RuntimeError(
        "lance error: LanceError(IO): write failed: No space left on device (os error 28), x.rs:1"
    )
    assert "no space left on device" in (system_error(lance) or "")
    for defect in (RuntimeError("the fake model broke"), ValueError("x"), BrokenPipeError(errno.EPIPE, "x")):
        assert system_error(defect) is None


# --------------------------------------------------------------------------------- Ctrl-C, SIGTERM

CHILD = """
import sys
sys.path.insert(0, {tests!r})
from fake_model import FakeModel
from moonshelf import cli
from moonshelf.catalogue import manifest
manifest.load_model = lambda _: FakeModel(seconds=0.2, batch=2)
sys.argv = ["moonshelf", *{arguments!r}]
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_keeps_what_is_computed_and_says_how_to_go_on(tmp_path, number):
    feed, out = tmp_path / "feed.csv", tmp_path / "shelf"
    feed.write_text("id,title\n" + "".join(f"{i},mug {i}\n" for i in range(80)))
    arguments = ["embed", str(feed), "-o", str(out), "--reason", "on", "--json"]
    code = CHILD.format(tests=str(Path(__file__).parent / "catalogue"), arguments=arguments)
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (out / "rejects.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    child.send_signal(number)
    _, said = child.communicate(timeout=30)
    assert child.returncode == EXIT_STOPPED, said
    assert "Traceback" not in said and said.splitlines()[-1].startswith("stopped; what was embedded so far")
    rows = table(out)
    assert 2 <= len(rows) < 80 and all(row["rationale"] for row in rows.values())
    model = FakeModel()
    assert Catalogue.create(out, model).embed(feed).unchanged == len(rows)
    assert len(model.asked) == 80 - len(rows) and len(table(out)) == 80


@pytest.mark.parametrize("command", ["index", "train", "evaluate", "search"])
def test_stopping_other_commands(monkeypatch, shelf, command):
    """Wherever they are: the command is one that is stopped at once."""
    [info] = [one for one in cli.app.registered_commands if one.callback.__name__ == command]

    @functools.wraps(info.callback)
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "callback", stop)
    result = CliRunner().invoke(cli.app, [command, str(shelf)])
    assert result.exit_code == EXIT_STOPPED and result.stderr.startswith("stopped")
    assert len(result.stderr.splitlines()) == 1

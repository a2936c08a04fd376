"""What people said is kept: in order, under hostile text, from threads and from processes at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_model import FakeModel, product
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moonshelf.catalogue import Catalogue, feedback
from moonshelf.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    catalogue = Catalogue.create(tmp_path / "shelf", FakeModel())
    catalogue.embed([product(0)])
    return catalogue.folder


def pair(folder: Path, a: str, b: str, verdict: str) -> feedback.Entry:
    return feedback.add(folder, "duplicate", {"a": a, "b": b}, verdict)


def test_entries_come_back_newest_first_and_by_page(folder):
    assert feedback.entries(folder) == (0, []) and feedback.counts(folder) == {}
    assert feedback.latest(folder) == {} and not (folder / "feedback.lance").exists()
    said = [feedback.add(folder, "note", {"id": f"p{i}"}, note=f"note {i}", by="shop") for i in range(5)]
    other = feedback.add(folder, "search", {"query": "red", "id": "p0"}, "reject", "", "")
    assert feedback.entries(folder) == (6, [other, *reversed(said)])
    assert feedback.entries(folder, "note", limit=2, offset=1) == (5, [said[3], said[2]])
    assert feedback.entries(folder, "note", limit=2, offset=9) == (5, [])
    assert feedback.entries(folder, "x' OR 'a'='a") == (0, [])
    assert feedback.counts(folder) == {"note": 5, "search": 1}
    assert said[0].time.endswith("+00:00") and len({entry.id for entry in said}) == 5


def test_the_last_word_on_a_pair_counts(folder):
    pair(folder, "a", "b", "accept")
    last = pair(folder, "b", "a", "reject")
    other = pair(folder, "a", "c", "accept")
    feedback.add(folder, "note", {"a": "a", "b": "b"}, note="not a judgement of the pair")
    feedback.add(folder, "duplicate", {"id": "a"}, "reject")  # from a program that names no pair
    assert feedback.latest(folder) == {frozenset("ab"): last, frozenset("ac"): other}


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT, st.dictionaries(TEXT, TEXT, max_size=3), TEXT, TEXT)
def test_any_text_survives(folder, kind, subject, verdict, note):
    entry = feedback.add(folder, kind.replace("\0", ""), subject, verdict, note, note)
    assert feedback.entries(folder, limit=1)[1] == [entry]
    assert feedback.entries(folder, kind.replace("\0", ""), limit=1)[1] == [entry]
    assert entry.subject == subject


def test_what_is_no_text_and_what_is_no_catalogue_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="Unicode"):
        feedback.add(folder, "note", {"id": "\ud800"}, note="x")
    with pytest.raises(UserError, match="not a catalogue"):
        feedback.add(tmp_path, "note", {"id": "a"}, note="x")
    assert not (tmp_path / "feedback.lance").exists()


CHILD = """
import os, sys
from moonshelf.catalogue import feedback
folder, name, entries = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for i in range(int(entries)):
    entry = feedback.add(folder, "note", {"id": f"{name}-{i}"}, note="x")
    print(entry.subject["id"], flush=True)
"""


def child(folder: Path, name: str, entries: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), name, str(entries)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_threads_and_processes_at_once_lose_nothing(folder, monkeypatch):
    """They also race to make the table; and files are joined meanwhile."""
    monkeypatch.setattr(feedback, "_JOIN_EVERY", 5)
    children = [child(folder, f"process{i}", 12) for i in range(2)]
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for i in range(12):
                feedback.add(folder, "note", {"id": f"{name}-{i}"}, note="x")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"thread{i}",)) for i in range(3)]
    for process in children:
        print("go", file=process.stdin, flush=True)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in children:
        assert len(process.communicate(timeout=120)[0].split()) == 12 and process.returncode == 0
    assert not failures
    total, found = feedback.entries(folder, limit=1000)
    names = [
        f"{who}-{i}" for who in ("thread0", "thread1", "thread2", "process0", "process1") for i in range(12)
    ]
    assert total == 60 and sorted(entry.subject["id"] for entry in found) == sorted(names)


def test_a_kill_loses_no_acknowledged_entry(folder):
    process = child(folder, "killed", 10_000)
    print("go", file=process.stdin, flush=True)
    time.sleep(0.7)
    os.kill(process.pid, signal.SIGKILL)
    acknowledged = process.communicate()[0].split()
    _, found = feedback.entries(folder, limit=10_000)
    stored = [entry.subject["id"] for entry in found]
    assert acknowledged and set(acknowledged) <= set(stored)
    assert len(stored) == len(set(stored)) <= len(acknowledged) + 1

"""Versions of the rows, going back to one, compaction, and rows that are kept at another address."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from fake_model import FakeModel, product, table
from typer.testing import CliRunner

from moonshelf import cli
from moonshelf.catalogue import Catalogue, vector_index
from moonshelf.catalogue.commits import Writer
from moonshelf.catalogue.manifest import Locked, Manifest, writing
from moonshelf.catalogue.rows import key_of
from moonshelf.catalogue.store import Store
from moonshelf.errors import UserError


@pytest.fixture
def shelf(tmp_path: Path) -> Catalogue:
    """30 products; versions are kept."""
    catalogue = Catalogue.create(tmp_path / "shelf", FakeModel())
    catalogue.embed([product(i) for i in range(30)])
    run("keep", tmp_path / "shelf", "--days", 7)
    catalogue = Catalogue.open(tmp_path / "shelf", FakeModel())
    catalogue.index()
    return catalogue


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(cli.app, ["store", *map(str, arguments)])
    if code == 0 and result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def ids(shelf: Catalogue, words: str, **options) -> set[str]:
    return {hit.id for hit in Catalogue.open(shelf.folder, shelf.model).search(words, k=50, **options).hits}


def test_back_to_before_a_bad_feed(shelf):
    folder = shelf.folder
    good, number = table(folder), Store.open(folder).version
    shelf.embed(
        [product(i, title=f"broken {i}") for i in range(10)], allow_removals=True
    )  # 20 leave, 10 are overwritten
    assert len(Store.open(folder)) == 10 and "broken 3" in {row["title"] for row in table(folder).values()}
    listed = json.loads(run("versions", folder, "--json").stdout)
    assert listed["keep_days"] == 7
    rows = {one["version"]: one["rows"] for one in listed["versions"]}
    assert rows[number] == 30 and [*rows] == sorted(rows, reverse=True)
    said = run("rollback", folder, number).stdout
    assert "30 products" in said and f"version {number}" in said
    assert table(folder) == good
    assert ids(shelf, "blue boot", mode="vector") == set(good)
    assert ids(shelf, "broken", mode="text") == set() and len(ids(shelf, "boot", mode="text")) == 6
    index, note = vector_index.load(Store.open(folder))
    assert index is not None and note == "" and len(index) == 30, "built of these rows: nothing to catch up"
    # It can be undone in the same way, and embedding goes on from it.
    run("rollback", folder, max(rows))
    assert len(Store.open(folder)) == 10
    run("rollback", folder, number)
    report = Catalogue.open(folder, shelf.model).embed([product(i) for i in range(31)])
    assert (report.new, report.unchanged) == (1, 30)
    shelf.index()
    assert len(ids(shelf, "boot", mode="text")) == 6


def test_an_index_built_after_the_version_catches_up_with_it(shelf):
    number = Store.open(shelf.folder).version
    shelf.embed([product(i) for i in range(5)] + [product(5, title="purple umbrella")], allow_removals=True)
    shelf.index()
    run("rollback", shelf.folder, number)
    assert len(ids(shelf, "umbrella", mode="vector")) == 30
    index, _ = vector_index.load(Store.open(shelf.folder))
    keys, vectors = Store.open(shelf.folder).vectors()
    assert index is not None and len(index) == 30
    for query in vectors[:5]:
        found = {key for key, _ in index.search(query[None], 5)[0]}
        scores = vectors @ query
        assert all(scores[np.searchsorted(keys, key)] >= np.sort(scores)[-5] - 1e-5 for key in found)


def test_what_compaction_keeps(shelf):
    folder = shelf.folder
    shelf.embed([product(i, price=1.0) for i in range(30)])
    before = len(Store.open(folder).versions())
    assert before > 2
    run("compact", folder)
    assert len(Store.open(folder).versions()) >= before, "the last seven days are kept"
    assert "only the newest" in run("keep", folder, "--days", 0).stdout
    assert "versions left of" in run("compact", folder).stdout
    store = Store.open(folder)
    assert len(store.versions()) == 1 and len(store) == 30
    with pytest.raises(UserError, match=r"has no version 1: .*moonshelf store keep"):
        store.rollback(1)
    assert "store keep" in run("versions", folder).stderr
    assert ids(shelf, "boot", mode="vector") == {f"p{i}" for i in range(30)}


def test_one_writer_at_a_time(shelf):
    with writing(shelf.folder):
        for command in (
            ("rollback", shelf.folder, 1),
            ("compact", shelf.folder),
            ("keep", shelf.folder, "--days", 1),
        ):
            assert isinstance(CliRunner().invoke(cli.app, ["store", *map(str, command)]).exception, Locked)


def _roll(folder: str, numbers: list[int]) -> None:
    store = Store.open(folder)
    while True:
        for number in numbers:
            with writing(Path(folder)):
                store.rollback(number)


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_while_rolling_back(shelf, kills):
    """The rows are those of one version or of the other, whole."""
    folder = shelf.folder
    first = Store.open(folder).version
    states = [{id: row["title"] for id, row in table(folder).items()}]
    shelf.embed([product(i, title=f"second {i}") for i in range(12)], allow_removals=True)
    states.append({id: row["title"] for id, row in table(folder).items()})
    numbers = [first, Store.open(folder).version]
    rng = np.random.default_rng(int(time.time()))
    context = multiprocessing.get_context("spawn")
    for _ in range(kills):
        child = context.Process(target=_roll, args=(str(folder), numbers))
        child.start()
        start, deadline = Store.open(folder).version, time.monotonic() + 60
        while Store.open(folder).version == start and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(float(rng.uniform(0, 0.1)))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert Store.open(folder).version > start, "it had begun"
        assert {id: row["title"] for id, row in table(folder).items()} in states
        with writing(folder):
            Store.open(folder).compact()
        assert {id: row["title"] for id, row in table(folder).items()} in states
        numbers = [one.number for one in Store.open(folder).versions() if one.rows in (12, 30)][:2]


@pytest.mark.parametrize("address", [True, False])
def test_rows_at_another_place(shelf, tmp_path, address):
    folder, place = shelf.folder, (tmp_path / "bucket").as_uri() if address else str(tmp_path / "bucket")
    before = table(folder)
    assert place in run("move", folder, place).stdout
    assert Manifest.read(folder).place == place and table(folder) == before
    import shutil

    shutil.rmtree(folder / "products.lance")  # what the command says may be deleted
    assert table(folder) == before
    assert ids(shelf, "blue boot") and len(ids(shelf, "boot", mode="text")) == 6
    index, note = vector_index.load(Store.open(folder))
    assert index is not None and note == "" and len(index) == 30
    moved = Catalogue.open(folder, FakeModel())
    report = moved.embed([product(i) for i in range(2, 35)], reason="on")
    assert (
        report.rows == 33
        and Manifest.read(folder).place == place
        and not (folder / "products.lance").exists()
    )
    moved.index()
    assert ids(shelf, "boot", mode="vector", where="price >= 30") == {f"p{i}" for i in range(30, 35)}
    number = Store.open(folder).version
    Store.open(folder).remove([key_of("p3")])
    assert key_of("p3") not in Store.open(folder).vectors()[0]
    run("rollback", folder, number)
    assert key_of("p3") in Store.open(folder).vectors()[0]
    # A second folder, as on another machine, needs the manifest alone.
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_bytes((folder / "manifest.json").read_bytes())
    result = Catalogue.open(other, FakeModel()).search("blue boot", k=50, mode="vector")
    assert len(result.hits) == 33 and "no index yet" in result.notes[0]


def test_a_manifest_leads_nowhere_unasked(shelf, tmp_path, monkeypatch):
    """Not to a folder, not to the network, until the user names the place."""
    monkeypatch.setattr("lancedb.connect", lambda *_, **__: pytest.fail("it was opened"))
    manifest = json.loads((shelf.folder / "manifest.json").read_text())
    for place in ("/", str(tmp_path), "s3://bucket/shelf", "file:///tmp", "../other"):
        (shelf.folder / "manifest.json").write_text(json.dumps(manifest | {"place": place}))
        with pytest.raises(UserError, match=r"outside of its folder.*MOONSHELF_PLACES"):
            Store.open(shelf.folder)
    monkeypatch.undo()
    place = str(tmp_path / "bucket")
    (shelf.folder / "manifest.json").write_text(json.dumps(manifest))
    Store.open(shelf.folder).copy_to(place)
    (shelf.folder / "manifest.json").write_text(json.dumps(manifest | {"place": place}))
    monkeypatch.setenv("MOONSHELF_PLACES", f"s3://other {place}")
    assert len(Store.open(shelf.folder)) == 30


def test_a_writer_that_was_there_before_the_move_is_told(shelf, tmp_path):
    writer = Writer(Store.open(shelf.folder))
    run("move", shelf.folder, tmp_path / "bucket")
    with pytest.raises(UserError, match="restart what writes to it"):
        writer.commit(removed=["p1"])
    assert len(Store.open(shelf.folder)) == 30


def test_places_that_cannot_be_used(shelf, tmp_path):
    folder = shelf.folder
    with pytest.raises(UserError, match="already holds products"):
        run("move", folder, folder)
    with pytest.raises(UserError, match="cannot be written to"):
        run("move", folder, "nowhere://bucket/shelf")
    assert Manifest.read(folder).place == "" and len(Store.open(folder)) == 30
    run("move", folder, tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(tmp_path / "gone")
    with pytest.raises(UserError, match=r"keeps its products in .*elsewhere, which cannot be read"):
        Store.open(folder)
    with pytest.raises(UserError, match="cannot be read"):
        Catalogue.open(folder, FakeModel()).embed([product(1)])

"""kill -9 at random moments: nothing acknowledged is lost, nothing doubled, only missing work is redone."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash_child import FEEDS, ROWS, version_one
from fake_model import FakeModel, product, table

from moonshelf.catalogue import Catalogue
from moonshelf.catalogue.embed import Options, embed_feed
from moonshelf.errors import UserError

Kill = Callable[..., bool]
Truth = dict[int, dict[str, tuple[Any, ...]]]


@pytest.fixture(scope="module")
def kill_after() -> Iterator[Kill]:
    """A function that runs work in a child, kills -9 it after some seconds, and says whether it still ran."""
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("crash_child.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None and server.stdout is not None

    def kill(seconds: float, *work: Any) -> bool:
        print(json.dumps(work), file=server.stdin, flush=True)
        pid = int(server.stdout.readline())
        ended, _, _ = select.select([server.stdout], [], [], seconds)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        status = int(server.stdout.readline())
        assert status in (0, -signal.SIGKILL), "the child failed by itself"
        return status != 0

    yield kill
    server.stdin.close()
    server.wait(30)


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        return table(folder)
    except UserError:  # killed before the store was there
        return {}


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    return {id: (row["record_hash"], row["price"], tuple(row["vector"])) for id, row in rows.items()}


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> Truth:
    """What runs without a crash store, by version of the feed."""
    result = {}
    for version, feed in FEEDS.items():
        folder = tmp_path_factory.mktemp("truth") / str(version)
        embed_feed(feed(), folder, FakeModel())
        result[version] = summary(table(folder))
    return result


def crash_embed(kill_after: Kill, tmp_path: Path, truth: Truth, kills: int, seed: int) -> int:
    """Kill -9 `kills` running children at moments spread over both versions of the feed; returns how many
    could be hit within a reasonable number of attempts."""
    dice, hits, folder = random.Random(seed), 0, tmp_path / "shelf"
    before: dict[str, tuple[Any, ...]] = {}
    seconds = 1.0  # about what a whole run takes: adapts to the machine
    for attempt in range(6 * kills):
        if hits == kills:
            break
        version = 1 if attempt % 2 == 0 else 2
        if version == 1:  # from nothing; version two then meets a store that is whole or cut short
            shutil.rmtree(folder, ignore_errors=True)
            before = {}
        log = tmp_path / f"acknowledged-{attempt}"
        hit = kill_after(dice.uniform(0.0, seconds), "embed", str(folder), version, str(log))
        hits, seconds = hits + hit, seconds * (1.15 if hit else 0.8)
        rows = summary(stored(folder))
        acknowledged = log.read_text().splitlines() if log.exists() else []
        for id in acknowledged:
            assert rows[id] == truth[version][id], f"{id} was acknowledged in version {version} and is lost"
        for id, row in rows.items():  # whole rows only, of this version or of the one before
            assert row == truth[version].get(id) or row == before.get(id)
        before = rows
    model = FakeModel()
    report = embed_feed(FEEDS[2](), folder, model, options=Options(shard_rows=12, allow_removals=True))
    missing = {id for id in truth[2] if id not in before or before[id][2] != truth[2][id][2]}
    assert sorted(model.asked) == sorted(missing) and len(model.asked) == report.new + report.changed
    assert summary(table(folder)) == truth[2]
    assert embed_feed(FEEDS[2](), folder, model).unchanged == len(truth[2])
    return hits


def crash_index(kill_after: Kill, tmp_path: Path, kills: int, seed: int) -> int:
    dice, hits, folder, model = random.Random(seed), 0, tmp_path / "shelf", FakeModel()
    embed_feed(version_one(), folder, model)
    shelf = Catalogue.open(folder, model)
    shelf.index()
    before = summary(table(folder))
    query = next(version_one())
    expected = {hit.id for hit in shelf.search(query, mode="vector", k=ROWS).hits}
    words = {hit.id for hit in shelf.search("boot", mode="text", k=ROWS).hits}
    assert len(expected) == ROWS and len(words) == ROWS // 5
    for _ in range(kills):
        hits += kill_after(dice.uniform(0.0, 0.3), "index", str(folder))
        shelf = Catalogue.open(folder, model)
        assert summary(table(folder)) == before
        result = shelf.search(query, mode="vector", k=ROWS)
        assert result.notes == [], "there was a whole index before, so there is one now"
        assert {hit.id for hit in result.hits} == expected
        best = np.array([hit.why["cosine"] for hit in result.hits])
        assert (np.diff(best) <= 0).all()
        assert {hit.id for hit in shelf.search("boot", mode="text", k=ROWS).hits} == words
    info = shelf.index()
    names = {file.name for file in (folder / "index").iterdir()}
    assert names == {"index.json", info.file, info.rows_file}
    return hits


def crash_upsert(kill_after: Kill, tmp_path: Path, kills: int, seed: int) -> int:
    """Each acknowledged product is found as it was acknowledged, or as a later request wrote it, none twice;
    each acknowledged removal too. Returns how many children had acknowledged something when they were hit."""
    dice, hits, folder = random.Random(seed), 0, tmp_path / "shelf"
    embed_feed((product(i) for i in range(3)), folder, FakeModel())
    log = tmp_path / "acknowledged"
    log.touch()
    for attempt in range(4 * kills):
        if hits == kills:
            break
        before, size = {id: row["title"] for id, row in table(folder).items()}, log.stat().st_size
        assert kill_after(dice.uniform(0.05, 0.6), "upsert", str(folder), attempt, str(log))
        lines = log.read_bytes()[size:].decode().splitlines()
        acknowledged = dict(line.split(" ", 1) for line in lines)
        hits += bool(lines)
        rows = table(folder)  # fails if an id is there twice
        unsure = 0  # ids that differ from what was acknowledged last: those of the one request in hand
        for id in {*before, *acknowledged, *rows}:
            expected = acknowledged.get(id, before.get(id, "-"))
            found = rows[id]["title"] if id in rows else "-"
            if found != expected:
                unsure += 1
                last = max((int(line.split("-")[2]) for line in lines if "title" in line), default=-1)
                assert found == "-" or found.startswith(f"title-{attempt}-{last + 1}-"), (id, expected, found)
        assert unsure <= 7  # six products and a removal
        reference = FakeModel().encode([product(int(id[1:]), title=row["title"]) for id, row in rows.items()])
        np.testing.assert_allclose([row["vector"] for row in rows.values()], reference.vectors, atol=1e-6)
    return hits


def test_kills_while_embedding(kill_after, tmp_path, truth):
    assert crash_embed(kill_after, tmp_path, truth, kills=4, seed=int(time.time())) == 4


def test_kills_while_indexing(kill_after, tmp_path):
    assert crash_index(kill_after, tmp_path, kills=3, seed=int(time.time())) == 3


def test_kills_while_upserting(kill_after, tmp_path):
    assert crash_upsert(kill_after, tmp_path, kills=3, seed=int(time.time())) == 3


@pytest.mark.slow
def test_fifty_kills_while_upserting(kill_after, tmp_path):
    assert crash_upsert(kill_after, tmp_path, kills=50, seed=int(time.time())) == 50


@pytest.mark.slow
def test_fifty_kills_while_embedding(kill_after, tmp_path, truth):
    assert crash_embed(kill_after, tmp_path, truth, kills=50, seed=int(time.time())) == 50


@pytest.mark.slow
def test_fifty_kills_while_indexing(kill_after, tmp_path):
    assert crash_index(kill_after, tmp_path, kills=50, seed=int(time.time())) == 50

"""What workers and driver do with the rows of a feed, without Ray between them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fake_model import FakeModel, picture, product, table
from fates import as_one_process, changed, feed, rejects

from moonshelf.catalogue.embed import embed_feed
from moonshelf.errors import Problem, UserError
from moonshelf.feeds import write_jsonl
from moonshelf.product import ImageRef
from moonshelf.scale import ray as ray_embed
from moonshelf.scale.ray import FEED, Cluster, RayEmbedRun, Worker, _blocks, _packed, _unpacked


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of the feed go through one worker, in this process."""

    def results(run: RayEmbedRun, settings: dict[str, Any]) -> Iterator[pa.Table]:
        worker = Worker(**settings)
        for part in run.parts:
            for block in _blocks(part):
                for start in range(0, len(block), run.cluster.block_rows):
                    yield worker(block.slice(start, run.cluster.block_rows))

    monkeypatch.setattr(ray_embed, "connected", lambda cluster: nullcontext())
    monkeypatch.setattr(RayEmbedRun, "_results", results)


def cluster(**changes: Any) -> Cluster:
    return Cluster(**{"block_rows": 4, "load": FakeModel, **changes})


def test_the_result_is_that_of_one_process(tmp_path: Path, inline: None) -> None:
    as_one_process(tmp_path, cluster())


def test_the_model_is_asked_for_what_changed(tmp_path: Path, inline: None) -> None:
    asked: list[FakeModel] = []

    def load() -> FakeModel:
        asked.append(FakeModel())
        return asked[-1]

    embed_feed(feed(), tmp_path / "shelf", FakeModel(), cluster=cluster())
    report = embed_feed(changed(), tmp_path / "shelf", FakeModel(), cluster=cluster(load=load))
    in_vain = ["p2"]  # an id that came in another block, which only the driver notices
    assert sorted(asked[0].asked) == sorted(["p0", "p50", *in_vain]) and report.unchanged == 32


def test_vectors_that_are_none_are_rejected(tmp_path: Path, inline: None) -> None:
    def poisoned() -> FakeModel:
        model = FakeModel()
        model.poison = {"p3"}
        return model

    rows = [product(i) for i in range(6)]
    report = embed_feed(rows, tmp_path / "shelf", FakeModel(), cluster=cluster(load=poisoned))
    assert report.new == 5 and report.rejected == 1
    [reject] = rejects(tmp_path / "shelf")
    assert (reject["id"], reject["row"], reject["field"]) == ("p3", 4, "vector")


def test_a_feed_that_ends_early_removes_nothing(tmp_path: Path, inline: None) -> None:
    embed_feed([product(i) for i in range(6)], tmp_path / "shelf", FakeModel())
    cut_short = [product(7), Problem(2, "file", "the rest of the table cannot be read")]
    with pytest.raises(UserError, match="read only up to row 2"):
        embed_feed(cut_short, tmp_path / "shelf", FakeModel(), cluster=cluster())
    assert set(table(tmp_path / "shelf")) == {"p0", "p1", "p2", "p3", "p4", "p5", "p7"}


def test_a_file_is_read_where_its_pictures_are(tmp_path: Path, inline: None) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    outside = ImageRef(path=str(tmp_path.parent / "b.png"))
    rows = [product(0, images=(ImageRef(path=str(tmp_path / "a.png")),)), product(1, images=(outside,))]
    write_jsonl(rows, tmp_path / "feed.jsonl")
    report = embed_feed(tmp_path / "feed.jsonl", tmp_path / "shelf", FakeModel(), cluster=cluster())
    assert report.new == 2 and report.warnings == 1 and report.complete
    assert {id: row["pictures"] for id, row in table(tmp_path / "shelf").items()} == {"p0": 1, "p1": 0}


def test_mistakes_are_sentences(tmp_path: Path, inline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="a worker found another model"):
        embed_feed(
            [product(0)], tmp_path / "a", FakeModel(), cluster=cluster(load=lambda: FakeModel("another"))
        )
    with pytest.raises(UserError, match="save it to a folder first"):
        embed_feed([product(0)], tmp_path / "b", FakeModel(), cluster=cluster(load=None))
    for wrong in ({"workers": 0}, {"cpus": 0.0}, {"gpus": -1.0}, {"block_rows": 0}):
        with pytest.raises(UserError, match="more than 0"):
            cluster(**wrong)


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs ray: pip install 'moonshelf\[scale\]'"):
        embed_feed([product(0)], tmp_path / "shelf", FakeModel(), cluster=cluster())


def test_rows_survive_the_journey() -> None:
    odd = product(
        1, title="lone \ud800 surrogate", images=(ImageRef(data=picture()), ImageRef(path="/a.jpg"))
    )
    rows = pa.Table.from_pylist([_packed((1, 0.5, odd)), _packed(("note", None, product(2)))], FEED)
    assert [_unpacked(row) for row in rows.to_pylist()] == [odd, product(2)]

"""Embedding on Ray: what one process stores, whoever computed it, and whatever dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel, product, table
from fates import as_one_process

from moonshelf.catalogue import Catalogue
from moonshelf.catalogue.embed import Options, embed_feed
from moonshelf.errors import UserError
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # loopback
ray = pytest.importorskip("ray")
HERE = Path(__file__).parent


class Slow(FakeModel):
    """Leaves the number of its process in a folder, and takes its time."""

    def __init__(self, folder: str, seconds: float = 0.25) -> None:
        super().__init__()
        (Path(folder) / str(os.getpid())).touch()
        self.pause = seconds

    def encode(self, products: list[Product], reason: str = "off", **options: Any) -> Any:
        time.sleep(self.pause)
        return super().encode(products, reason, **options)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine, with two CPUs, whose workers find the modules beside this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False,
            object_store_memory=200 << 20,
        )  # fmt: skip
        yield
        ray.shutdown()


def settings(**changes: Any) -> Any:
    from moonshelf.scale.ray import Cluster

    return Cluster(**{"workers": 2, "cpus": 0.5, "block_rows": 4, "load": FakeModel, **changes})


@pytest.mark.slow
def test_the_result_is_that_of_one_process(tmp_path: Path, cluster: None) -> None:
    as_one_process(tmp_path, settings())


@pytest.mark.slow
def test_the_same_block_gives_the_same_bytes(tmp_path: Path, cluster: None, model: MoonModel) -> None:
    """The engine itself: vectors are those of its own `encode` of the same block, bit for bit; those of a run
    in one process have other products in their batches, and are equal but for rounding."""
    model.save_pretrained(tmp_path / "model")
    loaded = MoonModel.from_pretrained(tmp_path / "model")
    products = [product(i) for i in range(24)]
    shelf = Catalogue.create(tmp_path / "many", str(tmp_path / "model"))
    shelf.embed(products, reason="on", cluster=settings(load=None, block_rows=8, cpus=1, workers=1))
    many = table(shelf.folder)
    for start in range(0, len(products), 8):
        block = products[start : start + 8]
        out = loaded.encode(block, reason="on")
        for i, one in enumerate(block):
            assert many[one.id]["vector"] == out.vectors[i].tolist()
            assert many[one.id]["rationale"] == out.rationales[i]
    one = Catalogue.create(tmp_path / "one", str(tmp_path / "model"))
    one.embed(products, reason="on")
    for id, row in table(one.folder).items():
        np.testing.assert_allclose(row.pop("vector"), many[id].pop("vector"), atol=1e-5)
        for name in ("weight_image", "weight_text", "weight_rationale"):
            assert row.pop(name) == pytest.approx(many[id].pop(name), abs=1e-5)
        assert row == many[id]


@pytest.mark.slow
def test_a_killed_worker_costs_nothing(tmp_path: Path, cluster: None) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    killed: list[int] = []

    def kill(_: list[str]) -> None:
        if not killed:
            killed.append(int(next(pids.iterdir()).name))
            os.kill(killed[0], signal.SIGKILL)

    products = [product(i) for i in range(60)]
    report = embed_feed(
        products, tmp_path / "many", FakeModel(), options=Options(shard_rows=8), on_commit=kill,
        cluster=settings(load=partial(Slow, str(pids))),
    )  # fmt: skip
    assert killed and len(list(pids.iterdir())) >= 2, "another process took its place"
    assert report.new == 60 and report.complete and not report.rejected
    embed_feed(products, tmp_path / "one", FakeModel())
    assert table(tmp_path / "many") == table(tmp_path / "one")


DRIVER = """
import os, sys
from functools import partial
from test_ray import Slow, settings, product
from fake_model import FakeModel
from moonshelf.catalogue.embed import Options, embed_feed
out, pids, log = sys.argv[1:]
def acknowledged(ids):
    with open(log, "a") as file:
        file.write("".join(f"{id}\\n" for id in ids))
embed_feed([product(i) for i in range(60)], out, FakeModel(), options=Options(shard_rows=8),
           on_commit=acknowledged, cluster=settings(load=partial(Slow, pids, 0.5), workers=1))
"""


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(tmp_path: Path) -> None:
    """It starts a cluster of its own, which dies with it; what it committed is not embedded again."""
    pids, log = tmp_path / "pids", tmp_path / "log"
    pids.mkdir()
    log.touch()
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "shelf"), str(pids), str(log)]
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while len(log.read_text().split()) < 16 and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.05)
        child.kill()
        assert child.wait() == -signal.SIGKILL, "it ended before it could be killed"
        acknowledged = log.read_text().split()
        workers = [int(file.name) for file in pids.iterdir()]
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers), "its workers outlived it"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    assert 16 <= len(acknowledged) < 60
    before = table(tmp_path / "shelf")
    assert set(acknowledged) <= set(before)
    model = FakeModel()
    report = embed_feed([product(i) for i in range(60)], tmp_path / "shelf", model)
    assert report.unchanged == len(before) and set(model.asked) == {f"p{i}" for i in range(60)} - set(before)
    assert len(table(tmp_path / "shelf")) == 60


@pytest.mark.slow
def test_mistakes_come_back_as_sentences(tmp_path: Path, cluster: None) -> None:
    with pytest.raises(UserError, match="a worker found another model"):
        embed_feed(
            [product(0)], tmp_path / "a", FakeModel(),
            cluster=settings(load=partial(FakeModel, fingerprint="another")),
        )  # fmt: skip
    with pytest.raises(UserError, match="save it to a folder first"):
        embed_feed([product(0)], tmp_path / "b", FakeModel(), cluster=settings(load=None))

"""An index chosen by measurement: what is chosen reaches the target, is used, kept, and told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_model import DIM, FakeModel, product
from index_data import clustered
from typer.testing import CliRunner

from moonshelf import cli
from moonshelf.catalogue import Catalogue, ann
from moonshelf.catalogue.store import key_of
from moonshelf.catalogue.tuning import Tuning
from moonshelf.catalogue.where import parse
from moonshelf.errors import UserError

ROWS = 3000


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(np.random.default_rng(0), ROWS)


def tuning(target: float = 0.95, **options) -> Tuning:
    return Tuning(target, small=500, **options)


def test_the_cheapest_that_reaches_the_target_is_chosen(vectors):
    keys = np.arange(ROWS)
    said: list[str] = []
    wide = tuning(everything=True, say=said.append)
    index, record = wide.choose(keys, vectors)
    good = [trial for trial in wide.trials if trial.recall >= 0.95]
    cheapest = min(good, key=lambda trial: (trial.memory_bytes, trial.p50_ms))
    assert index.spec == cheapest.spec and record["chosen"]["recall"] >= 0.95
    assert {trial.spec.kind for trial in wide.trials} >= {
        "flat",
        "hnsw",
        "sq8",
        "binary",
        "ivf-pq",
        "ivf-sq8",
    }
    assert any("building" in line for line in said) and json.dumps(record, allow_nan=False)
    for trial in wide.trials:
        assert set(trial.recalls) == {"all", "0.5", "0.1"} and min(trial.recalls.values()) == trial.recall
        assert 0 < trial.p50_ms <= trial.p95_ms and (trial.spec.kind != "flat" or trial.recall == 1)
    short = tuning()
    assert short.choose(keys, vectors)[0].spec.kind == index.spec.kind
    assert len(short.trials) < len(wide.trials)
    # The recall that is told, counted by other means.
    queries = np.sort(np.random.default_rng(0).choice(ROWS, 200, replace=False))
    scores = vectors[queries] @ vectors.T
    scores[np.arange(200), queries] = -2
    truth = np.argsort(-scores, axis=1)[:, :10]
    found = [
        [key for key, _ in hits if key != own][:10]
        for own, hits in zip(queries, index.search(vectors[queries], 11), strict=True)
    ]
    recall = np.mean([len(set(a) & set(b.tolist())) / 10 for a, b in zip(found, truth, strict=True)])
    assert record["chosen"]["recalls"]["all"] == pytest.approx(recall, abs=1e-3)


def test_limits_are_kept_or_nothing_changes(vectors):
    keys = np.arange(ROWS)
    flat = ROWS * vectors.shape[1] * 4
    limited = tuning(0.9, max_mb=0.4 * flat / 1e6)
    index, record = limited.choose(keys, vectors)
    assert record["chosen"]["memory_bytes"] <= 0.4 * flat and index.spec.kind != "flat"
    with pytest.raises(UserError, match="even the smallest needs more memory"):
        tuning(max_mb=1e-3).choose(keys, vectors)
    with pytest.raises(UserError, match=r"nothing was changed. Nearest: .* Raise the limit"):
        tuning(max_ms=1e-6).choose(keys, vectors)
    for target in (0, -1, 1.01, float("nan")):
        with pytest.raises(UserError, match="recall"):
            tuning(target)


def test_equal_vectors_are_all_right_answers():
    vectors = np.repeat(clustered(np.random.default_rng(0), 60), 20, axis=0)
    _, record = tuning(1.0).choose(np.arange(1200), vectors)
    assert record["chosen"]["recall"] == 1.0


@pytest.fixture
def shelf(tmp_path: Path) -> Catalogue:
    """A catalogue of real rows whose vectors are clustered, 1,500 of them."""
    catalogue = Catalogue.create(tmp_path / "shelf", FakeModel())
    catalogue.embed([product(0)])
    row = catalogue.store.scan(catalogue.store.columns).to_pylist()[0]
    import pyarrow as pa

    from moonshelf.catalogue.rows import schema

    drawn = clustered(np.random.default_rng(3), 1500, DIM)
    rows = [
        {**row, "id": f"q{i}", "key": key_of(f"q{i}"), "vector": drawn[i], "price": float(i % 100),
         "content_hash": f"{i:064x}"}
        for i in range(1500)
    ]  # fmt: skip
    catalogue.store.write(pa.Table.from_pylist(rows, schema(DIM)), schema(DIM).empty_table())
    return catalogue


def exact(shelf: Catalogue, vector: np.ndarray, where: str | None = None) -> list[int]:
    return [key for key, _ in shelf.store.nearest(vector, 10, where and parse(where))]


def searched(shelf: Catalogue, vector: np.ndarray, where: str | None = None) -> list[int]:
    result = shelf.search("x", vector=vector, mode="vector", where=where, k=10)
    assert result.notes == []
    return [key_of(hit.id) for hit in result.hits]


def test_what_was_chosen_is_used_followed_and_kept(shelf):
    info = shelf.index(tuning(0.95, max_mb=0.15))
    assert info.kind not in ("flat", "hnsw") and info.tuned and info.tuned["target"] == 0.95
    assert {file.name for file in (shelf.folder / "index").iterdir()} == {
        "index.json", info.file, info.rows_file, info.vectors_file,
    }  # fmt: skip
    queries = clustered(np.random.default_rng(8), 40, DIM)

    def agreement(where: str | None = None) -> float:
        pairs = [(exact(shelf, q, where), searched(shelf, q, where)) for q in queries]
        return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in pairs]))

    assert agreement() >= 0.95
    for where in ("price < 50", "price < 10", "price = 7"):
        assert agreement(where) >= 0.95
    shelf.store.remove([key_of(f"q{i}") for i in range(300)])
    assert agreement() >= 0.95 and agreement("price < 50") >= 0.95
    index, note = ann.load(shelf.store)
    assert index is not None and note == "" and len(index) == len(shelf.store)
    again = shelf.index()
    assert again.spec == info.spec and again.tuned == info.tuned and again.rows == len(shelf.store)
    assert agreement() >= 0.95
    assert shelf.index(forget=True).kind == "flat"
    assert shelf.index().kind == "flat"


def test_damaged_parts_of_a_chosen_index_are_noticed(shelf):
    info = shelf.index(tuning(0.9, max_mb=0.15))
    file = shelf.folder / "index" / info.vectors_file
    file.write_bytes(file.read_bytes()[:-2] + b"??")
    assert "damaged" in shelf.search("x", vector=np.eye(DIM, dtype=np.float32)[0], mode="vector").notes[0]
    shelf.index()
    with pytest.raises(UserError, match="nothing was changed"):
        shelf.index(tuning(0.9, max_mb=1e-6))
    assert ann.load(shelf.store)[1] == "", "the index that was there is still there"


def test_the_command(shelf, monkeypatch):
    def run(*arguments: str, code: int = 0):
        result = CliRunner().invoke(cli.app, ["index", str(shelf.folder), *arguments])
        assert result.exit_code == code, result.output
        return result

    told = run("--target-recall", "0.95").stdout
    assert "are too few for anything but a flat index" in told.replace("\n", " ") and "→  flat" in told
    assert "chosen for recall 0.95" in told
    monkeypatch.setattr("moonshelf.catalogue.tuning.SMALL", 500)
    record = json.loads(run("--target-recall", "0.9", "--k", "5", "--json").stdout)
    assert record["tuned"]["k"] == 5 and record["tuned"]["chosen"]["recall"] >= 0.9
    assert isinstance(run("--max-mb", "3", code=1).exception, UserError)
    assert "(flat)" in run("--forget").stdout

"""The day with a GPU at a tiny size on the CPU: every call runs, is kept, and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from moonshelf.errors import UserError
from moonshelf.feeds import read_feed
from moonshelf.product import Product
from research import gpu_day
from research.script import app_of
from tiny import picture

TINY = ["--size", "tiny", "--device", "cpu", "--batches", "1,2"]


def call(out: Path, *arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(app_of(gpu_day.main), [*arguments, "--out", str(out)])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    file = out / "gpu_day.json"
    return json.loads(file.read_text()) if file.exists() else {}


@pytest.mark.research
def test_every_call_at_a_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_day, "REPEATS", 1)
    with pytest.raises(UserError, match="run `load` first"):
        call(tmp_path, "embed", *TINY)
    call(tmp_path, "load", *TINY)
    figures = call(tmp_path, "all", *TINY, "--recipe", "recipes/cold-start-smoke.yaml")
    for key in ("ceilings", "load/read", "embed/2", "reason/2", "cold-start/2", "joint/2", "vllm", "starter"):
        assert key in figures, key
    assert figures["vllm"] == {"not_run": figures["vllm"]["not_run"]} and "vllm" in figures["vllm"]["not_run"]  # type: ignore[index]
    assert figures["reason/2"]["written_s"] > 0 and figures["cold-start/2"]["seconds"] > 0  # type: ignore[index]
    again = call(tmp_path, "all", *TINY, "--minutes", "0")  # nothing is left to do
    assert again == figures


def test_a_call_without_time_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_day, "REPEATS", 1)
    assert "ceilings" not in call(tmp_path, "ceilings", *TINY, "--minutes", "0")
    assert call(tmp_path, "ceilings", *TINY)["ceilings"]["flop_s"] > 0  # type: ignore[index]
    with pytest.raises(UserError, match="another device or size"):
        call(tmp_path, "ceilings", "--size", "2b", "--device", "cpu")
    with pytest.raises(UserError, match="numbers with commas"):
        call(tmp_path, "embed", "--device", "cpu", "--batches", "a")


def test_packed_data_fit_and_can_be_read(tmp_path: Path) -> None:
    import pyarrow as pa

    cell = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    rows = 40
    table = pa.table({
        "id": [str(i) for i in range(rows)], "title": [f"shoe {i}" for i in range(rows)],
        "images": pa.array([[{"bytes": picture(i, 400, 300), "path": None}] for i in range(rows)], cell),
    })  # fmt: skip
    for name in ("a.parquet", "v.parquet"):
        pq.write_table(table, tmp_path / name)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("sources:\n - {feed: a.parquet}\n - {feed: sample}\nvalidation: v.parquet\n")
    whole = gpu_day.pack(recipe, tmp_path, tmp_path / "all")
    assert whole == {"a.parquet": rows, "v.parquet": rows}
    held = sum((tmp_path / "all" / name).stat().st_size for name in whole)
    part = gpu_day.pack(recipe, tmp_path, tmp_path / "some", most=int(1.5 * held))
    assert part["v.parquet"] == rows and 0 < part["a.parquet"] <= rows
    products = [one for one in read_feed(tmp_path / "some" / "a.parquet") if isinstance(one, Product)]
    assert len(products) == part["a.parquet"] and products[0].images
    with pytest.raises(UserError, match="alone takes more"):
        gpu_day.pack(recipe, tmp_path, tmp_path / "none", most=10)
    with pytest.raises(UserError, match="is not there"):
        gpu_day.pack(recipe, tmp_path / "nowhere", tmp_path / "none")

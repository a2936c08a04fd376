"""Parity: engines that agree, and the first stage of those that do not."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from typer.testing import CliRunner

from moonshelf.catalogue import Catalogue
from moonshelf.cli import app as moonshelf
from moonshelf.errors import EXIT_OK, EXIT_USAGE, UserError
from moonshelf.model import engine
from moonshelf.model.modeling import MoonModel
from moonshelf.product import ImageRef, Product
from research.studies.parity import Result, Trace, app, compare, lines, parity
from tiny import pictures
from writer_stub import Told, serving


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def server(model: MoonModel) -> Iterator[Told]:
    with serving(copy.deepcopy(model)) as told:
        yield told


PRODUCTS = [
    Product(id="text", title="red running shoe"),
    Product(id="image", images=pictures(1)),
    Product(id="several", title="blue shoe for men", images=pictures(3, 4)),
]


def test_three_engines_agree(model: MoonModel, server: Told) -> None:
    server.fault = ""
    report = parity(model, PRODUCTS, ["ours", "transformers", f"vllm:{server.url}"])
    assert report.exit_code == EXIT_OK and report.reference == "ours float32"
    two_pass, served = report.comparisons
    assert two_pass.equal == two_pass.compared == dict.fromkeys(two_pass.compared, 3)
    assert list(two_pass.compared) == ["prompt", "pixels", "rationale", "direct vector", "reasoned vector"]
    assert list(served.compared) == ["prompt", "rationale", "reasoned vector"]
    assert all(value < 1e-5 for value in two_pass.largest.values())
    assert [line for line in lines(report) if line == "  agrees"] == ["  agrees"] * 2


@pytest.mark.parametrize(("fault", "stage"), [("tokens", "rationale"), ("prompt", "prompt")])
def test_the_first_stage_that_differs_is_named(
    model: MoonModel, server: Told, fault: str, stage: str
) -> None:
    server.fault = fault
    report = parity(model, PRODUCTS, ["ours", f"vllm:{server.url}"])
    assert report.exit_code == EXIT_USAGE
    [served] = report.comparisons
    assert served.first is not None and (served.first.stage, served.first.id) == (stage, "text")
    assert len(served.differences) == 3 and f"DIFFERS first in {stage}, text: " in "\n".join(lines(report))
    assert json.loads(json.dumps(report.as_dict()))["comparisons"][0]["first_difference"]["stage"] == stage


def test_another_precision_is_named_at_its_vectors(model: MoonModel) -> None:
    report = parity(model, PRODUCTS[:1], ["ours"], ["float32", "bfloat16"], tolerance=1e-7)
    [half] = report.comparisons
    assert half.name == "ours bfloat16" and report.exit_code == EXIT_USAGE
    assert half.equal["prompt"] == half.equal["pixels"] == 1 and half.largest["direct vector"] > 1e-7
    assert (
        parity(model, PRODUCTS[:1], ["ours"], ["float32", "bfloat16"], tolerance=2.0).comparisons[0].largest
    )
    assert model.precision == "float32"


def test_an_earlier_version_is_one_more_engine(model: MoonModel, tmp_path: Path) -> None:
    saved = tmp_path / "before.json"
    parity(model, PRODUCTS, ["ours"], save=saved)
    report = parity(model, PRODUCTS, ["ours"], against=saved)
    assert report.exit_code == EXIT_OK and report.comparisons[0].largest["reasoned vector"] < 1e-7
    record = json.loads(saved.read_text())
    assert record["versions"]["torch"] in report.comparisons[0].name
    record["traces"][0]["results"][1]["pixels"] = "0" * 64
    record["traces"][0]["results"][2]["direct"][5] += 0.01
    saved.write_text(json.dumps(record))
    report = parity(model, PRODUCTS, ["ours"], against=saved)
    first = report.comparisons[0].first
    assert first is not None and (first.stage, first.id) == ("pixels", "image")
    assert [d.stage for d in report.comparisons[0].differences] == ["pixels", "direct vector"]
    record["fingerprint"] = "another"
    saved.write_text(json.dumps(record))
    with pytest.raises(UserError, match="versions are compared on one model"):
        parity(model, PRODUCTS, ["ours"], against=saved)


def test_what_cannot_be_compared_is_said(model: MoonModel, tmp_path: Path) -> None:
    broken = Product(id="broken", images=(ImageRef(data=b"no picture"),))
    report = parity(model, [broken, PRODUCTS[0]], ["ours", "transformers"])
    assert report.products == 1 and [problem.id for problem in report.problems] == ["broken"]
    for engines, precisions, words in (
        (["ours"], ["float32"], "nothing to be compared with"),
        (["theirs"], ["float32"], "no engine 'theirs'"),
        (["ours"], ["float8"], "no precision 'float8'"),
        ([], [], "at least one engine"),
    ):
        with pytest.raises(UserError, match=words):
            parity(model, PRODUCTS, engines, precisions)
    with pytest.raises(UserError, match="no product can be compared"):
        parity(model, [broken], ["ours", "transformers"])
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="not a file that"):
        parity(model, PRODUCTS, ["ours"], against=tmp_path / "bad.json")


def test_a_vector_is_compared_where_the_rationale_is_the_same() -> None:
    mine = Trace(
        engine="a", precision="float32", results=[Result(id="x", rationale=[1, 2], reasoned=[1.0, 0.0])]
    )
    other = Trace(
        engine="b", precision="float32", results=[Result(id="x", rationale=[1], reasoned=[0.0, 1.0])]
    )
    found = compare(mine, other, 1e-4)
    assert found.first is not None and found.first.detail == "1 tokens, not 2"
    assert "reasoned vector" not in found.compared
    same = other.model_copy(update={"results": [Result(id="x", rationale=[1, 2], reasoned=[1.0, 2e-4])]})
    assert compare(mine, same, 1e-3).first is None
    assert compare(mine, same, 1e-4).first.stage == "reasoned vector"  # type: ignore[union-attr]


def test_the_products_of_a_server_are_read_once(model: MoonModel) -> None:
    """Engines get rows of their own: what one is given to read does not reach the next."""
    rows, _ = engine.read_rows(model, [(0, (PRODUCTS[0], ""))], "on")
    parity(model, PRODUCTS, ["transformers", "ours"])
    assert rows[0].given is None


def test_the_commands(model: MoonModel, server: Told, tmp_path: Path) -> None:
    copy.deepcopy(model).save_pretrained(tmp_path / "model")
    folder, run = str(tmp_path / "model"), CliRunner().invoke
    out = run(app, [folder, "--products", "2", "--json"])
    report = json.loads(out.stdout)
    assert out.exit_code == EXIT_OK and report["products"] == 2 and report["model"] == folder
    assert [c["name"] for c in report["comparisons"]] == ["transformers float32"]
    server.fault = ""
    out = run(app, [folder, "--engines", f"ours,vllm:{server.url}#other", "--products", "1"])
    assert isinstance(out.exception, UserError) and "404" in str(out.exception)
    out = run(moonshelf, ["export", folder, "-o", str(tmp_path / "vllm"), "--json"])
    record = json.loads(out.stdout)
    assert out.exit_code == EXIT_OK and record["fingerprint"] in record["serve"]
    assert (tmp_path / "vllm" / "model.safetensors").exists()
    out = run(moonshelf, ["export", folder, "--for", "paper", "-o", str(tmp_path / "paper")])
    assert isinstance(out.exception, UserError) and not (tmp_path / "paper").exists()


def test_a_catalogue_embedded_with_a_writer(model: MoonModel, server: Told, tmp_path: Path) -> None:
    server.fault = ""
    shelf = Catalogue.create(tmp_path / "shelf", cast(Any, model))
    report = shelf.embed(PRODUCTS, reason="on", writer=server.url)
    assert report.new == 3 and report.rationales == 3
    ours = model.encode(PRODUCTS, reason="on")
    rows = {row["id"]: row for row in shelf.store.scan(["id", "vector", "rationale"]).to_pylist()}
    for i, id in enumerate(ours.ids):
        assert rows[id]["rationale"] == ours.rationales[i]
        assert rows[id]["vector"] == pytest.approx(ours.vectors[i].tolist(), abs=1e-5)
    assert json.loads((tmp_path / "shelf" / "run.json").read_text())["config"]["writer"] == server.url
    direct = Catalogue.create(tmp_path / "direct", cast(Any, model))
    with pytest.raises(UserError, match="set reason to on"):
        direct.embed(PRODUCTS, writer=server.url)


def test_a_catalogue_embedded_in_another_precision(model: MoonModel, tmp_path: Path) -> None:
    moon = copy.deepcopy(model)
    shelf = Catalogue.create(tmp_path / "shelf", cast(Any, moon))
    assert shelf.embed(PRODUCTS, precision="bfloat16", device="cpu").new == 3
    assert moon.precision == "bfloat16"
    plain, ours = model.encode(PRODUCTS), moon.encode(PRODUCTS)
    rows = {row["id"]: row["vector"] for row in shelf.store.scan(["id", "vector"]).to_pylist()}
    for i, id in enumerate(ours.ids):
        assert rows[id] == pytest.approx(ours.vectors[i].tolist(), abs=1e-6)
        assert rows[id] != pytest.approx(plain.vectors[i].tolist(), abs=1e-6)
    config = json.loads((tmp_path / "shelf" / "run.json").read_text())["config"]
    assert config["precision"] == "bfloat16"
    with pytest.raises(UserError, match="precision must be one of auto, float32, bfloat16, not 'half'"):
        shelf.embed(PRODUCTS, precision="half")
    with pytest.raises(UserError, match="the model cannot be put on 'abacus'"):
        shelf.embed(PRODUCTS, device="abacus")

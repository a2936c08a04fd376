"""The demo from the first step to the last, with a random model of a few thousand weights."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from moonshelf import cli
from moonshelf.catalogue import Catalogue
from moonshelf.cli.demo import METRIC, best_way, run_demo
from moonshelf.errors import UserError
from moonshelf.evaluation.contract import Result, Versus
from moonshelf.evaluation.encoders.baselines import ModelEncoder
from moonshelf.model import files
from moonshelf.model.modeling import MoonModel
from moonshelf.prompts import PromptSpec
from moonshelf.training.starter import build_starter, build_tokenizer

PRODUCTS = 16


def make_model(folder: Path, seed: int = 0) -> str:
    """A tiny model with weights large enough that products differ in their vectors."""
    tokenizer = build_tokenizer(
        ["category: shoes > heels; colour: red; material: suede\n"] * 50, vocabulary=400
    )
    prompt = PromptSpec(max_rationale_tokens=4)
    model = build_starter(tokenizer, hidden=64, layers=2, vision_hidden=64, vision_depth=2, prompt=prompt)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "gate" not in name:
                weight.copy_(torch.randn(weight.shape) / weight[0].numel() ** 0.5)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def first(model, tmp_path_factory):
    """Output folder and terminal text of a first run through the command line."""
    out = tmp_path_factory.mktemp("demo") / "out"
    arguments = [
        "demo",
        "--out",
        str(out),
        "--products",
        str(PRODUCTS),
        "--model",
        model,
    ]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.exception or result.output
    return out, result.output


def again(out: Path, model: str, **changes) -> str:
    console = Console(record=True, width=200, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    run_demo(out, console=console, **{"products": PRODUCTS, "model": model, **changes})
    return console.export_text()


def test_each_step_says_what_it_did_and_the_end_where_things_are(first, model):
    out, text = first
    steps = re.findall(r"^(\d)/9 (\w+) +[\d.]+ s  (.+)$", text, re.M)
    assert [name for _, name, _ in steps] == [
        "shop", "check", "embed", "index", "search", "duplicates", "figures", "jobs", "report",
    ]  # fmt: skip
    assert f"{PRODUCTS} products" in steps[0][2] and f"{PRODUCTS} new" in steps[2][2]
    for path in ("report.html", "catalogue", "shop/products.jsonl"):
        assert str(out / path) in text and (out / path).exists()
    assert f'search {out / "catalogue"} "' in text and "Done in" in text


def test_the_page_shows_the_figures_of_the_record(first):
    out, text = first
    page = (out / "report.html").read_text(encoding="utf-8")
    record = json.loads((out / "run.json").read_text())
    assert (
        record["command"] == "demo"
        and record["config"]["products"] == PRODUCTS
        and record["fingerprint"] in page
    )
    assert record["results"] and page.count("data:image/jpeg;base64,") > 20 and len(page) < 8e6
    every = (out / "evaluation" / "report.html").read_text(encoding="utf-8")
    for result in record["results"]:
        if result["metric"] == "R@1" and result["encoder"] == "moonshelf reasoned":
            assert f"{100 * result['value']:.1f}" in every
    assert "Worst answers" in every and "evaluation/report.html" in page
    shown = re.search(r"(\S+ %) \[.+Words: the first of 16 results is exactly right", text)
    words = next(r for r in record["results"] if (r["task"], r["metric"]) == ("text → product", "R@1"))
    assert shown and words["corpus"] == PRODUCTS and words["chance"] > 0


def test_the_page_shows_the_work_that_is_done(first):
    out, _ = first
    page = (out / "report.html").read_text(encoding="utf-8")
    for title in ("Gaps filled", "Categories mapped", "Your queries"):
        assert f">{title}</h2>" in page
    suggested = [json.loads(x) for x in (out / "jobs/enriched/suggestions.jsonl").read_text().splitlines()]
    holed = [json.loads(x) for x in (out / "jobs/feed.jsonl").read_text().splitlines()]
    assert {one["id"] for one in suggested} <= {one["id"] for one in holed}
    assert ["attributes" in one for one in holed] == [i % 2 == 0 for i in range(len(holed))]
    assert re.search(r"\d of 8 products got a category", page)
    assert "fused" in page and (out / "jobs/queries/judgements.csv").read_text().count("\n") > 10


@pytest.mark.parametrize(
    ("p", "said"), [(0.3, "fused, nDCG@10 80.0 %; no way is visibly better."), (0.01, "best: tuned")]
)
def test_a_way_is_the_best_only_where_that_can_be_seen(p, said):
    def way(name, value, versus=None):
        head = ("shop", "your queries", "text", "ranking", METRIC, name, value)
        return Result(*head, versus=versus)

    ahead = Versus("fused", 0.01, -0.01, 0.03, p)
    assert said in best_way([way("fused", 0.80), way("tuned", 0.81, ahead)])


def test_the_catalogue_can_be_searched_afterwards(first, model):
    out, _ = first
    catalogue = Catalogue.open(out / "catalogue")
    assert len(catalogue) == PRODUCTS and catalogue.store.manifest.reason == "on"
    hits = catalogue.search("red", k=3).hits  # finds the model by the name in the manifest
    assert len(hits) == 3


def test_a_second_run_reads_nothing_anew(first, model, monkeypatch):
    out, _ = first
    asked: list[int] = []
    encode = ModelEncoder.encode
    monkeypatch.setattr(
        ModelEncoder,
        "encode",
        lambda self, products: asked.append(len(products)) or encode(self, products),
    )
    before = (out / "shop" / "truth.jsonl").stat().st_mtime_ns
    text = again(out, model)
    assert "(there already)" in text and f"0 new, 0 changed, {PRODUCTS} unchanged" in text
    assert sum(asked) == 0 and (out / "shop" / "truth.jsonl").stat().st_mtime_ns == before


def test_direct_vectors_alone_and_another_model(first, model, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(first[0], out)
    assert f"0 new, {PRODUCTS} changed" in again(out, model, reason="off")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "by reading what was written" not in page and "reasoned vectors" not in page
    text = again(out, make_model(tmp_path / "other", seed=1), reason="off")
    assert "made by another model" in text and f"{PRODUCTS} new" in text and "(there already)" in text


def test_what_it_refuses(model, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "STARTER", tmp_path / "no starter")
    with pytest.raises(UserError, match=r"without the starter model.*--model"):
        again(tmp_path / "a", "starter")
    with pytest.raises(UserError, match="the sample has 160 products"):
        again(tmp_path / "a", model, products=161)
    with pytest.raises(UserError, match="off, on, auto"):
        again(tmp_path / "a", model, reason="maybe")
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds other files"):
        again(tmp_path / "mine", model)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="is a file"):
        again(tmp_path / "mine" / "thesis.txt", model)


def test_reported_vectors_are_those_of_the_catalogue(first, model):
    from moonshelf.evaluation.data.dataset import view
    from moonshelf.evaluation.encoders.cache import EmbeddingCache
    from moonshelf.evaluation.report.demo_page import know
    from moonshelf.feeds import read_feed

    out, _ = first
    products = list(read_feed(out / "shop" / "products.jsonl"))
    rows = {row["id"]: row for row in Catalogue.open(out / "catalogue").store.scan(
        ["id", "vector", "rationale", "rationale_valid"]
    ).to_pylist()}  # fmt: skip
    encoder, store = ModelEncoder(MoonModel.from_pretrained(model), "on"), EmbeddingCache()
    bare = products[1].model_copy(update={"title": "", "images": products[1].images[:1]})
    shown = [view(one, text=True, image=True) for one in (bare, products[0])]
    know(store, encoder, products, rows)
    found, fresh = store.encode(encoder, shown), encoder.encode(shown)
    assert found.rationales == fresh.rationales and found.valid.tolist() == fresh.valid.tolist()
    assert abs(found.vectors - fresh.vectors).max() < 1e-4 and store.timings[encoder.name].encoded == 1
    assert found.vectors[1].tolist() == rows[products[0].id]["vector"]

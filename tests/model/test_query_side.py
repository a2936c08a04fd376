"""The text side without torch: the model's own vectors, of any weights of its shape, or nothing."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moonshelf.model import files
from moonshelf.model.encoders import exported
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product

WORDS = ["laptop", "Red running shoes for men, size 42", "é à ü 防水 <emb> x", "women's cotton t-shirt " * 30]

# What a search must not load, and what it prints of its imports.
SEARCH = """
import sys
from moonshelf.cli import app
app(["search", sys.argv[1], *sys.argv[2:], "--json"], standalone_mode=False)
print(" ".join(sys.modules), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def starter() -> MoonModel:
    return MoonModel.from_pretrained("starter")


def test_the_packaged_graph_is_of_the_starters_shape_and_gives_its_vectors(starter: MoonModel) -> None:
    pytest.importorskip("onnxruntime")
    record = json.loads(exported.PACKAGED.with_suffix(".json").read_text(encoding="utf-8"))
    assert record["signature"] == exported.signature(files.STARTER), "python -m research.starter.query_graph"
    side = exported.query_side("starter")
    assert side is not None and (side.fingerprint, side.dim) == (starter.fingerprint, starter.dim)
    products = [Product(id=str(i), title=title) for i, title in enumerate(WORDS)]
    expected, found = starter.encode(products).vectors, side.encode(products).vectors
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert (expected * found).sum(1).min() > 1 - 1e-5


def test_weights_that_were_trained_on_are_read_and_another_shape_has_no_graph(
    starter: MoonModel, tmp_path: Path, model: MoonModel
) -> None:
    pytest.importorskip("onnxruntime")
    import torch

    tuned = copy.deepcopy(starter)
    with torch.no_grad():
        tuned.head.project.weight.mul_(torch.linspace(0.5, 1.5, tuned.dim)[:, None])
    tuned.save_pretrained(tmp_path / "tuned")
    product = Product(id="p", title=WORDS[0])
    expected = tuned.encode([product]).vectors
    side = exported.query_side(str(tmp_path / "tuned"))
    assert side is not None
    assert (side.encode([product]).vectors * expected).sum() > 1 - 1e-5
    copy.deepcopy(model).save_pretrained(tmp_path / "tiny")
    assert exported.query_side(str(tmp_path / "tiny")) is None


def test_a_search_by_words_loads_no_torch(starter: MoonModel, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from moonshelf.catalogue.search import Catalogue

    shelf = Catalogue.create(tmp_path / "shelf", starter)
    titles = ["laptop sleeve", "blue mug", "running shoes"]
    shelf.embed([Product(id=f"p{i}", title=title) for i, title in enumerate(titles)], allow_text_only=True)
    manifest = tmp_path / "shelf" / "manifest.json"
    record = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps({**record, "model": "starter"}), encoding="utf-8")
    shelf = Catalogue.open(tmp_path / "shelf", starter)
    shelf.index()
    expected = shelf.search("laptop", k=3).as_dict()
    for options in ([], ["--mode", "text"], ["--backend", "torch"]):
        command = [sys.executable, "-c", SEARCH, str(tmp_path / "shelf"), "laptop", "-k", "3", *options]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        loaded = set(run.stderr.splitlines()[-1].split())
        if "torch" in options:  # what is asked for computes
            assert "torch" in loaded and "onnxruntime" not in loaded
            continue
        heavy = {"torch", "transformers", "sentence_transformers", "pandas", "scipy", "sklearn"}
        assert not heavy & loaded
        assert "lance_namespace_urllib3_client.models.add_columns_entry" not in loaded
        assert ("onnxruntime" in loaded) is not bool(options)
        found = json.loads(run.stdout)
        assert [hit["id"] for hit in found["hits"]][:1] == ["p0"]
        if not options:
            assert [hit["id"] for hit in found["hits"]] == [hit["id"] for hit in expected["hits"]]


def test_without_onnxruntime_the_model_itself_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert exported.query_side("starter") is None

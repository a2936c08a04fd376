"""The direct path under ONNX Runtime and OpenVINO: the model's own vectors, in a catalogue too."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from moonshelf.catalogue.manifest import load_model, name_of
from moonshelf.catalogue.search import Catalogue
from moonshelf.errors import UserError
from moonshelf.model.encoders import exported
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product


@pytest.mark.parametrize("backend", exported.BACKENDS)
def test_an_export_gives_the_models_vectors(
    backend: str, saved: MoonModel, products: list[Product], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip(exported.BACKENDS[backend])
    graph = importlib.import_module("moonshelf.model.encoders.graph")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = f"{backend}:{saved.source}"
    assert name_of(name) == str(saved.source)  # a catalogue names the model itself
    encoder = load_model(name)  # exported, at first use
    expected, found = saved.encode(products), encoder.encode(products)
    assert (expected.vectors * found.vectors).sum(1).min() > 1 - 1e-5
    assert abs(expected.weights - found.weights).max() < 1e-4
    assert encoder.fingerprint == saved.fingerprint
    shelf = Catalogue.create(tmp_path / "shelf", name)
    assert shelf.embed(products, allow_text_only=True).new == len(products)
    assert Catalogue.open(tmp_path / "shelf", saved).search("red shoe", mode="vector", k=3).hits
    with pytest.raises(UserError, match="writes no rationales"):
        encoder.encode(products, reason="on")
    folder = encoder.source  # type: ignore[attr-defined]
    other = next(one for one in exported.BACKENDS if one != backend)
    with pytest.raises(UserError, match=f"was exported for {backend}"):
        graph.load(str(folder), other)
    (folder / exported.RECORD).write_text("{}")
    with pytest.raises(UserError, match=r"export\.json"):
        load_model(str(folder))
    with pytest.raises(UserError, match="holds something else"):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "file").write_text("mine")
        graph.export(str(saved.source), tmp_path / "other", backend)


def test_what_cannot_be_exported_names_the_operator(model_2_5: MoonModel, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    graph = importlib.import_module("moonshelf.model.encoders.graph")
    copy.deepcopy(model_2_5).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"the TowerPath cannot be exported: .* stops it"):
        graph.export(str(tmp_path / "model"), tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


SILENT = """
import multiprocessing, sys, urllib.request

sent = []  # a thread sends, so what is raised here would not be seen
urllib.request.urlopen = multiprocessing.Process.start = lambda *_, **__: sent.append("something")
from pathlib import Path
from moonshelf.model.encoders.exported import Exported
from moonshelf.model.encoders.graph import export
export(sys.argv[1], Path(sys.argv[2]), "openvino", int8=sys.argv[3] == "int8")
Exported(Path(sys.argv[2]))
assert not sent and sys.modules["openvino_telemetry"] is None, sent
"""


@pytest.mark.parametrize("kind", ("float", "int8"))
def test_openvino_sends_nothing(kind: str, saved: MoonModel, tmp_path: Path) -> None:
    for package in ("onnxscript", "openvino", *(["nncf"] if kind == "int8" else [])):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    command = [sys.executable, "-c", SILENT, str(saved.source), str(tmp_path / "out"), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "torchvision" not in done.stderr and "Warning" not in done.stderr, done.stderr[-2000:]

"""The text side of a model without torch, for `moonshelf search`: it starts in a fraction of a second.

The package brings the text graph of the starter's architecture as ONNX, 0.2 MB, without weights: they are
read from the model's own safetensors when the graph is loaded. So nothing is stored twice, the vectors are
those of the folder at hand, whose fingerprint they carry, and a model that was fine-tuned from the starter
starts as quickly. `python -m research.starter.query_graph` writes the graph anew for another architecture.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from moonshelf.files import read_json, read_settings
from moonshelf.model import files
from moonshelf.model.configuration import MoonConfig
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec

TEXT_INPUTS = ("ids", "kinds", "positions", "places", "merged", "deep", "seen")
PACKAGED = Path(__file__).with_name("query.onnx")
WEIGHTS = {"decoder": "model.language_model", "head": ""}  # of a graph -> of the folder's files

Graph = Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]


def onnx_graph(path: Path, weights: Mapping[str, np.ndarray] | None = None) -> Graph:
    """A graph under ONNX Runtime on the CPU; `weights` are those that the file leaves to whoever loads it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # of its remarks on nodes that it drops
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would cost other processes
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in (weights or {}).values()]
    if weights:
        options.add_external_initializers(list(weights), values)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    named = {given.name for given in session.get_inputs()}  # what a graph has no use for is left out of it
    return lambda inputs: session.run(None, {name: inputs[name] for name in inputs if name in named})


class QuerySide:
    """The text side of a model folder: `encode` for products that are words alone, and nothing else."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.prompt = read_settings(PromptSpec, folder / "prompt.json")
        self.fingerprint = files.digest(folder).hexdigest()[:16]
        moon, config = read_settings(MoonConfig, folder / "moon.json"), read_json(folder / "config.json")
        self.dim, d = moon.dim, moon.hidden
        deep = len(config["vision_config"].get("deepstack_visual_indexes", ()))
        self.empty = {
            "merged": np.zeros((1, d), np.float32), "deep": np.zeros((deep, 1, d), np.float32),
            "seen": np.zeros((1, max(moon.pictures, 1), d), np.float32),
        }  # fmt: skip
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.run = onnx_graph(PACKAGED, _weights(folder, read_json(PACKAGED.with_suffix(".json"))["weights"]))

    def encode(self, products: Sequence[Product], reason: str = "off") -> SimpleNamespace:
        """`vectors` (n, dim) float32 of unit length, those of `MoonModel.encode` to rounding."""
        assert reason == "off"
        return SimpleNamespace(vectors=np.concatenate([self._vector(product) for product in products]))

    def _vector(self, product: Product) -> np.ndarray:
        prompt, text = self.prompt, self.prompt.text_of(product)
        before = prompt.before.replace("{instruction}", prompt.instruction)
        pieces = before, text.lower() if prompt.lower else text, prompt.after, prompt.emb
        found = [self.tokenizer.encode(piece, add_special_tokens=False).ids for piece in pieces]
        ids = np.array([[*chain(*found)]], np.int64)
        kinds = np.repeat([[0, 2, 0, 3]], [len(piece) for piece in found], axis=1)
        positions = np.broadcast_to(np.arange(ids.shape[1]), (3, *ids.shape))
        row = {"ids": ids, "kinds": kinds, "positions": positions, "places": np.zeros_like(ids), **self.empty}
        return self.run({name: np.ascontiguousarray(value) for name, value in row.items()})[0]


def query_side(name: str) -> QuerySide | None:
    """The text side of a model by its name or folder; None without onnxruntime or a graph of its shape.

    Raises UserError for a folder that `MoonModel.from_pretrained` would refuse.
    """
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return None
    folder = files.find(name, download=False)
    if not (folder / "moon.json").is_file() or not (folder / "tokenizer.json").is_file():
        return None
    if signature(folder) != read_json(PACKAGED.with_suffix(".json"))["signature"]:
        return None
    files.check_safety(folder)
    files.verify_manifest(folder)
    return QuerySide(folder)


def signature(folder: Path) -> str:
    """Hash of all that decides the text graph of a folder, but for its weights."""
    config = read_json(folder / "config.json")
    shape = {key: value for key, value in config["text_config"].items() if key not in ("dtype", "use_cache")}
    deep = len(config["vision_config"].get("deepstack_visual_indexes", ()))
    moon = read_settings(MoonConfig, folder / "moon.json").model_dump(mode="json")
    record = [config["model_type"], shape, deep, moon]
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def _weights(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Weights of a graph by their names in it, float32, from the folder's safetensors."""
    from safetensors import safe_open

    wanted = {}
    for name in names:
        part, _, rest = name.partition(".")
        wanted[f"{WEIGHTS[part]}.{rest}".removeprefix(".")] = name
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "numpy") as file:
            for key in wanted.keys() & set(file.keys()):
                found[wanted[key]] = file.get_tensor(key).astype(np.float32)
    return {name: found[name] for name in names}

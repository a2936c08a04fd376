"""The direct path without torch: graphs that `graph` wrote, run by ONNX Runtime or OpenVINO.

`Exported` is a whole model in this form, texts and pictures, as the encoder of a catalogue. `QuerySide` is
what `moonshelf search` uses, with the text graph of the starter's architecture that the package brings: 0.2
MB and no weights, which are read from the model's own safetensors. So nothing is stored twice, the vectors
are those of the folder at hand, whose fingerprint they carry, and a model that was fine-tuned from the
starter starts as quickly. `python -m research.starter.query_graph` writes that graph anew for another
architecture. Nothing is imported here that takes long; torch only where rows are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from moonshelf.errors import UserError
from moonshelf.files import read_json, read_settings
from moonshelf.model import files
from moonshelf.model.configuration import MoonConfig
from moonshelf.model.encoders.base import BOTH, Numbered, Reason, Run, Written, check_mode
from moonshelf.model.encoders.stream import Streamed
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec

if TYPE_CHECKING:
    from moonshelf.errors import Problem
    from moonshelf.model.processing import Batch

Backend = Literal["onnx", "openvino"]
BACKENDS = {"onnx": "onnxruntime", "openvino": "openvino"}  # and the package of each
RECORD = "export.json"
TEXT, TOWER = "text", "tower"
TEXT_INPUTS = ("ids", "kinds", "positions", "places", "merged", "deep", "seen")
TOWER_INPUTS = ("patches", "corners", "shares", "turns")
PACKAGED = Path(__file__).with_name("query.onnx")
WEIGHTS = {"decoder": "model.language_model", "head": ""}  # of a graph -> of the folder's files

Graph = Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]


class Record(BaseModel):
    """`export.json`: what was exported, and the shapes that its graphs' inputs have."""

    model_config = ConfigDict(extra="forbid")

    backend: Backend
    int8: bool = False
    model: str
    fingerprint: str = Field(max_length=100)
    dim: int = Field(gt=0, le=65_536)
    hidden: int = Field(gt=0, le=65_536)
    deep: int = Field(ge=0, le=64)  # layers of the tower that enter the decoder (DeepStack)
    pictures: int = Field(ge=0, le=66)  # summaries of a row's pictures
    side: int = Field(gt=0, le=4_096)  # of the tower's grid of learned positions
    merge: int = Field(gt=0, le=128)  # patches a token, a side


# ---- running a graph -------------------------------------------------------------------------------


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


def silent_openvino() -> Any:
    """OpenVINO without `openvino_telemetry`, which posts what is converted to Google Analytics, unasked."""
    # None makes importing it fail, as where it is not installed: OpenVINO and nncf then go on without it.
    cast(dict[str, Any], sys.modules).setdefault("openvino_telemetry", None)
    return import_module("openvino")


def openvino_graph(path: Path) -> Graph:
    """The same under OpenVINO, in float32 wherever it could do with less."""
    core = silent_openvino().Core()
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads := int(os.environ.get("OMP_NUM_THREADS") or 0):
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(str(path), "CPU", settings)
    named = {name for given in compiled.inputs for name in given.names}

    def run(inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        found = compiled({name: inputs[name] for name in inputs if name in named})
        return [np.array(found[output]) for output in compiled.outputs]

    return run


# ---- a whole model ---------------------------------------------------------------------------------


class Exported(Streamed):
    """A folder of `moonshelf export … --for onnx` as an `Encoder`: `MoonModel`'s direct vectors.

    `engine` reads rows and fills batches for it as for a model; it writes no rationales.
    """

    reads, writes, queries = BOTH, False, None

    def __init__(self, folder: Path) -> None:
        self.record = read_settings(Record, folder / RECORD)
        need(self.record.backend)
        files.verify_manifest(folder)
        self.source, self.prompt = folder, read_settings(PromptSpec, folder / "prompt.json")
        self.name = f"{self.record.backend}:{self.record.model}"
        self.fingerprint, self.dim = self.record.fingerprint, self.record.dim
        run, form = (openvino_graph, "xml") if self.record.backend == "openvino" else (onnx_graph, "onnx")
        self.text, self.tower = run(folder / f"{TEXT}.{form}"), run(folder / f"{TOWER}.{form}")

    @cached_property
    def processor(self) -> Any:
        from moonshelf.model.processing import MoonProcessor

        return MoonProcessor.from_pretrained(str(self.source))

    @cached_property
    def prepare(self) -> Any:
        from moonshelf.model.processing import Preprocessor

        return Preprocessor(self.processor, self.prompt)

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cpu")

    def inferring(self) -> AbstractContextManager[None]:
        return nullcontext()

    def read_rows(self, numbered: Sequence[Numbered], reason: Reason) -> tuple[list[Any], list[Problem]]:
        from moonshelf.model.engine import read_rows

        if any(rationale for _, (_, rationale) in numbered):
            raise UserError(f"{self.name} reads no rationales: its graphs hold the direct vector alone.")
        return read_rows(self, numbered, reason)  # type: ignore[arg-type]  # of a model it uses what is here

    def runner(self, reason: Reason, batch_tokens: int) -> Run:
        from moonshelf.model.engine import encode_rows, make_batch

        check_mode(self, self.name, reason)

        def compute(rows: list[Any]) -> list[Written]:
            batch = make_batch(self, rows, [self.prepare.emb])  # type: ignore[arg-type]
            return [Written(*both) for both in zip(*self.direct(batch), strict=True)]

        tokens = self.budget(reason, batch_tokens)
        return lambda rows: encode_rows(self, rows, tokens, compute)  # type: ignore[arg-type]

    def budget(self, reason: Reason, tokens: int) -> int:
        from moonshelf.model.engine import best_batch_tokens

        return best_batch_tokens(self, reason, tokens)  # type: ignore[arg-type]

    def direct(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (B, dim) float32 of unit length and modality weights (B, 3); no rationales."""
        attention, image, text = (m.numpy() for m in (batch.attention, batch.image_mask, batch.text_mask))
        kinds = np.select([image, text, attention], [1, 2, 0], -1).astype(np.int64)
        kinds[np.arange(len(kinds)), batch.emb.numpy()] = 3
        grids = np.zeros((0, 3), np.int64) if batch.grid is None else batch.grid.numpy()
        merged, deep, seen = self._pictures(batch, grids, image.sum(1).tolist())
        inputs = {
            "ids": batch.input_ids.numpy(), "kinds": kinds,
            "positions": rotary(image, grids[:, 1:] // self.record.merge),
            "places": np.where(image, image.cumsum().reshape(image.shape), 0),
            "merged": merged, "deep": deep, "seen": seen,
        }  # fmt: skip
        vectors, weights = self.text(inputs)
        return vectors, weights

    def _pictures(self, batch: Batch, grids: np.ndarray, tokens: list[int]) -> tuple[np.ndarray, ...]:
        """What the tower gives for all pictures, (1 + N, d) and (K, 1 + N, d), of which row 0 is nothing; the
        summaries (B, n, d) of each row's."""
        record, rows = self.record, len(tokens)
        merged = [np.zeros((1, record.hidden), np.float32)]
        deep = [np.zeros((record.deep, 1, record.hidden), np.float32)]
        empty = np.zeros((rows, max(record.pictures, 1), record.hidden), np.float32)
        if batch.pixel_values is None:
            return merged[0], deep[0], empty
        patches = batch.pixel_values.numpy()
        for one, grid in zip(np.split(patches, grids.prod(1).cumsum()[:-1]), grids.tolist(), strict=True):
            shape = grid_of(*grid[1:], record.side, record.merge)
            found = self.tower({"patches": one, **dict(zip(TOWER_INPUTS[1:], shape, strict=True))})
            merged.append(found[0])
            deep.append(found[1].reshape(record.deep, -1, record.hidden))
        return np.concatenate(merged), np.concatenate(deep, 1), self._summaries(merged, deep, tokens, empty)

    def _summaries(
        self, merged: list[np.ndarray], deep: list[np.ndarray], tokens: list[int], empty: np.ndarray
    ) -> np.ndarray:
        if not self.record.pictures:
            return empty
        import torch

        from moonshelf.model.head import summaries

        visual = SimpleNamespace(
            pooler_output=[torch.from_numpy(one) for one in merged[1:]],
            deepstack_features=[
                [torch.from_numpy(one[k]) for one in deep[1:]] for k in range(self.record.deep)
            ],
        )
        return summaries(visual, tokens, torch.from_numpy(empty)).numpy()


def rotary(image: np.ndarray, grids: np.ndarray) -> np.ndarray:
    """Rotary positions (3, B, L) int64 of rows whose image tokens are marked (B, L), pictures of merged grids
    (n, 2) in order: a text token moves on by one in all three, a picture by its longer side (M-RoPE)."""
    positions, left = np.zeros((3, *image.shape), np.int64), iter(grids.tolist())
    for row, marks in enumerate(image.tolist()):
        at = place = 0
        while at < len(marks):
            height, width = next(left) if marks[at] else (1, 1)
            cells = np.divmod(np.arange(height * width), width)
            positions[:, row, at : at + height * width] = place + np.stack([0 * cells[0], *cells])
            at, place = at + height * width, place + max(height, width)
    return positions


@lru_cache(64)
def grid_of(height: int, width: int, side: int, merge: int) -> tuple[np.ndarray, ...]:
    """Of a picture of so many patches: corners (P, 4) int64 and shares (P, 4) float32 of learned positions,
    and rotary places (P, 2) int64, as transformers computes them."""
    import torch
    from transformers import vision_utils

    grid = torch.tensor([[1, height, width]])
    found = vision_utils.get_vision_interpolation_indices_and_weights(
        grid, num_grid_per_side=side, mode="bilinear", align_corners=True, spatial_merge_size=merge
    )
    corners, shares = (one.numpy() for one in found)
    turns = vision_utils.get_vision_position_ids(grid, merge).numpy()
    return corners.astype(np.int64), shares.astype(np.float32), turns.astype(np.int64)


def need(backend: str) -> None:
    """Raise `UserError` where what runs a graph is not installed."""
    from importlib.util import find_spec

    if find_spec(BACKENDS[backend]) is None:
        raise UserError(f"{backend} needs a package that is not here: pip install 'moonshelf[{backend}]'.")


# ---- the query side --------------------------------------------------------------------------------


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
    try:
        folder = files.find(name, download=False)
    except UserError:  # whoever loads the whole model says what is wrong
        return None
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
    moon = read_settings(MoonConfig, folder / "moon.json").model_dump(mode="json", exclude_defaults=True)
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

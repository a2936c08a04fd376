"""Writing the direct path as graphs that need no torch: ONNX, and from it OpenVINO's own form.

Two graphs, because a text has no use for the tower: `tower` reads one picture; `text` reads a batch of
rows, puts what the tower gave in its place, and gives vectors. Both take any number of rows, tokens and
patches. What follows from a picture's shape alone is computed outside (`exported`) and is an input: a graph
cannot loop.

The layers are the backbone's own modules. The decoder's loop is written down here, as torch.export stops at
what `transformers` puts around it: masks whose form depends on data, and hooks.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from moonshelf.errors import UserError
from moonshelf.files import write_json
from moonshelf.model import files
from moonshelf.model.encoders.exported import (
    RECORD,
    TEXT,
    TEXT_INPUTS,
    TOWER,
    TOWER_INPUTS,
    Exported,
    Record,
    need,
    silent_openvino,
)  # fmt: skip
from moonshelf.model.modeling import MoonModel, normalise
from moonshelf.product import Product
from moonshelf.sample import shop


class TextPath(nn.Module):
    """Rows of tokens to vectors: the decoder with its taps, then the head."""

    def __init__(self, model: MoonModel) -> None:
        super().__init__()
        self.decoder, self.head, self.config = model.decoder, model.head, model.config

    def forward(
        self, ids: Tensor, kinds: Tensor, positions: Tensor, places: Tensor, merged: Tensor, deep: Tensor,
        seen: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Vectors (B, dim) of unit length, modality weights (B, 3); the inputs are `exported.Inputs`."""
        image, text = kinds == 1, kinds == 2
        raw = torch.where(image[..., None], merged[places], self.decoder.embed_tokens(ids))
        if self.head.glance is not None:
            raw = raw + image[..., None] * self.head.glanced(seen)[:, None]
        order = torch.arange(ids.shape[1])
        mask = (order[None, :] <= order[:, None])[None, None] & (kinds >= 0)[:, None, None, :]
        turns = self.decoder.rotary_emb(raw, positions)
        states, taps = raw, []
        for number, layer in enumerate(self.decoder.layers):
            states = layer(states, attention_mask=mask, position_embeddings=turns)
            taps.append(states)
            if number < deep.shape[0]:
                states = states + image[..., None] * deep[number][places]
        states = self.decoder.norm(states)
        e = (states * (kinds == 3)[..., None]).sum(1)
        reading: Any = SimpleNamespace(
            raw=raw, states=states, taps=[taps[layer] for layer in self.config.taps], seen=seen
        )
        batch: Any = SimpleNamespace(input_ids=ids, image_mask=image, text_mask=text)
        nothing = ids[:, :1], states[:, :1], torch.zeros_like(image[:, :1])
        vectors, weights = self.head(e, reading, batch, nothing)
        return normalise(vectors), weights


class _OneRun:
    """What splits the patches of a batch by picture, where there is one picture: all of them."""

    def __init__(self, length: Any) -> None:
        self.length = length

    def __getitem__(self, _: slice) -> _OneRun:
        return self

    def __sub__(self, _: _OneRun) -> _OneRun:
        return self

    def tolist(self) -> list[Any]:
        return [self.length]


class TowerPath(nn.Module):
    """Patches of one picture to what the language model reads of it."""

    def __init__(self, model: MoonModel) -> None:
        super().__init__()
        self.tower = model.backbone.model.visual

    def forward(
        self, patches: Tensor, corners: Tensor, shares: Tensor, turns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """patches (P, patch) float32; corners (P, 4) int64 and shares (P, 4) float32, of the grid of learned
        positions; turns (P, 2) int64, rotary -> merged (P / 4, d), deep (K, P / 4, d)."""
        output = self.tower(
            patches, torch.ones(1, 3).long(), interp_indices=corners, interp_weights=shares,
            position_ids=turns, cu_seqlens=_OneRun(patches.shape[0]),
        )  # fmt: skip
        merged = output.pooler_output
        deep = getattr(output, "deepstack_features", None) or []
        return merged, torch.stack(list(deep)) if deep else merged.new_zeros(0, *merged.shape)


# torch on operators of a torchvision that is not here, which no graph of ours has, and the quantiser on
# shapes and folded constants, which `traced` has given it.
for name in ("torch.onnx._internal.exporter._registration", "root"):
    logging.getLogger(name).addFilter(
        lambda said: not re.match("torchvision is not|Please consider to run pre-proc", str(said.msg))
    )

TOLERANCE = 1e-3  # of 1 - cosine between a graph in float32 and the model that it was made of


def load(name: str, backend: str = "") -> Exported:
    """An export by its folder, or any model of ours under a backend, exported once to the user's cache.

    Raises UserError where it cannot be exported, or was exported for another backend.
    """
    folder = files.find(name, download=False)
    if not (folder / RECORD).is_file():
        need(backend)
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        there = home / "moonshelf" / f"{files.digest(folder).hexdigest()[:16]}-{backend}"
        if not (there / RECORD).is_file():
            print(f"exporting {name} for {backend}, once, to {there} …", file=sys.stderr)
            export(name, there, backend)
        folder = there
    found = Exported(folder)
    if backend and found.record.backend != backend:
        raise UserError(
            f"{name} was exported for {found.record.backend}, not for {backend}: leave --backend."
        )
    return found


def export(name: str, out: Path, backend: str, int8: bool = False) -> dict[str, Any]:
    """Write the folder that `exported.Exported` reads; the report compares its vectors with the model's.

    Raises UserError for a backend that is not installed, a folder that holds something else, a model of which
    an operator cannot be exported (it names it), and float32 graphs that do not give the model's vectors.
    """
    need(backend)
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file()):
        raise UserError(f"{out} holds something else: name a new or empty folder, or an earlier export.")
    model = MoonModel.from_pretrained(name)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        new = Path(folder)
        _write(model, new, name, backend, int8)
        report = compare(model, Exported(new))
        if report["cosine"] < 1 - TOLERANCE and not int8:
            raise UserError(
                f"the {backend} graphs give other vectors than {name}: least cosine {report['cosine']}."
            )
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(new, out)
    return {"folder": str(out), "backend": backend, "int8": int8, "fingerprint": model.fingerprint, **report}


def _write(model: MoonModel, out: Path, name: str, backend: str, int8: bool) -> None:
    for graph, path, inputs in (
        (TEXT, TextPath(model), text_inputs(model)), (TOWER, TowerPath(model), _tower_inputs(model)),
    ):  # fmt: skip
        file = out / f"{graph}.onnx"
        traced(path, *inputs).save(str(file), external_data=True)
        if int8 and backend == "onnx":
            from onnxruntime.quantization import quantize_dynamic

            quantize_dynamic(file, file, op_types_to_quantize=["MatMul", "Gemm"])
            file.with_name(f"{file.name}.data").unlink(missing_ok=True)
        if backend == "openvino":
            openvino = silent_openvino()
            converted = openvino.convert_model(str(file))
            if int8:
                if find_spec("nncf") is None:
                    raise UserError(
                        "OpenVINO makes int8 weights with nncf, which is not here: pip install nncf."
                    )
                converted = import_module("nncf").compress_weights(converted)
            openvino.save_model(converted, str(file.with_suffix(".xml")), compress_to_fp16=False)
            for old in out.glob(f"{file.name}*"):
                old.unlink()
    vision = _vision(model)
    record = Record(
        backend=cast(Any, backend), int8=int8, model=name,
        fingerprint=model.fingerprint + "-int8" * int8, dim=model.dim,
        hidden=model.config.hidden, deep=_deep(model), pictures=model.config.pictures,
        side=int(vision.num_position_embeddings**0.5), merge=vision.spatial_merge_size,
    )  # fmt: skip
    write_json(out / RECORD, record.model_dump())
    write_json(out / "prompt.json", model.prompt.model_dump())
    model.processor.image_processor.save_pretrained(out)
    model.processor.tokenizer.save_pretrained(out)
    files.write_manifest(out)


def compare(model: MoonModel, other: Exported, size: int = 160) -> dict[str, Any]:
    """Least cosine over products of the sample shop (texts, photos, both), R@1 of both from each photo to the
    titles, and the paired loss of the second, (mean, low, high) at 95 % by the normal approximation; a shop
    this small tells a loss, not how good a model is."""
    products = shop(size).products
    photos = [Product(id=one.id, images=one.images[:1]) for one in products]
    titles = [Product(id=one.id, title=one.title) for one in products]
    group = np.array([one.group_id or one.id for one in products])
    found: dict[str, Any] = {}
    all_vectors, hits = [], []
    for key, encoder in (("r_at_1", model), ("r_at_1_exported", other)):
        asked, listed = encoder.encode(photos).vectors, encoder.encode(titles).vectors
        hits.append((group[(asked @ listed.T).argmax(1)] == group).astype(float))
        found[key] = round(float(hits[-1].mean()), 4)
        all_vectors.append(np.concatenate([asked, listed, encoder.encode(products[:40]).vectors]))
    least = float((all_vectors[0] * all_vectors[1]).sum(1).min())
    lost = hits[0] - hits[1]
    half = 1.96 * float(lost.std()) / len(lost) ** 0.5
    found["loss"] = [round(float(lost.mean()) + x, 4) for x in (0, -half, half)]
    return {"cosine": round(least, 6), **found}


Inputs = tuple[tuple[Any, ...], tuple[Any, ...], tuple[str, ...], tuple[str, ...]]


def text_inputs(model: MoonModel) -> Inputs:
    """Values to trace with, which of their dimensions vary, and the names of inputs and outputs."""
    d, deep = model.config.hidden, _deep(model)
    rows, length, some = (torch.export.Dim(name) for name in ("rows", "length", "some"))
    ids, seen = torch.full((2, 7), model.prepare.emb), torch.zeros(2, max(model.config.pictures, 1), d)
    values = (
        ids,
        ids % 4,
        torch.zeros(3, 2, 7).long(),
        ids * 0,
        torch.zeros(5, d),
        torch.zeros(deep, 5, d),
        seen,
    )
    row = {0: rows, 1: length}
    shapes = row, row, {1: rows, 2: length}, row, {0: some}, {1: some}, {0: rows}
    return values, shapes, TEXT_INPUTS, ("vectors", "weights")


def _tower_inputs(model: MoonModel) -> Inputs:
    vision, four = _vision(model), torch.zeros(16, 4)
    patches = torch.zeros(16, 3 * vision.temporal_patch_size * vision.patch_size**2)
    values = patches, four.long(), four, torch.zeros(16, 2).long()
    return values, ({0: 4 * torch.export.Dim("units")},) * 4, TOWER_INPUTS, ("merged", "deep")


def _vision(model: MoonModel) -> Any:
    return model.backbone.config.vision_config


def _deep(model: MoonModel) -> int:
    return len(getattr(_vision(model), "deepstack_visual_indexes", ()))


def traced(
    path: nn.Module, values: tuple[Any, ...], shapes: tuple[Any, ...], names: tuple[str, ...],
    given: tuple[str, ...], optimize: bool = True,
) -> Any:  # fmt: skip
    """The ONNX program of a path; UserError where torch cannot export it."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # torch of its own use of it
            program = torch.export.export(path.eval(), values, dynamic_shapes=shapes, strict=False)
            return torch.onnx.export(
                program, input_names=list(names), output_names=list(given), dynamo=True, optimize=optimize,
                verbose=False,
            )  # fmt: skip
    except Exception as error:  # torch has a dozen classes for it
        raise UserError(f"the {type(path).__name__} cannot be exported: {_stopped(error)}.") from error


def _stopped(error: BaseException) -> str:
    """The operator that a failed export names, and what torch says of it in one line."""
    said, seen = str(error), error
    while seen.__cause__ is not None:
        seen = seen.__cause__
        said += "\n" + str(seen)
    operator = re.search(r"\b(?:torch\.ops\.)?(aten[.:]+[\w.]+|prims?\.[\w.]+)", said)
    line = next((one.strip() for one in str(seen).splitlines() if one.strip()), type(seen).__name__)
    return f"{operator[1] if operator else 'an operation'} stops it ({line[:200]})"

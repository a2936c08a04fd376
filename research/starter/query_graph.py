"""Write the text graph that `moonshelf search` starts with, into the sources of the package.

    python -m research.starter.query_graph

It holds no weights, so it is to be written anew only where the starter's architecture has changed, of which
`tests/model/test_query_side.py` tells. torch, onnx and onnxscript are needed (extra `dev`).

The layers are the backbone's own modules. The decoder's loop is written down here, as torch.export stops at
what `transformers` puts around it: masks whose form depends on data, and hooks.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from moonshelf.files import write_json
from moonshelf.model.encoders.exported import PACKAGED, TEXT_INPUTS, signature
from moonshelf.model.modeling import MoonModel, normalise

Inputs = tuple[tuple[Any, ...], tuple[Any, ...], tuple[str, ...], tuple[str, ...]]


class TextPath(nn.Module):
    """Rows of tokens to vectors: the decoder with its taps, then the head."""

    def __init__(self, model: MoonModel) -> None:
        super().__init__()
        self.decoder, self.head, self.config = model.decoder, model.head, model.config

    def forward(
        self, ids: Tensor, kinds: Tensor, positions: Tensor, places: Tensor, merged: Tensor, deep: Tensor,
        seen: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Vectors (B, dim) of unit length and modality weights (B, 3) of rows:

        ids, kinds (B, L) int64, tokens and what each is (0 scaffold, 1 image, 2 text, 3 `<emb>`, -1 padding);
        positions (3, B, L) int64, rotary; places (B, L) int64, which row of merged (N, d) and deep (K, N, d),
        what the tower gave, an image token stands for; seen (B, n, d), summaries of each row's pictures.
        """
        image, text = kinds == 1, kinds == 2
        raw = torch.where(image[..., None], merged[places], self.decoder.embed_tokens(ids))
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


def write_query_graph(model: MoonModel, file: Path) -> None:
    """The text graph without weights, and beside it its shape and the names of the weights that it wants.

    Not optimised: an optimiser folds weights together, and joins those that are equal.
    """
    import onnx

    assert model.source is not None
    proto = traced(TextPath(model), *text_inputs(model)).model_proto
    ours = {name for name, _ in TextPath(model).named_parameters()}
    names = []
    for tensor in proto.graph.initializer:
        if tensor.name in ours:
            names.append(tensor.name)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="weights")
    for kept in (proto.graph.value_info, proto.metadata_props, *(n.metadata_props for n in proto.graph.node)):
        del kept[:]  # stack traces of whoever exported it, and shapes that are found anew
    for node in proto.graph.node:
        node.ClearField("doc_string")
    file.write_bytes(proto.SerializeToString(deterministic=True))
    write_json(file.with_suffix(".json"), {"signature": signature(model.source), "weights": sorted(names)})


def text_inputs(model: MoonModel) -> Inputs:
    """Values to trace with, which of their dimensions vary, and the names of inputs and outputs."""
    d, deep = (
        model.config.hidden,
        len(getattr(model.backbone.config.vision_config, "deepstack_visual_indexes", ())),
    )
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


def traced(
    path: nn.Module, values: tuple[Any, ...], shapes: tuple[Any, ...], names: tuple[str, ...],
    given: tuple[str, ...],
) -> Any:  # fmt: skip
    with torch.no_grad():
        program = torch.export.export(path.eval(), values, dynamic_shapes=shapes, strict=False)
        return torch.onnx.export(
            program, input_names=list(names), output_names=list(given), dynamo=True, optimize=False,
            verbose=False,
        )  # fmt: skip


if __name__ == "__main__":
    write_query_graph(MoonModel.from_pretrained("starter"), PACKAGED)

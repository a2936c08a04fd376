"""Write the text graph that `moonshelf search` starts with, into the sources of the package.

    python -m research.starter.query_graph

It holds no weights, so it is to be written anew only where the starter's architecture has changed, of which
`tests/model/test_query_side.py` tells. torch, onnx and onnxscript are needed (extra `dev`).
"""

from __future__ import annotations

from pathlib import Path

from moonshelf.files import write_json
from moonshelf.model.encoders.exported import PACKAGED, signature
from moonshelf.model.encoders.graph import TextPath, text_inputs, traced
from moonshelf.model.modeling import MoonModel


def write_query_graph(model: MoonModel, file: Path) -> None:
    """The text graph without weights, and beside it its shape and the names of the weights that it wants.

    Not optimised: an optimiser folds weights together, and joins those that are equal.
    """
    import onnx

    assert model.source is not None
    proto = traced(TextPath(model), *text_inputs(model), optimize=False).model_proto
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


if __name__ == "__main__":
    write_query_graph(MoonModel.from_pretrained("starter"), PACKAGED)

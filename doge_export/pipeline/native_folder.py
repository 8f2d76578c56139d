"""Target native: a folder whose graphs are one node each, over weights in the native decoder's form.

The folder is exported for onnxruntime first, and each graph is then replaced: `onnx/model.onnx` holds the node
`doge.Decoder`, and `onnx/model.onnx_data` beside it is a weight file of plugins/cpu. Any onnxruntime from 1.17 on runs
it with the library of `doge-export plugin build --cpu` registered as one of custom operators.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from doge_export.checkpoint.architecture import Architecture
from doge_export.errors import DogeExportError
from doge_export.package.manifest import Manifest
from doge_export.runtime.native.backend import native_library
from doge_export.runtime.native.cache import Source, planned
from doge_export.runtime.native.interface import Kind
from doge_export.runtime.native.support import PRECISIONS, NotNative, cache_kind, check_architecture

IR_VERSION, OPSET = 8, 17
"""Old enough for onnxruntime 1.17."""


def check_native(architecture: Architecture, precisions: tuple[str, ...]) -> None:
    """Check before the work that a model has a native form, and that there is a library to write it.

    Raises:
        DogeExportError: it has none, or there is none.
    """
    if architecture.task != "text-generation":
        raise DogeExportError(f"target native is of models that write text, and this one is for {architecture.task}")
    others = [precision for precision in precisions if precision not in PRECISIONS]
    if others:
        raise DogeExportError(f"target native comes in {', '.join(PRECISIONS)}, not in {others[0]}")
    try:
        check_architecture(architecture)
        native_library()
    except NotNative as why:
        raise DogeExportError(f"the checkpoint cannot be exported for target native: {why}") from why


def make_native(folder: Path, manifest: Manifest) -> Manifest:
    """Replace every graph of a folder of target onnxruntime by its native form; return the new manifest.

    Raises:
        DogeExportError: a graph has no native form.
    """
    graphs = {}
    for name, graph in manifest.graphs.items():
        try:
            library = native_library()
            source = Source(folder, manifest, name)
            data = folder / f"{name}_data"
            staged = data.with_name(f"{data.name}.new")
            with planned(library, source, source.digest(None)) as weights, staged.open("wb") as stream:
                for offset, content in weights.content():
                    stream.seek(offset)
                    stream.write(content.data)
                stream.truncate(weights.bytes)
        except NotNative as why:
            raise DogeExportError(f"{name} has no native form: {why}") from why
        staged.replace(data)
        _write_node(folder / name, data.name, data.stat().st_size, manifest, cache_kind(graph))
        graphs[name] = dataclasses.replace(
            graph,
            interface="native",
            opset={"": OPSET, "doge": 1},
            ir_version=IR_VERSION,
            nodes=1,
            operators={"doge.Decoder": 1},
        )
    return dataclasses.replace(manifest, target="native", graphs=graphs)


def _write_node(file: Path, data: str, size: int, manifest: Manifest, cache: Kind) -> None:
    from onnx import ModelProto, TensorProto, ValueInfoProto, helper

    def port(name: str, dtype: int, shape: list[int | str]) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, shape)

    inputs = [
        port("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        port("attention_mask", TensorProto.INT64, ["batch_size", "sequence_length"]),
        port("past_length", TensorProto.INT64, [1]),
        port("sequence", TensorProto.INT64, [1]),
        port("num_logits_to_keep", TensorProto.INT64, []),
    ]
    weights = TensorProto(name="weights", data_type=TensorProto.UINT8, dims=[size])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", data), ("offset", "0"), ("length", str(size))):
        weights.external_data.add(key=key, value=value)
    defaults = [
        helper.make_tensor("sequence", TensorProto.INT64, [1], [0]),
        helper.make_tensor("num_logits_to_keep", TensorProto.INT64, [], [0]),
    ]
    names = ["input_ids", "attention_mask", "past_length", "sequence", "num_logits_to_keep", "weights"]
    node = helper.make_node("Decoder", names, ["logits"], domain="doge", cache_bits=8 if cache == Kind.INT8 else 32)
    vocabulary = manifest.architecture["vocab_size"]
    logits = port("logits", TensorProto.FLOAT, ["batch_size", "num_logits", vocabulary])
    graph = helper.make_graph([node], "doge", inputs, [logits], [weights, *defaults])
    model: ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("doge", 1)], ir_version=IR_VERSION
    )
    file.write_bytes(model.SerializeToString())

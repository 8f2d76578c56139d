"""Writer of an ONNX model that does not copy its weights in memory.

`onnx.save` builds the whole message in memory and serialises it to another copy. An ONNX file is the protobuf message

    ModelProto { ..., graph (7): GraphProto { node, ..., initializer (5): TensorProto { ..., raw_data (9): bytes } } }

and each of these three is its length followed by its fields in any order, so the weights can be written last, one at a
time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from doge_export.errors import DogeExportError
from doge_export.package.manifest import GraphEntry, Interface
from doge_export.regular_file import check_files, is_there

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST_FILE = 2**31 - 2**20
"""Bytes of weights from which on they go to `model.onnx_data`: a protobuf message holds less than 2 GiB."""

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9

_NEWER = {"GroupQueryAttention", "GatherBlockQuantized"}
"""Operators of com.microsoft that graphs of opset 21 and below have for doge-export's own runtime alone."""


def write_onnx(model: ir.Model, file: Path) -> None:
    """Write `model` to `file`, with `{name}_data` beside it if the weights do not fit into one message."""
    import onnx
    import onnx_ir as ir

    initializers = dict(model.graph.initializers)
    tensors = {name: value.const_value for name, value in initializers.items() if value.const_value is not None}
    if sum(tensor.nbytes for tensor in tensors.values()) >= LARGEST_FILE:
        ir.save(model, file, external_data=f"{file.name}_data")
        return
    model.graph.initializers.clear()
    try:
        message = ir.to_proto(model)
    finally:
        model.graph.initializers.update(initializers)
    graph = message.graph.SerializeToString()
    message.ClearField("graph")

    headers = {
        name: onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=tensor.shape.numpy()).SerializeToString()
        for name, tensor in tensors.items()
    }
    lengths = {
        name: len(headers[name]) + len(_tag(_RAW_DATA, tensor.nbytes)) + tensor.nbytes
        for name, tensor in tensors.items()
    }
    size = len(graph) + sum(len(_tag(_INITIALIZER, length)) + length for length in lengths.values())
    with file.open("wb") as stream:
        stream.write(message.SerializeToString() + _tag(_GRAPH, size) + graph)
        for name, tensor in tensors.items():
            stream.write(_tag(_INITIALIZER, lengths[name]) + headers[name] + _tag(_RAW_DATA, tensor.nbytes))
            stream.write(tensor.tobytes())


def read_onnx(file: Path) -> ir.Model:
    """Read the graph of a folder that nobody vouches for.

    Raises:
        DogeExportError: it is no regular file, or no ONNX model.
    """
    import onnx_ir as ir

    is_there(file)
    check_files(file.parent)
    try:
        return ir.load(file)
    except MemoryError:
        raise
    except Exception as error:  # of protobuf, onnx and onnx_ir, whose errors have no class in common
        reason = " ".join(str(error).split())[:200]
        raise DogeExportError(f"{file} is damaged ({reason}); `doge-export verify` tells more") from error


def describe_graph(model: ir.Model, precision: str, interface: Interface) -> GraphEntry:
    """Describe a graph for the manifest."""
    operators = Counter(node.op_type if not node.domain else f"{node.domain}.{node.op_type}" for node in model.graph)
    return GraphEntry(
        precision=precision,
        interface=interface,
        opset=dict(model.opset_imports),
        ir_version=model.ir_version,
        nodes=operators.total(),
        operators=dict(sorted(operators.items())),
        onnxruntime=None if interface == "engine" else oldest_onnxruntime(model),
    )


def oldest_onnxruntime(model: ir.Model) -> str:
    """Return the oldest onnxruntime that runs a graph, as tests/interop/test_onnxruntime_versions.py tried them.

    Opset 21 came with 1.18, MatMulNBits of 8 bits with 1.22. What needs more is for doge-export's own runtime, whose
    requirement it is.
    """
    if model.opset_imports.get("", 0) > 21 or any(node.op_type in _NEWER for node in model.graph):
        return "1.30"
    products = [node for node in model.graph if node.op_type == "MatMulNBits"]
    return "1.22" if any(node.attributes["bits"].as_int() == 8 for node in products) else "1.18"


def _tag(field: int, length: int) -> bytes:
    """Encode the key of a length-delimited field, and its length."""
    return bytes([field << 3 | 2, *_varint(length)])


def _varint(value: int) -> Iterator[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value

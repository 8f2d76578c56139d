"""The streamed ONNX file against what onnx itself reads and writes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from doge_runs import module_of
from random_doge import MOE, random_model

from doge_export.graph import trace
from doge_export.package import onnx_file
from doge_export.package.onnx_file import write_onnx


def tensor_model(*arrays):
    """Each array is an initializer and, through a node, an output."""
    values = [
        ir.val(f"tensor_{number}", const_value=ir.tensor(array, name=f"tensor_{number}"))
        for number, array in enumerate(arrays)
    ]
    nodes = [ir.node("Identity", [value]) for value in values]
    for number, (node, value) in enumerate(zip(nodes, values, strict=True)):
        node.outputs[0].name = f"output_{number}"
        node.outputs[0].dtype, node.outputs[0].shape = value.const_value.dtype, value.const_value.shape
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph([], outputs, nodes=nodes, initializers=values, opset_imports={"": 21}, name="tensors")
    return ir.Model(graph, ir_version=10)


def canonical(proto):
    """The message but for how a tensor's bytes are held, the tensors' order, and their types told a second time."""
    tensors = {
        tensor.name: (tensor.data_type, tuple(tensor.dims), onnx.numpy_helper.to_array(tensor).tobytes())
        for tensor in proto.graph.initializer
    }
    rest = onnx.ModelProto()
    rest.CopyFrom(proto)
    rest.graph.ClearField("initializer")
    typed = [value for value in rest.graph.value_info if value.name not in tensors]
    del rest.graph.value_info[:]
    rest.graph.value_info.extend(typed)
    return rest, tensors


@pytest.fixture(scope="module")
def canonical_graph():
    return trace(module_of(random_model(num_hidden_layers=1, **MOE)))


def test_the_file_holds_what_onnx_would_have_saved(canonical_graph, tmp_path):
    before = {name: value.const_value for name, value in canonical_graph.graph.initializers.items()}
    ir.save(canonical_graph, tmp_path / "theirs.onnx")
    write_onnx(canonical_graph, tmp_path / "ours.onnx")
    ours, theirs = (onnx.load(tmp_path / name) for name in ("ours.onnx", "theirs.onnx"))
    (rest, tensors), (right, right_tensors) = canonical(ours), canonical(theirs)
    assert rest == right
    assert tensors == right_tensors
    assert len(tensors) > 10
    onnx.checker.check_model(ours)
    assert {name: value.const_value for name, value in canonical_graph.graph.initializers.items()} == before


@pytest.mark.parametrize("boundary", [128, 16_384, 2_097_152])
def test_lengths_around_the_boundaries_of_their_encoding(boundary, tmp_path):
    """There a length takes one more byte. That of a tensor and that of the graph exceed the weight's by their headers
    and cross earlier, so every size before the boundary is tried."""
    crossed = set()
    for size in range(boundary - 128, boundary + 2, 1 if boundary < 2**20 else 43):
        model = tensor_model(np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8))
        write_onnx(model, tmp_path / "model.onnx")
        assert canonical(onnx.load(tmp_path / "model.onnx")) == canonical(ir.to_proto(model))
        crossed.add((tmp_path / "model.onnx").stat().st_size - size)
    assert len(crossed) > 2  # the overhead grew on the way


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.int32, np.bool_, np.uint8])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3)])
def test_types_and_shapes_load_in_onnxruntime(dtype, shape, tmp_path):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    write_onnx(tensor_model(array), tmp_path / "model.onnx")
    (found,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {})
    assert found.dtype == array.dtype and found.shape == array.shape
    np.testing.assert_array_equal(found, array)


def test_large_weights_go_beside_the_file(monkeypatch, tmp_path):
    arrays = [np.random.default_rng(0).normal(size=(200, 300)).astype(np.float32), np.arange(5, dtype=np.int64)]
    total = sum(array.nbytes for array in arrays)
    for limit, beside in ((total + 1, False), (total, True)):
        monkeypatch.setattr(onnx_file, "LARGEST_FILE", limit)
        folder = tmp_path / str(limit)
        folder.mkdir()
        write_onnx(tensor_model(*arrays), folder / "model.onnx")
        assert (folder / "model.onnx_data").exists() is beside
        for found, array in zip(onnxruntime.InferenceSession(folder / "model.onnx").run(None, {}), arrays, strict=True):
            np.testing.assert_array_equal(found, array)
    assert (folder / "model.onnx").stat().st_size < 2000


def test_a_failure_while_writing_leaves_the_model_whole(tmp_path):
    model = tensor_model(np.arange(4))
    with pytest.raises(FileNotFoundError):
        write_onnx(model, tmp_path / "missing" / "model.onnx")
    assert list(model.graph.initializers) == ["tensor_0"]


def test_weights_are_computed_one_at_a_time(tmp_path):
    """The memory of writing is that of the largest weight, not of all of them."""
    size, count = 2**20, 16

    def lazy(number):
        name = f"tensor_{number}"
        tensor = ir.LazyTensor(
            lambda: ir.tensor(np.full(size, number, np.uint8), name=name),
            dtype=ir.DataType.UINT8,
            shape=ir.Shape([size]),
            name=name,
            cache=False,
        )
        return tensor

    model = tensor_model(*[np.zeros(1, np.uint8)] * count)
    for number, value in enumerate(model.graph.initializers.values()):
        value.const_value = lazy(number)
    tracemalloc.start()
    write_onnx(model, tmp_path / "model.onnx")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * size
    read = onnx.load(tmp_path / "model.onnx")
    assert [tensor.raw_data[:1] for tensor in read.graph.initializer] == [bytes([number]) for number in range(count)]

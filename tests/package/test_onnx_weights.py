"""The reader of weights against onnx's own, and against files that were cut, bent or pointed elsewhere."""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from doge_export.errors import DogeExportError
from doge_export.package.onnx_weights import OnnxWeights

ARRAYS = {
    "floats": np.arange(12, dtype=np.float32).reshape(3, 4),
    "bytes": np.arange(6, dtype=np.uint8).reshape(1, 2, 3),
    "scalar": np.float32(3.5).reshape(()),
    "numbers": np.arange(3, dtype=np.int64),
    "nothing": np.zeros((0, 4), np.float32),
}


def model(*tensors: TensorProto) -> onnx.ModelProto:
    return helper.make_model(
        helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [], list(tensors))
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(model(*(numpy_helper.from_array(a, name) for name, a in ARRAYS.items())).SerializeToString())
    return path


def test_arrays_are_those_that_onnx_reads(file):
    with OnnxWeights(file) as weights:
        assert set(weights) == ARRAYS.keys() and "other" not in weights
        for name, array in ARRAYS.items():
            assert weights[name].dtype == array.dtype and weights.shape(name) == array.shape
            np.testing.assert_array_equal(weights[name], array)
            assert not weights[name].flags.writeable


def test_weights_outside_the_graph(file, tmp_path):
    whole = onnx.load(file)
    onnx.save_model(whole, file, save_as_external_data=True, location="model.onnx_data", size_threshold=1)
    with OnnxWeights(file) as weights:
        np.testing.assert_array_equal(weights["floats"], ARRAYS["floats"])
    (tmp_path / "model.onnx_data").write_bytes(b"short")
    with OnnxWeights(file) as weights, pytest.raises(DogeExportError, match="ends beyond its file"):
        weights["floats"]
    (tmp_path / "model.onnx_data").unlink()
    with OnnxWeights(file) as weights, pytest.raises(DogeExportError, match=r"there is no file model\.onnx_data"):
        weights["floats"]


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "..", "", "a/b", "a\\b", "pipe\n/x"])
def test_weights_are_taken_from_beside_the_graph_alone(file, location):
    tensor = numpy_helper.from_array(ARRAYS["floats"], "floats")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    file.write_bytes(model(tensor).SerializeToString())
    with pytest.raises(DogeExportError, match="no file beside it"):
        OnnxWeights(file)


def test_sizes_that_do_not_fit_are_refused(file):
    for change in ({"dims": [3, 5]}, {"dims": [-3, 4]}, {"dims": [2**40, 2**40]}):
        tensor = numpy_helper.from_array(ARRAYS["floats"], "floats")
        tensor.ClearField("dims")
        tensor.dims.extend(change["dims"])
        file.write_bytes(model(tensor).SerializeToString())
        with pytest.raises(DogeExportError, match=r"its shape needs|no possible shape"):
            OnnxWeights(file)


def test_two_weights_of_one_name_are_refused(file):
    file.write_bytes(model(*[numpy_helper.from_array(ARRAYS["floats"], "floats")] * 2).SerializeToString())
    with pytest.raises(DogeExportError, match="two weights 'floats'"):
        OnnxWeights(file)


def test_numbers_written_one_by_one_are_left_out(file):
    file.write_bytes(model(helper.make_tensor("floats", TensorProto.FLOAT, [3], [1, 2, 3])).SerializeToString())
    with OnnxWeights(file) as weights:
        assert "floats" not in weights


def test_every_cut_and_many_flipped_bytes_are_read_or_told_in_one_line(file):
    content = file.read_bytes()
    chance = random.Random(0)
    damaged = [content[:size] for size in range(len(content))]
    for _ in range(400):
        changed = bytearray(content)
        changed[chance.randrange(len(content))] = chance.randrange(256)
        damaged.append(bytes(changed))
    for each in damaged:
        file.write_bytes(each)
        try:
            with OnnxWeights(file) as weights:
                for name in weights:
                    weights[name].sum()
        except DogeExportError as error:
            assert "\n" not in str(error)


def test_what_is_no_file_is_told(tmp_path):
    with pytest.raises(DogeExportError, match="there is no file"):
        OnnxWeights(tmp_path / "model.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(DogeExportError, match="expected a regular file"):
        OnnxWeights(tmp_path / "folder.onnx")

"""What `tidy` leaves out, what it must leave alone, and which Reshapes have a constant for a shape."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from one_thread import open_session
from whole_trace import StaticReshapes

from doge_export.graph.tidy import tidy


def model_of(text):
    """From ONNX's text form, with shapes inferred."""
    header = '<ir_version: 10, opset_import: ["": 23]>'
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(header + text)))


def reshape(source, target, attribute=""):
    """A graph of one Reshape whose shape comes from a second input, with those symbolic axes."""
    rank = target.count(",") + 1
    inputs = f"float[{source}] x, int64[{rank}] shape"
    return model_of(f"agraph ({inputs}) => (float[{target}] y) {{ y = Reshape {attribute} (x, shape) }}")


def target_of(model):
    node = next(iter(model.graph))
    value = node.inputs[1].const_value
    return None if value is None else value.numpy().tolist()


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("B, S, 8", "B, S, 2, 4", [0, 0, 2, 4]),
        ("B, S, 2, 4", "B, S, 8", [0, 0, 8]),
        ("B, S, 8", "B, N, 4", [0, -1, 4]),
        ("B, S, 8", "N, 8", [-1, 8]),
        ("B, S, 8", "S, B, 8", None),  # neither axis is at its own place, and only one can be inferred
        ("B, S, 8", "M, N, 8", None),
        ("B, 8", "B, 2, 4, S", [0, 2, 4, -1]),
        ("2, 8", "4, 4", [4, 4]),
    ],
)
def test_the_shape_becomes_a_constant_where_the_axes_allow_it(source, target, expected):
    model = reshape(source, target)
    assert StaticReshapes()(model).modified is (expected is not None)
    assert target_of(model) == expected


def test_a_zero_would_not_copy_with_allowzero():
    model = reshape("B, S, 8", "B, S, 2, 4", "<allowzero = 1>")
    StaticReshapes()(model)
    assert target_of(model) == [0, 0, 2, 4]
    assert "allowzero" not in next(iter(model.graph)).attributes


def test_unknown_shapes_are_left_alone():
    model = reshape("B, S, 8", "B, S, 2, 4")
    next(iter(model.graph)).outputs[0].shape = None
    assert not StaticReshapes()(model).modified


def test_equal_targets_share_one_constant():
    model = model_of(
        """agraph (float[B, S, 8] x, float[B, S, 8] y, int64[4] s, int64[4] t)
        => (float[B, S, 2, 4] a, float[B, S, 2, 4] b) { a = Reshape (x, s)  b = Reshape (y, t) }"""
    )
    StaticReshapes()(model)
    assert len(model.graph.initializers) == 1


def test_tidy_removes_what_is_dead_doubled_or_idle():
    model = model_of(
        """agraph (float[B, 4] x) => (float[B, 4] y) {
            a = Identity (x)
            b = Neg (a)
            c = Neg (x)
            dead = Exp (x)
            y = Add (b, c)
        }"""
    )
    model.opset_imports["unused.domain"] = 1
    tidy(model)
    assert [node.op_type for node in model.graph] == ["Neg", "Add"]
    assert model.opset_imports == {"": 23}
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    session = open_session(model)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], -2 * x)

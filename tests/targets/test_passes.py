"""Each pass on a graph of a few nodes: what it changes, what it leaves alone, and that the numbers stay."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from one_thread import open_session

from doge_export.graph import functions
from doge_export.targets.lowering import constant
from doge_export.targets.passes.fuse_projections import FuseProjections
from doge_export.targets.passes.inline_functions import InlineFunctions
from doge_export.targets.passes.logits_to_keep import NumLogitsToKeep
from doge_export.targets.passes.primitives import PrimitiveRMSNorm, PrimitiveRotaryEmbedding
from doge_export.targets.passes.transpose_weights import TransposeWeights
from doge_export.targets.passes.transposed_matmul import TransposedMatMul

random = np.random.default_rng(0)


def graph_of(body, **weights):
    """A model from ONNX's text form, with these initializers (arrays)."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23, "doge": 1]> agraph {body}')
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def apply(model, lowering, tolerance=0.0, **inputs):
    """Run before and after the pass on float32 inputs, compare every output; gives the operators afterwards."""
    before = open_session(model).run(None, inputs)
    lowering(model)
    onnx.checker.check_model(ir.to_proto(model))
    after = open_session(model).run(None, inputs)
    for found, expected in zip(after, before, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    return Counter(node.op_type for node in model.graph)


def normal(*shape):
    return random.normal(size=shape).astype(np.float32)


def test_rms_norm_in_older_operators():
    model = graph_of(
        "(float[B, S, 8] x) => (float[B, S, 8] y) { y = RMSNormalization <axis = -1, epsilon = 0.01> (x, scale) }",
        scale=normal(8),
    )
    found = apply(model, PrimitiveRMSNorm(), 1e-6, x=normal(2, 3, 8))
    assert found == {"Pow": 1, "ReduceMean": 1, "Add": 1, "Sqrt": 1, "Div": 1, "Mul": 1}


@pytest.mark.parametrize("heads", [1, 3])
def test_rotary_embedding_in_older_operators(heads):
    model = graph_of(
        f"(float[B, S, {8 * heads}] x, float[B, S, 4] cos, float[B, S, 4] sin) => (float[B, S, {8 * heads}] y)"
        f"{{ y = RotaryEmbedding <num_heads = {heads}> (x, cos, sin) }}"
    )
    found = apply(
        model, PrimitiveRotaryEmbedding(), 1e-6, x=normal(2, 3, 8 * heads), cos=normal(2, 3, 4), sin=normal(2, 3, 4)
    )
    assert "RotaryEmbedding" not in found


LINEAR = "t = Transpose <perm = [1, 0]> (w)  y = MatMul (x, t)"


def test_a_weight_used_once_is_stored_transposed():
    model = graph_of(f"(float[B, 4] x) => (float[B, 6] y) {{ {LINEAR} }}", w=normal(6, 4))
    assert apply(model, TransposeWeights(), x=normal(2, 4)) == {"MatMul": 1}
    assert [list(value.shape) for value in model.graph.initializers.values()] == [[4, 6]]


def test_a_weight_used_elsewhere_is_left_where_it_lies():
    model = graph_of(
        f"(float[B, 4] x, int64[N] ids) => (float[B, 6] y, float[N, 4] z) {{ {LINEAR}  z = Gather (w, ids) }}",
        w=normal(6, 4),
    )
    assert not TransposeWeights()(model).modified
    model.opset_imports["com.microsoft"] = 1  # the attention pass declares it
    inputs = {"x": normal(2, 4), "ids": np.array([5, 0])}
    assert apply(model, TransposedMatMul(), 1e-6, **inputs) == {"FusedMatMul": 1, "Gather": 1, "Transpose": 1}
    assert list(model.graph.initializers) == ["w"]


def test_a_product_of_activations_stays_a_matmul():
    model = graph_of(
        "(float[B, 4] x, float[4, 4] v) => (float[B, 4] y) { t = Transpose <perm = [1, 0]> (v)  y = MatMul (x, t) }"
    )
    assert apply(model, TransposedMatMul(), x=normal(2, 4), v=normal(4, 4)) == {"MatMul": 1, "Transpose": 1}


def test_an_activation_is_not_transposed_ahead():
    model = graph_of("(float[4, 6] x) => (float[6, 4] y) { y = Transpose <perm = [1, 0]> (x) }")
    assert not TransposeWeights()(model).modified


def test_projections_of_one_input_become_one():
    model = graph_of(
        """(float[B, 4] x, float[B, 6] other) => (float[B, 6] a, float[B, 2] b, float[B, 3] c, float[B, 3] d) {
            p = MatMul (x, w1)
            q = MatMul (x, w2)
            r = MatMul (other, w3)
            s = MatMul (x, w4)
            a = Neg (p)
            b = Neg (q)
            c = Neg (r)
            d = Neg (s)
        }""",
        w1=normal(4, 6),
        w2=normal(4, 2),
        w3=normal(6, 3),
        w4=normal(4, 3),
    )
    found = apply(model, FuseProjections(), 1e-6, x=normal(2, 4), other=normal(2, 6))
    assert found == {"MatMul": 2, "Split": 1, "Neg": 4}
    shapes = {name: list(value.shape) for name, value in model.graph.initializers.items() if "int64" not in name}
    assert shapes == {"w1+w2+w4": [4, 11], "w3": [6, 3]}


def test_projections_with_a_shared_or_computed_weight_are_left_alone():
    """Joining would store the shared one twice; the computed one is not known."""
    model = graph_of(
        """(float[4, 4] x) => (float[4, 3] a, float[4, 4] b, float[4, 4] c, float[3, 4] d) {
            p = MatMul (x, shared)
            q = MatMul (x, own)
            r = MatMul (x, x)
            a = Neg (p)
            b = Neg (q)
            c = Neg (r)
            d = Transpose <perm = [1, 0]> (shared)
        }""",
        shared=normal(4, 3),
        own=normal(4, 4),
    )
    assert apply(model, FuseProjections(), x=normal(4, 4)) == {"MatMul": 3, "Neg": 3, "Transpose": 1}
    assert list(model.graph.initializers) == ["shared", "own"]


@pytest.mark.parametrize("head", ["MatMul", "FusedMatMul"])
def test_num_logits_to_keep_cuts_before_the_head(head):
    model = graph_of(
        "(float[B, S, 4] x) => (float[B, S, 6] logits) { h = Neg (x)  t = Transpose <perm = [1, 0]> (w)"
        "logits = MatMul (h, t) }",
        w=normal(6, 4),
    )
    if head == "FusedMatMul":
        TransposedMatMul()(model)
        model.opset_imports["com.microsoft"] = 1
    x = normal(2, 5, 4)
    apply(model, NumLogitsToKeep(), x=x)
    every = open_session(model).run(None, {"x": x})[0]
    for keep in (1, 2, 5, 7):
        kept = open_session(model).run(None, {"x": x, "num_logits_to_keep": np.array(keep)})[0]
        np.testing.assert_allclose(kept, every[:, -keep:], rtol=0, atol=1e-6)
    (last,) = [node for node in model.graph if node.op_type == "Slice"]
    assert [use.node.op_type for use in last.outputs[0].uses()] == [head]


def cdmoe_model():
    model = graph_of(
        """(float[B, S, 4] x, float[B, S, 1, 3] a, float[B, S, 1, 3] b, float[9, 4] down, float[9, 4] up)
        => (float[B, S, 4] y) { y = doge.CDMoE <num_experts_per_tok = 2> (x, a, b, down, up) }"""
    )
    body = ir.serde.deserialize_function(functions.CDMoE.to_function_proto())
    model.functions[body.identifier()] = body
    return model


def test_functions_are_inlined():
    model = cdmoe_model()
    inputs = {"x": normal(1, 2, 4), "a": normal(1, 2, 1, 3), "b": normal(1, 2, 1, 3)}
    found = apply(model, InlineFunctions(), **inputs, down=normal(9, 4), up=normal(9, 4))
    assert not model.functions and "doge" not in model.opset_imports
    assert "CDMoE" not in found and "Constant" not in found
    values = [value.const_value for value in model.graph.initializers.values()]
    assert len({(value.dtype, str(value.shape), value.tobytes()) for value in values}) == len(values) > 0


def test_a_node_without_a_body_is_reported():
    model = cdmoe_model()
    model.functions.clear()
    with pytest.raises(ir.passes.PostconditionError, match="doge"):
        InlineFunctions()(model)


def test_equal_constants_are_one():
    graph = cdmoe_model().graph
    first = constant(graph, np.array([1, -2]))
    assert constant(graph, np.array([1, -2])) is first
    others = [np.array([1, 2]), np.array([[1, -2]]), np.array([1, -2], np.int32), np.array([1.0, -2.0], np.float32)]
    assert len({constant(graph, array).name for array in others} | {first.name}) == 5
    assert constant(graph, np.array(1)).name != constant(graph, np.array([1])).name

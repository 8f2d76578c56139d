"""Every pass refuses a graph that is not what it needs, and names itself and the node or value at fault."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from doge_export.targets.half import HalfPrecision
from doge_export.targets.half.attention_bias import RelativeBias
from doge_export.targets.half.unfuse_projections import UnfuseSensitive
from doge_export.targets.passes.candidates import Candidates
from doge_export.targets.passes.fixed_capacity import FixedCapacity
from doge_export.targets.passes.float32_norm import Float32RMSNorm
from doge_export.targets.passes.float32_residuals import Float32Residuals
from doge_export.targets.passes.fold_scores import FoldScores
from doge_export.targets.passes.fuse_attention import FuseAttention
from doge_export.targets.passes.fuse_projections import FuseProjections
from doge_export.targets.passes.fuse_routing import FuseRouting
from doge_export.targets.passes.group_query_attention import GroupQueryAttention
from doge_export.targets.passes.inline_functions import InlineFunctions
from doge_export.targets.passes.logits_to_keep import NumLogitsToKeep
from doge_export.targets.passes.native_attention import NativeAttention
from doge_export.targets.passes.plugin_nodes import PluginNodes
from doge_export.targets.passes.primitives import PrimitiveRMSNorm, PrimitiveRotaryEmbedding
from doge_export.targets.passes.rope_tables import RopeTables
from doge_export.targets.passes.routed_experts import RoutedExperts
from doge_export.targets.passes.skip_norm import SkipNorm
from doge_export.targets.passes.standard_attention import StandardAttention
from doge_export.targets.passes.transpose_weights import TransposeWeights
from doge_export.targets.passes.transposed_matmul import TransposedMatMul
from doge_export.targets.target import Traits

TEXT = "int64[B, S] input_ids, int64[B, S] attention_mask"
LANGUAGE_MODEL = f"{TEXT}, int64[B, S] position_ids"
QKV = "float[B, S, 8] q, float[B, S, 8] k, float[B, S, 8] v, float[B, S, 1] s"
PAST = "float[B, 1, P, 8] pk, float[B, 1, P, 8] pv, float[B, 1, P] ps"
HEADS = "num_heads = 1, kv_num_heads = 1, scale = 1.0"
PADDED = "s1 = Where (visible, s, s)"


def attention(
    extra="keep_window_size = 0", op_type="DynamicMaskAttention", score="s1", inputs="q, k, v, {}, pk, pv, ps"
):
    return f"o, a, b, c = doge.{op_type} <{HEADS}, {extra}> ({inputs.format(score)})"


RATIO = attention(
    'keep_window_size = 0, ratio = "0.5", of_excess = 0, adds_causality = 0', "RatioMaskAttention", score="s2"
)
CDMOE = "y = doge.CDMoE <num_experts_per_tok = 1, weights_inside = 0> (h, sx, sy, d, u)"
EXPERTS = "float[B, S, 8] h, float[B, S, 1, 2] sx, float[B, S, 1, 2] sy, float[4, 8] d, float[4, 8] u"
VISIBLE = "bool[B, S, 1] visible"
WHOLE = f"{QKV}, {PAST}, {VISIBLE}"
"""What an attention node of the canonical graph reads."""

CASES = {
    "Candidates, no logits": (Candidates(4), "float[B, S, 4] x", "y = Neg (x)", "graph output logits"),
    "Candidates, other type": (Candidates(4), "float16[B, S, 4] x", "logits = Neg (x)", "value logits"),
    "FixedCapacity, input": (FixedCapacity(8), TEXT, "y = Neg (input_ids)", "graph input position_ids"),
    "FixedCapacity, ratio": (
        FixedCapacity(8),
        f"{LANGUAGE_MODEL}, {WHOLE}",
        f"s2 = Concat <axis = 2> (s, s) {RATIO}",
        "doge.RatioMaskAttention node",
    ),
    "FixedCapacity, head": (
        FixedCapacity(8),
        f"{LANGUAGE_MODEL}, float[B, S, 4] x",
        "logits = Neg (x)",
        "value logits: expected to be computed by MatMul, found Neg node",
    ),
    "Float32RMSNorm": (
        Float32RMSNorm(),
        "float16[B, 4] x, float16[4] w",
        "y = RMSNormalization <epsilon = 0.1> (x)",
        "RMSNormalization node",
    ),
    "Float32Residuals": (Float32Residuals(), TEXT, "y = Neg (input_ids)", "value input_ids"),
    "FoldScores": (FoldScores(), WHOLE, attention(score="s"), "doge.DynamicMaskAttention node"),
    "FuseAttention": (
        FuseAttention(),
        WHOLE,
        attention(score="s"),
        "doge.DynamicMaskAttention node .*: expected an input at place 7",
    ),
    "FuseRouting": (
        FuseRouting(),
        EXPERTS,
        "y = doge.CDMoE <num_experts_per_tok = 1, weights_inside = 0> (h, sx, sy, d)",
        "doge.CDMoE node .*: expected an input at place 4",
    ),
    "GroupQueryAttention, input": (GroupQueryAttention(Traits()), WHOLE, f"{PADDED} {attention()}", "input input_ids"),
    "GroupQueryAttention, padding": (
        GroupQueryAttention(Traits()),
        f"{TEXT}, {WHOLE}",
        attention(score="s"),
        "doge.DynamicMaskAttention node .*: expected scores in which padding is marked",
    ),
    "GroupQueryAttention, none": (GroupQueryAttention(Traits()), TEXT, "y = Neg (input_ids)", "DynamicMaskAttention"),
    "GroupQueryAttention, positions": (
        GroupQueryAttention(Traits(static_rope=True)),
        f"{TEXT}, {WHOLE}",
        f"{PADDED} {attention()}",
        "graph input position_ids",
    ),
    "GroupQueryAttention, scaled RoPE": (
        GroupQueryAttention(Traits(static_rope=True)),
        f"{LANGUAGE_MODEL}, {WHOLE}",
        f"{PADDED} cos = Cos (q) {attention()}",
        "graph agraph: expected RoPE frequencies",
    ),
    "InlineFunctions": (InlineFunctions(), EXPERTS, CDMOE, "doge.CDMoE node"),
    "NativeAttention, scores": (
        NativeAttention(),
        f"{TEXT}, int32[B] past_lengths, {WHOLE}",
        "y = Neg (q)",
        "graph agraph: expected inputs for cached scores",
    ),
    "NativeAttention, lengths": (NativeAttention(), TEXT, "y = Neg (input_ids)", "graph input past_lengths"),
    "NumLogitsToKeep": (NumLogitsToKeep(), "float[B, S, 4] x", "logits = Neg (x)", "value logits"),
    "PluginNodes": (
        PluginNodes(),
        WHOLE,
        f"s2 = Concat <axis = 2> (s, s) {RATIO}",
        "doge.RatioMaskAttention node .*: expected an operator of the plugin",
    ),
    "PluginNodes, attribute": (
        PluginNodes(),
        EXPERTS,
        "y = doge.CDMoE <weights_inside = 0> (h, sx, sy, d, u)",
        "doge.CDMoE node .*: expected attribute num_experts_per_tok",
    ),
    "PrimitiveRMSNorm": (
        PrimitiveRMSNorm(),
        "float[B, 4, 4] x, float[4] w",
        "y = RMSNormalization <axis = 1, epsilon = 0.1> (x, w)",
        "RMSNormalization node .*: expected axis -1, found 1",
    ),
    "PrimitiveRotaryEmbedding": (
        PrimitiveRotaryEmbedding(),
        "float[B, 1, S, 8] x, float[B, S, 4] cos, float[B, S, 4] sin",
        "y = RotaryEmbedding (x, cos, sin)",
        "value x: expected a shape of 3 axes",
    ),
    "RopeTables, positions": (RopeTables(8), "float[B, S, 4] x", "y = Neg (x)", "value positions: missing"),
    "RopeTables, scaled RoPE": (
        RopeTables(8),
        "int32[B, S] x, float[B, S, 4] angles",
        "positions = Neg (x) y = Cos (angles)",
        "Cos node .*: expected angles of stored frequencies",
    ),
    "RoutedExperts, input": (RoutedExperts(), EXPERTS, CDMOE, "graph input input_ids"),
    "RoutedExperts, signature": (
        RoutedExperts(),
        f"{TEXT}, {EXPERTS}",
        "y = doge.CDMoE <num_experts_per_tok = 1, weights_inside = 0> (h, sx, sy, d)",
        "doge.CDMoE node .*: expected an input at place 4",
    ),
    "SkipNorm": (
        SkipNorm(),
        "float[B, 4] x, float[4] w",
        "a = Neg (x) b = Abs (x) c = Add (a, b) y = RMSNormalization <axis = 0, epsilon = 0.1> (c, w)",
        "RMSNormalization node .*: expected axis -1, found 0",
    ),
    "StandardAttention, input": (StandardAttention(), WHOLE, f"{PADDED} {attention()}", "graph input input_ids"),
    "StandardAttention, attribute": (
        StandardAttention(),
        f"{TEXT}, {WHOLE}",
        f"{PADDED} o, a, b, c = doge.DynamicMaskAttention <{HEADS}> (q, k, v, s1, pk, pv, ps)",
        "doge.DynamicMaskAttention node .*: expected attribute keep_window_size",
    ),
    "TransposedMatMul": (TransposedMatMul(), "float[B, 4] x", "y = MatMul (x)", "MatMul node .*: expected an input"),
    "HalfPrecision": (
        HalfPrecision(),
        "float[B, 4] x",
        "c = Constant <value_float = 1.0> () y = Add (x, c)",
        "Constant node .*: expected an initializer",
    ),
    "RelativeBias": (
        RelativeBias(),
        "float[B, 1, 8] q, float[B, 1, 8] k, float[B, 1, 1, 4] bias",
        "y = com.microsoft.GroupQueryAttention <num_heads = 1> (q, k, k, k, k, k, k, k, k, k, bias)",
        "com.microsoft.GroupQueryAttention node .*: expected attribute kv_num_heads",
    ),
}


def model_of(inputs, nodes):
    """A graph with these inputs, whose unread results are its outputs."""
    head = '<ir_version: 10, opset_import: ["": 23, "doge": 1, "com.microsoft": 1]>'
    proto = onnx.parser.parse_model(f"{head} agraph ({inputs}) => () {{ {nodes} }}")
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    model.graph.outputs.extend(value for node in model.graph for value in node.outputs if not value.uses())
    return model


@pytest.mark.parametrize("case", CASES)
def test_a_graph_that_is_not_what_a_pass_needs(case):
    one, inputs, nodes, subject = CASES[case]
    name = type(one).__name__
    assert case.partition(",")[0] == name
    model = model_of(inputs, nodes)
    with pytest.raises(ir.passes.InvariantError, match=f"^{name}: .*{subject}"):
        one(model)


EVERY = [case[0] for name, case in CASES.items()] + [FuseProjections(), TransposeWeights(), UnfuseSensitive()]


@pytest.mark.parametrize("one", {type(one).__name__: one for one in EVERY}.values(), ids=lambda one: type(one).__name__)
def test_a_graph_with_a_subgraph(one):
    """No pass looks into a branch, so none takes a graph that has one."""
    branch = "agraph () => (float[B, 4] z) { z = Neg (x) }"
    model = model_of("bool c, float[B, 4] x", f"y = If (c) <then_branch = {branch}, else_branch = {branch}>")
    with pytest.raises(ir.passes.PreconditionError, match=f"^{type(one).__name__}: If node .*: expected no subgraphs"):
        one(model)


def test_a_contract_is_checked_before_anything_changes():
    first = attention().replace("o, a, b, c", "o1, a1, b1, c1")
    model = model_of(f"{TEXT}, {WHOLE}", f"{PADDED} {first} {attention(score='s')}")
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    with pytest.raises(ir.passes.PreconditionError):
        StandardAttention()(model)
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before

"""Graphs in 16 bits: as good as float32 where every mechanism is at work, and typed as said."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from composition_runs import CASES, DECODERS, LENGTH, VOCABULARY, run, traits
from compositions import MIXING, traced
from doge_runs import distinct_ids, left_padded
from one_thread import open_session
from onnx.reference import ReferenceEvaluator

from doge_export.runtime.decoders.decoder import SequenceLimits
from doge_export.targets import TARGETS, lower
from doge_export.targets.half import HalfPrecision, half_values, largest, prepare
from doge_export.targets.half.types import Types

QUICK = {
    ("as today", "onnxruntime"), ("as today", "portable"), ("as today", "canonical"),
    ("score by query head, selected", "portable"), ("angles scaled by YaRN", "onnxruntime"),
    ("heads of 12", "onnxruntime"), ("M0", "portable"), ("M7", "onnxruntime"), ("M7", "canonical"),
    ("hard threshold", "onnxruntime"), ("ratio of all", "portable"),
}  # fmt: skip
LARGE = ("as today", "score by query head")
"""Of whose scores a window selects, and whose attention takes all earlier keys."""
BY_RANKS = "M5"
"""Names experts by ranks among scores of product keys, so that the least difference makes another choice."""


@functools.cache
def _lowered(name, target, a):
    _, model = traced(name)
    for parameter_name, value in model.graph.initializers.items():
        if parameter_name.endswith(".A"):
            value.const_value = ir.tensor(np.float32(a) * value.const_value.numpy(), name=parameter_name)
    lower(model, TARGETS[target], traits(name))
    return ir.to_proto(model).SerializeToString()


def lowered(name, target, *, a=1.0):
    """A random module's graph in float32; its scores are exponentials of `a` times what they were."""
    return ir.from_proto(onnx.ModelProto.FromString(_lowered(name, target, a)))


def halved(model, dtype=ir.DataType.FLOAT16):
    prepare(model)
    HalfPrecision(dtype)(model)
    return model


def decoder(model, name, target):
    return DECODERS[target](open_session(model), SequenceLimits(32, 32, name in MIXING))


def log_softmax(logits):
    x = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(expected, found):
    """KL of each token, in nats."""
    assert np.isfinite(found).all()
    p, q = log_softmax(expected), log_softmax(found)
    return (np.exp(p) * (p - q)).sum(-1)


@pytest.mark.parametrize(
    ("name", "target"), [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_close_to_float32(name, target):
    """In pieces, and with padding; rows that nobody reads among it."""
    model = lowered(name, target)
    exact = decoder(model, name, target)
    ids, mask = distinct_ids(3, LENGTH, VOCABULARY), left_padded(LENGTH, 0, 5, 17)
    runs = [(ids[:1], mask[:1], [9, 6, 1, 8]), (ids, mask, [20, 1, 1, 1, 1])]
    expected = [run(exact, *case) for case in runs]
    half = decoder(halved(model), name, target)
    for (case_ids, case_mask, chunks), logits in zip(runs, expected, strict=True):
        found = run(half, case_ids, case_mask, chunks)
        assert found.dtype == np.float32
        off = divergence(logits, found)[case_mask == 1].mean()
        assert 0 < off < (1e-3 if name == BY_RANKS else 1e-4)


@pytest.mark.parametrize("target", DECODERS)
@pytest.mark.parametrize("name", LARGE)
def test_scores_beyond_what_16_bits_hold(name, target):
    """Scores of 1e6 and more: nothing overflows, the same keys win, and no token is led by a later one's score."""
    model = lowered(name, target, a=6.0)
    outputs = {"onnxruntime": "new_scores", "canonical": "present.0.score"}
    exact, ids = decoder(model, name, target), distinct_ids(2, LENGTH, VOCABULARY)
    if target in outputs:
        scores = next(value for value in model.graph.outputs if value.name == outputs[target])
        assert scores.dtype == ir.DataType.FLOAT
    expected = run(exact, ids)
    half = decoder(halved(model), name, target)
    assert divergence(expected, run(half, ids)).mean() < 1e-4
    mask = left_padded(LENGTH, 0, LENGTH)  # a row of padding alone
    padded = run(half, ids, mask)
    np.testing.assert_allclose(padded[0], run(half, ids)[0], atol=2e-2)
    assert np.isfinite(padded).all()


@pytest.mark.parametrize("name", LARGE)
def test_the_scores_of_that_test_are_large(name):
    model = lowered(name, "portable", a=6.0)
    exponentials = [node.outputs[0] for node in model.graph if node.op_type == "Exp"]
    for value in exponentials:
        value.dtype = ir.DataType.FLOAT
    model.graph.outputs.extend(exponentials)
    feeds = text_feeds(distinct_ids(2, LENGTH, VOCABULARY), np.float32)
    found = open_session(model).run([value.name for value in exponentials], feeds)
    assert all(1e6 < array.max() < 1e30 for array in found)


def text_feeds(ids, cache_type, first=0):
    """A text read whole by the portable graph; its first token has that position."""
    batch, length = ids.shape
    empty = np.zeros((batch, 2, 0, 16), cache_type)
    caches = {f"past_key_values.{layer}.{part}": empty for layer in range(2) for part in ("key", "value")}
    positions = np.broadcast_to(np.arange(length) + first, ids.shape).astype(np.int64)
    every = {"num_logits_to_keep": np.array(0)}
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": positions, **caches, **every}


def test_positions_that_16_bits_do_not_hold():
    """RoPE is relative, so a text at 131000 has the logits that it has at 0, but for float32 angles."""
    model = lowered("as today", "portable")
    ids = distinct_ids(1, LENGTH, VOCABULARY)
    expected = open_session(model).run(["logits"], text_feeds(ids, np.float32, 131000))[0]
    found = open_session(halved(model)).run(["logits"], text_feeds(ids, np.float16, 131000))[0]
    assert divergence(expected, found).mean() < 1e-4


def rounded(model):
    """The float32 graph, every value that 16 bits would hold rounded to them where they would be read: what a GPU with
    float32 sums gives.

    onnxruntime leaves a Cast to float16 and back where it is told to make one.
    """
    prepare(model)
    half, single = ir.DataType.FLOAT16, ir.DataType.FLOAT
    types = Types(model.graph, largest(half))
    for value in half_values(model):
        uses = [use for use in value.uses() if not (types.is_float32(value) and types.reads_float32(*use))]
        down = ir.node("Cast", [value], {"to": half})
        up = ir.node("Cast", [down.outputs[0]], {"to": single})
        model.graph.insert_after(value.producer(), [down, up])
        for node, place in uses:
            node.replace_input_with(place, up.outputs[0])
    return model


@pytest.mark.parametrize("target", DECODERS)
@pytest.mark.parametrize("name", ["as today", "M7"])
def test_every_result_rounded(name, target):
    """onnxruntime's CPU kernels keep float32 between nodes, which flatters a graph in 16 bits."""
    exact = decoder(lowered(name, target), name, target)
    ids = distinct_ids(2, LENGTH, VOCABULARY)
    found = run(decoder(rounded(lowered(name, target)), name, target), ids)
    off = divergence(run(exact, ids), found).mean()
    assert 1e-7 < off < 1e-4


@pytest.mark.parametrize("name", ["as today", "M7"])
def test_every_node_in_numpy(name):
    """The graph itself by an implementation that knows nothing of onnxruntime, each result in its own type."""
    model = lowered(name, "portable")
    ids = distinct_ids(1, LENGTH, VOCABULARY)
    expected = open_session(model).run(["logits"], text_feeds(ids, np.float32))[0]
    proto = ir.to_proto(halved(model))
    with np.errstate(over="ignore", invalid="ignore"):  # onnx computes sigmoid by both of its forms
        found = ReferenceEvaluator(proto).run(["logits"], text_feeds(ids, np.float16))[0]
    assert divergence(expected, found).mean() < 1e-4


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
@pytest.mark.parametrize("name", ["as today", "M7", "no scores"])
def test_types_agree(name, dtype):
    """ONNX's own type inference finds what the pass has written, at every node."""
    model = halved(lowered(name, "portable"), dtype)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    said = {value.name: value.dtype for node in model.graph for value in node.outputs if value.dtype is not None}
    for value in inferred.graph.value_info:
        assert said.get(value.name, value.type.tensor_type.elem_type) == value.type.tensor_type.elem_type
    interface = {value.name: value.dtype for value in [*model.graph.inputs, *model.graph.outputs]}
    assert interface["logits"] == ir.DataType.FLOAT
    assert {kind for name, kind in interface.items() if name.endswith((".key", ".value"))} == {dtype}


@pytest.mark.parametrize("target", DECODERS)
@pytest.mark.parametrize("name", ["as today", "M7"])
def test_no_cast_is_redundant(name, target):
    """Each changes a type, is read, and is the only one of its value to that type; none undoes another."""
    model = halved(lowered(name, target))
    graph = model.graph
    reals = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    casts = [node for node in graph if node.op_type == "Cast" and node.attributes["to"].as_int() in reals]
    made = Counter((node.inputs[0].name, node.attributes["to"].as_int()) for node in casts)
    assert max(made.values()) == 1
    assert not [node for node in graph if node.op_type == "CastLike"]
    for node in casts:
        source, result = node.inputs[0], node.outputs[0]
        assert source.dtype != node.attributes["to"].as_int() == result.dtype
        assert result.uses() or result.is_graph_output()
        assert source.producer() is None or source.producer().op_type != "Cast"
        assert source.const_value is None
    # Of a layer without experts: norms 4 x 2, softmax 2, the values whose scores are computed again 1.
    if (name, target) == ("as today", "portable"):
        assert len(casts) == 2 * 11 + 2 + 1 + 1  # two layers, the last norm, the logits; the positions


def test_what_is_stored_in_float32():
    """The weights of scores, of the router, and of norms whose result is read in float32; angles; lowest numbers."""
    model = halved(lowered("M7", "portable"))
    kept = {name: value.const_value for name, value in model.graph.initializers.items()}
    kept = {name for name, tensor in kept.items() if tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) == 2}
    endings = {"self_attn.dt_proj.weight_t", "mlp.router_gate.weight_t"}
    assert kept == {f"model.layers.{layer}.{ending}" for layer in range(2) for ending in endings}


def test_a_fused_product_is_taken_apart():
    """dt's columns leave the product of queries, keys and values; the others stay together."""
    model = lowered("as today", "onnxruntime")
    before = Counter(node.op_type for node in model.graph)
    prepare(model)
    after = Counter(node.op_type for node in model.graph)
    assert after["MatMul"] == before["MatMul"] + 2
    assert after["Split"] == before["Split"]

"""Every rule of the lint: a graph that breaks it and nothing else. The exporter's own graphs break none."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from engine_on_cpu import plan_of, random_traced

from doge_export.trt.creators import packaged
from doge_export.trt.lint import lint
from doge_export.trt.rules import RULES

FLOAT, HALF, INT32 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT32
VERSIONS = [(10, 9), (10, 15), (11, 0), (11, 4)]
ATTRIBUTES = {
    "num_heads": 4, "kv_num_heads": 2, "scale": 0.25, "keep_window_size": 8,
    "plugin_namespace": "doge", "plugin_version": "1",
}  # fmt: skip
CACHE = ["batch", 2, 32, 16]
SIZES = {"batch": 4, "sequence": 512, "num_logits": 64}


def value(name, dtype, *shape):
    return ir.val(name, dtype=dtype, shape=list(shape))


def inputs():
    """Of an attention node, as the plugin takes them."""
    return [
        value("query", HALF, "batch", "sequence", 64),
        value("key", HALF, "batch", "sequence", 32),
        value("value", HALF, "batch", "sequence", 32),
        value("score", FLOAT, "batch", "sequence", 2),
        value("past_key", HALF, *CACHE),
        value("past_value", HALF, *CACHE),
        value("past_score", FLOAT, *CACHE[:3]),
        value("past_lengths", INT32, "batch"),
    ]


def model_of(nodes, graph_inputs, *, opset=18, ir_version=8, functions=(), outputs=None):
    results = [x for node in nodes for x in node.outputs if x.name] if outputs is None else outputs
    imports = {"": opset, "doge": 1}
    graph = ir.Graph([x for x in graph_inputs if x is not None], results, nodes=nodes, opset_imports=imports)
    return ir.Model(graph, ir_version=ir_version, functions=list(functions))


def attention(changes=None, *, given=None, op_type="DynamicMaskAttention", num_outputs=4, **options):
    """A graph of one attention node; a change to None drops the attribute."""
    attributes = {name: x for name, x in (ATTRIBUTES | (changes or {})).items() if x is not None}
    given = inputs() if given is None else given
    results = [ir.val(f"out{number}", dtype=HALF) for number in range(num_outputs)]
    node = ir.node(op_type, given, attributes, domain="doge", outputs=results, name="attention")
    return model_of([node], given, **options)


def replaced(place, new):
    given = inputs()
    given[place] = new
    return given


def standard(op_type, given, attributes=None, num_outputs=1, *, opset=24, ir_version=10, **options):
    node = ir.node(op_type, given, attributes or {}, num_outputs=num_outputs)
    for number, result in enumerate(node.outputs):
        result.name = f"out{number}"
    graph_inputs = [x for x in given if x is not None and x.const_value is None]
    return model_of([node], graph_inputs, opset=opset, ir_version=ir_version, **options)


def unasked(body):
    """A node that does not ask for its plugin, beside a function."""
    return attention({"plugin_namespace": None}, functions=[body])


def bounded():
    given = [*inputs(), value("new", INT32, "b"), value("slots", INT32, *CACHE[:3])]
    return attention({"bounded": 1}, given=given, num_outputs=5)


def experts():
    return ir.node("CDMoE", [], domain="doge")


def function(name, domain="doge", inner=None):
    x = ir.val("x")
    nodes = [inner if inner is not None else ir.node("Identity", [x])]
    body = ir.Graph([x], nodes[-1].outputs, nodes=nodes, opset_imports={"": 18})
    return ir.Function(domain, name, graph=body, attributes=[])


def top_k(count, **attributes):
    k = ir.val("k", const_value=ir.tensor(np.array([count])))
    return standard("TopK", [value("x", FLOAT, 4, 5000), k], attributes, 2, opset=18)


def scatter(past=None, outputs=None, **attributes):
    past = value("past", HALF, *CACHE) if past is None else past
    given = [past, value("new", HALF, "batch", 2, "s", 16), value("at", ir.DataType.INT64, "batch")]
    return standard("TensorScatter", given, {"axis": -2, "mode": "linear"} | attributes, outputs=outputs)


def scatter_of_something_else():
    source = value("source", HALF, *CACHE)
    copy = ir.node("Identity", [source])
    copy.outputs[0].name = "copy"
    given = [copy.outputs[0], value("new", HALF, "batch", 2, "s", 16), value("at", ir.DataType.INT64, "batch")]
    node = ir.node("TensorScatter", given, {"axis": -2})
    node.outputs[0].name = "out"
    return model_of([copy, node], [source, *given[1:]], opset=24, ir_version=10, outputs=[node.outputs[0]])


def heads(count=4, axes=4):
    return [value(name, HALF, *["b", count, "s", 16][:axes]) for name in ("q", "k", "v")]


def masked(**attributes):
    return standard("Attention", [*heads(), value("mask", HALF, "b", 1, "s", "s")], attributes)


def branch(name, given):
    node = ir.node("DynamicMaskAttention", given, ATTRIBUTES, domain="doge", num_outputs=4)
    for number, result in enumerate(node.outputs):
        result.name = f"{name}{number}"
    return ir.Graph([], node.outputs, nodes=[node], name=name)


def subgraph_with_a_node():
    given, condition = inputs(), value("condition", ir.DataType.BOOL)
    branches = {f"{name}_branch": branch(name, given) for name in ("then", "else")}
    node = ir.node("If", [condition], branches, num_outputs=4)
    for number, result in enumerate(node.outputs):
        result.name = f"out{number}"
    return model_of([node], [condition, *given])


def logits(vocab_size):
    return standard("Identity", [value("logits", FLOAT, "batch", "num_logits", vocab_size)], opset=18)


def product(width):
    """Its result has a shape of other names, as in a traced graph."""
    weight = ir.val("weight", const_value=ir.tensor(np.zeros((1, width), np.float32)))
    model = standard("MatMul", [value("x", FLOAT, "batch", "sequence", 1), weight], opset=18, outputs=[])
    model.graph[0].outputs[0].shape = ir.Shape(["s1", "s2", width])
    return model


def weights_of_attention(capacity):
    """Of queries that are split into four heads."""
    shape = ir.val("shape", const_value=ir.tensor(np.array([0, 0, 4, 16])))
    source = value("x", HALF, "batch", "sequence", 64)
    split = ir.node("Reshape", [source, shape])
    query = ir.node("Transpose", split.outputs, {"perm": [0, 2, 1, 3]})
    keys = [value(name, HALF, "batch", 2, capacity, 16) for name in ("key", "value")]
    node = ir.node("Attention", [*query.outputs, *keys])
    node.outputs[0].name = "out"
    return model_of([split, query, node], [source, *keys], opset=24, ir_version=10)


INT64 = ir.DataType.INT64
BROKEN = [
    ("version", (8, 6), lambda: attention()),
    ("opset", (10, 9), lambda: attention(opset=23)),
    ("opset", (11, 4), lambda: attention(opset=25)),
    ("ir-version", (10, 9), lambda: attention(ir_version=11)),
    ("zero-length", (11, 4), lambda: standard("Identity", [value("x", FLOAT, "b", 2, 0, 16)], opset=18)),
    ("taken-name", (10, 14), lambda: model_of(*one("Attention", {}))),
    ("function-wins", (10, 15), lambda: unasked(function("DynamicMaskAttention"))),
    ("function-wins", (11, 4), lambda: unasked(function("DynamicMaskAttention", "other"))),
    ("function-wins", (10, 9), lambda: unasked(function("DynamicMaskAttention"))),
    ("nested-plugin", (11, 4), subgraph_with_a_node),
    ("nested-plugin", (11, 4), lambda: attention(functions=[function("Other", inner=experts())])),
    ("no-creator", (11, 4), lambda: attention({"plugin_version": "2"})),
    ("no-creator", (11, 4), lambda: attention({"plugin_namespace": "dog"})),
    ("no-creator", (10, 9), lambda: attention({"plugin_namespace": None})),
    ("no-creator", (11, 4), lambda: model_of(*one("Unheard", {}))),
    ("attribute-type", (11, 4), lambda: attention({"scale": 1})),
    ("attribute-type", (11, 4), lambda: attention({"num_heads": 4.0})),
    ("attribute-type", (11, 4), lambda: attention({"keep_window_size": 2**31})),
    ("attribute-type", (11, 4), lambda: attention({"num_heads": ir.tensor(np.array([4]))})),
    ("attribute-missing", (11, 4), lambda: attention({"num_heads": None})),
    ("attribute-unread", (11, 4), lambda: attention({"window": 8})),
    ("input-count", (11, 4), lambda: attention(given=inputs()[:7])),
    ("input-count", (11, 4), lambda: attention({"bounded": 1}, num_outputs=5)),
    ("input-empty", (11, 4), lambda: attention(given=replaced(2, None))),
    ("input-type", (11, 4), lambda: attention(given=replaced(7, value("past_lengths", INT64, "batch")))),
    ("input-type", (11, 4), lambda: attention(given=replaced(7, value("past_lengths", ir.DataType.BOOL, "batch")))),
    ("input-type", (11, 4), lambda: attention(given=replaced(1, value("key", FLOAT, "batch", "sequence", 32)))),
    ("input-type", (11, 4), lambda: attention(given=replaced(3, value("score", HALF, "batch", "sequence", 2)))),
    ("input-type", (11, 4), lambda: attention(given=replaced(0, value("query", ir.DataType.UINT8, "b", "s", 64)))),
    ("output-count", (11, 4), lambda: attention(num_outputs=3)),
    ("layer", (10, 14), lambda: standard("RMSNormalization", [value("x", FLOAT, 8), value("w", FLOAT, 8)], opset=23)),
    ("layer", (11, 4), lambda: standard("Unique", [value("x", FLOAT, 8)], opset=18)),
    ("layer", (10, 9), lambda: standard("Attention", heads(), opset=18)),
    ("top-k", (11, 4), lambda: top_k(3841)),
    ("top-k", (11, 4), lambda: top_k(8, sorted=0)),
    ("attention", (11, 4), lambda: standard("Attention", heads(), num_outputs=3)),
    ("attention", (11, 4), lambda: standard("Attention", [*heads(), None, value("past", HALF, *CACHE)])),
    ("attention", (11, 4), lambda: standard("Attention", heads(axes=3))),
    ("attention", (11, 4), lambda: masked(is_causal=1)),
    ("cache-in-place", (11, 4), lambda: scatter(outputs=[])),
    ("cache-in-place", (11, 4), scatter_of_something_else),
    ("cache-in-place", (11, 4), lambda: scatter(value("past", HALF, "b", 2, "c", 16))),
    ("cache-in-place", (11, 4), lambda: scatter(mode="circular")),
    ("cache-in-place", (11, 4), lambda: scatter(axis=1)),
    ("volume", (11, 4), lambda: logits(2**23)),
    ("volume", (11, 4), lambda: product(2**20)),
    ("volume", (11, 4), lambda: weights_of_attention(2**18)),
    ("volume", (11, 4), lambda: scatter(value("past", HALF, "batch", 2, 2**24, 16))),
]  # fmt: skip


def one(op_type, attributes):
    node = ir.node(op_type, [value("x", FLOAT, 2, 8)], attributes, domain="doge", num_outputs=1)
    node.outputs[0].name = "out"
    return [node], [node.inputs[0]]


@pytest.mark.parametrize(("rule", "version", "make"), BROKEN)
def test_a_graph_that_breaks_it(rule, version, make):
    assert {finding.rule for finding in lint(make(), version, sizes=SIZES)} == {rule}


def test_an_input_of_a_plugin_without_elements():
    """A computed one: as an input of the graph it breaks the rule for those too."""
    given = replaced(4, value("past_key", HALF, "batch", 2, 0, 16))
    assert {finding.rule for finding in lint(attention(given=given), (11, 4))} == {"zero-length", "input-zero-length"}


def test_every_rule_is_broken_by_some_graph():
    assert {rule for rule, _, _ in BROKEN} | {"input-zero-length"} == RULES.keys()


WHOLE = [
    lambda: attention(),
    lambda: attention(functions=[function("DynamicMaskAttention"), function("Else")]),
    lambda: bounded(),
    lambda: top_k(3840),
    lambda: logits(2**23 - 1),
    lambda: product(2**20 - 1),
]  # fmt: skip
WHOLE_SINCE_10_15 = [
    lambda: masked(),
    lambda: masked(is_causal=0),
    lambda: scatter(),
    lambda: weights_of_attention(2**18 - 1),
]


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("make", WHOLE)
def test_a_graph_that_breaks_none(make, version):
    assert lint(make(), version, sizes=SIZES) == ()


@pytest.mark.parametrize("make", WHOLE_SINCE_10_15)
def test_a_graph_of_newer_layers_that_breaks_none(make):
    assert lint(make(), (10, 15), sizes=SIZES) == ()


def test_what_to_lower_is_said():
    def lower(model, sizes=SIZES):
        return [str(finding).partition(": lower ")[2] for finding in lint(model, (11, 4), sizes=sizes)]

    assert lower(logits(2**23)) == ["--max-batch or --max-logits [volume]"]
    assert lower(product(2**20)) == ["--max-batch [volume]"]
    assert lower(product(2**20), SIZES | {"sequence": 4096}) == ["--max-batch or --max-length [volume]"]
    cache = value("past_key_values.0.key", HALF, "batch", 2, 2**24, 16)
    assert lower(scatter(cache)) == ["--max-batch or --max-length [volume]"]


def test_tensors_are_not_counted_where_sizes_are_not_known():
    assert lint(product(2**20), (11, 4)) == ()


def test_versions_differ_in_who_wins():
    """A creator without a namespace: up to 10.14 it goes before a function, from 10.15 on it does not."""
    nameless = tuple(dataclasses.replace(creator, namespace="") for creator in packaged())
    model = unasked(function("DynamicMaskAttention"))
    assert lint(model, (10, 14), nameless) == ()
    assert [finding.rule for finding in lint(model, (10, 15), nameless)] == ["function-wins"]


def test_versions_differ_in_whether_the_domain_is_a_namespace():
    model = attention({"plugin_namespace": None})
    assert [finding.rule for finding in lint(model, (10, 9))] == ["no-creator"]
    assert lint(model, (10, 10)) == ()


def test_a_finding_is_one_line():
    (finding,) = lint(attention(given=replaced(7, value("past_lengths", INT64, "batch"))), (11, 4))
    assert str(finding) == "DynamicMaskAttention attention: input past_lengths is INT64; INT32 expected [input-type]"


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("name", ["as today", "M7"])
def test_our_own_graphs(name, precision):
    _, traced = random_traced(name, 32)
    for version in VERSIONS:
        assert plan_of(traced, precision=precision, tensorrt_version=version).findings == ()


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("name", ["score by query head", "M7"])
def test_our_own_graphs_without_a_plugin(name, precision):
    _, traced = random_traced(name, 32)
    for version in VERSIONS[1:]:
        assert plan_of(traced, precision=precision, attention="native", tensorrt_version=version).findings == ()

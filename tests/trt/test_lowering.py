"""The graph of an engine computes what the checkpoint does: in float32 to rounding, whoever computes attention."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from compositions import COMPOSITIONS, EVERY, FULLY_MASKING, MIXING, random_module
from doge_runs import ONNXRUNTIME, assert_equal_to_rounding, distinct_ids
from engine_on_cpu import NOWHERE, EngineOnCpu, dtype_of, plan_of, random_traced, reference
from whole_trace import whole_trace

from doge_export import DogeExportError
from doge_export.checkpoint.architecture import Rope
from doge_export.graph import trace
from doge_export.trt.traced import Traced

CAPACITY, LENGTH, VOCABULARY = 32, 24, 96
IDS = distinct_ids(3, LENGTH, VOCABULARY)
QUICK = {"as today", "M7"}
NAMES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EVERY if name not in FULLY_MASKING
]
NATIVE = {"no scores", "linear score", "score by query head", "heads of 20, one of keys", "M1", "M7"}
NATIVE_NAMES = [
    name if name in {"score by query head", "M7"} else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(NATIVE)
]
SCALED = {"rope": Rope("dynamic", factor=4.0), "max_position_embeddings": 16}


def engine(name, attention="plugin", precision="fp32"):
    module, traced = random_traced(name, CAPACITY)
    return module, EngineOnCpu(plan_of(traced, precision=precision, attention=attention, max_batch=3))


def check(module, runner, name):
    assert "position_ids" not in runner.plan.inputs
    chunks = [LENGTH] if name in MIXING else [9, 6, 1, 8]
    found = runner.logits(IDS[0], chunks)
    assert_equal_to_rounding(found, reference(module, IDS[0], chunks), ONNXRUNTIME)


@pytest.mark.parametrize("name", NAMES)
def test_with_the_plugin(name):
    check(*engine(name), name)


@pytest.mark.parametrize("name", NATIVE_NAMES)
def test_with_layers_of_tensorrt(name):
    check(*engine(name, "native"), name)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("attention", ["plugin", "native"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "M7" else pytest.mark.slow) for name in EVERY if name not in FULLY_MASKING],
)
def test_equal_to_the_bit_from_the_whole_trace(name, attention, precision):
    if attention == "native" and name not in NATIVE:
        pytest.skip("has no native attention that TensorRT takes, see test_with_layers_of_tensorrt")
    _, traced = random_traced(name, CAPACITY)
    found, expected = (
        EngineOnCpu(plan_of(one, precision=precision, attention=attention)).logits(IDS[0], [20, 1, 3])
        for one in (traced, dataclasses.replace(traced, graph=_whole(name)))
    )
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@functools.lru_cache(1)
def _whole(name):
    return whole_trace(random_traced(name, CAPACITY)[0])


@pytest.mark.parametrize("attention", ["plugin", "native"])
def test_rows_of_different_lengths(attention):
    """Padded on the right, some not read at all in a run; padding and what slots held before change nothing."""
    name = "score by query head"
    module, runner = engine(name, attention)
    runner.reset(3, fill=7.0)
    steps = [[7, 3, 0], [1, 5, 9], [1, 1, 1], [0, 2, 14]]
    seen = [[], [], []]
    for step, counts in enumerate(steps):
        starts = runner.lengths.tolist()
        rows = [IDS[b, starts[b] : starts[b] + count].tolist() for b, count in enumerate(counts)]
        for b, logits in enumerate(runner.read(rows, padding=step, width=10)):
            seen[b].append(logits)
    for b, parts in enumerate(seen):
        found = np.concatenate(parts)
        assert_equal_to_rounding(found, reference(module, IDS[b, : len(found)]), ONNXRUNTIME)


def test_rope_scaled_by_the_length_takes_positions():
    """Padding must not make the longest row longer, so the positions come from outside."""
    module = random_module(COMPOSITIONS["plain residuals"] | SCALED, max_length=CAPACITY)
    runner = EngineOnCpu(plan_of(Traced(trace(module), CAPACITY, NOWHERE), precision="fp32"))
    assert "position_ids" in runner.plan.inputs
    assert_equal_to_rounding(runner.logits(IDS[0]), reference(module, IDS[0]), ONNXRUNTIME)
    runner.reset(2)
    rows = [IDS[0, :14].tolist(), IDS[1, :5].tolist()]
    found = runner.read(rows, width=20)  # as long as scaling begins at, by padding alone
    for logits, row in zip(found, rows, strict=True):
        assert_equal_to_rounding(logits, reference(module, np.array(row)), ONNXRUNTIME)


def test_only_wanted_logits():
    _, runner = engine("as today")
    every = runner.logits(IDS[0])
    runner.reset(1)
    feeds = {
        "input_ids": IDS[:1].astype(np.int32),
        "past_lengths": np.zeros(1, np.int32),
        "logits_tokens": np.array([[LENGTH - 1, 3]], np.int32),
    }
    logits = runner._session.run(["logits"], feeds | runner.caches)[0]
    np.testing.assert_allclose(logits[0], every[[LENGTH - 1, 3]], atol=1e-5)


@pytest.mark.parametrize(("attention", "precision"), [("plugin", "fp16"), ("native", "fp16"), ("plugin", "bf16")])
def test_types(attention, precision):
    """16 bits but for what may overflow or decides; nothing but int32 counts at the engine's border."""
    _, traced = random_traced("score by query head", CAPACITY)
    plan = plan_of(traced, precision=precision, attention=attention)
    half = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}[precision]
    graph = plan.graph.graph
    assert {value.dtype for value in graph.inputs if "." not in value.name} == {ir.DataType.INT32}
    for value in [*graph.inputs, *graph.outputs]:
        if value.name.endswith((".key", ".value")):
            assert value.dtype == half
    for name in ("logits", "present.0.score", "past_key_values.0.score"):
        assert dtype_of(plan.graph, name) == ir.DataType.FLOAT
    wide = {"Softplus", "Exp", "Pow", "ReduceMean", "Sqrt", "Softmax", "TopK", "RMSNormalization", "RotaryEmbedding"}
    for node in graph:
        if node.op_type in wide:
            assert node.outputs[0].dtype == ir.DataType.FLOAT, node
        if node.op_type == "RotaryEmbedding":
            assert {value.dtype for value in node.inputs} == {ir.DataType.FLOAT}
    stored = [value for name, value in graph.initializers.items() if name.startswith("rope.")]
    assert len(stored) == 2
    assert {value.const_value.dtype for value in stored} == {ir.DataType.FLOAT}
    assert plan.types["float32"].keys() & {"Pow", "RMSNormalization"}
    # The head, and by layer: query, key and value in one or apart, output, gate, up, down.
    products = 1 + 2 * (5 if attention == "plugin" else 7)
    assert plan.types[precision.replace("fp16", "float16").replace("bf16", "bfloat16")]["MatMul"] >= products


def test_nodes_for_the_plugin():
    _, traced = random_traced("M7", CAPACITY)
    plan = plan_of(traced)
    ours = [node for node in plan.graph.graph if node.domain == "doge"]
    assert Counter(node.op_type for node in ours) == {"FusedDynamicMaskAttention": 2, "FusedCDMoE": 2}
    assert plan.plugin_nodes == 4
    for node in ours:
        assert node.attributes["plugin_namespace"].as_string() == "doge"
        assert node.attributes["plugin_version"].as_string() == "1"
    assert not plan.graph.functions
    native = plan_of(traced, attention="native")
    assert native.plugin_nodes == 0
    assert "doge" not in native.graph.opset_imports


def test_native_attention_refuses_a_selection():
    _, traced = random_traced("as today", CAPACITY)
    with pytest.raises(DogeExportError, match="lose those beyond keep_window_size 9"):
        plan_of(traced, attention="native")


def test_native_attention_up_to_the_window():
    """The graph has a selection that such a short row never needs."""
    name = "as today"
    module, traced = random_traced(name, CAPACITY)
    short = dataclasses.replace(traced, max_length=9)
    runner = EngineOnCpu(plan_of(short, attention="native", precision="fp32"))
    assert_equal_to_rounding(runner.logits(IDS[0, :9], [4, 5]), reference(module, IDS[0, :9]), ONNXRUNTIME)

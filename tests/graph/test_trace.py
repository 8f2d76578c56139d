"""Canonical ONNX in onnxruntime against the module it was traced from."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from doge_runs import ONNXRUNTIME, assert_equal_to_rounding, distinct_ids, left_padded, module_of, positions
from one_thread import open_session
from random_doge import CONFIG, MOE, random_model

from doge_export.graph import trace

LAYERS = 2
WINDOW, TRAINED = CONFIG["keep_window_size"], CONFIG["max_position_embeddings"]
VARIANTS = {
    "dense": ({}, {}),
    "moe": (MOE, {"cdmoe_routing": "reference"}),
    "moe-per-token": (MOE, {"cdmoe_routing": "per-token"}),
    "tied-biases-short": (
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
        {"max_length": WINDOW},
    ),
}


@functools.cache
def traced(variant):
    changes, options = VARIANTS[variant]
    module = module_of(random_model(num_hidden_layers=LAYERS, **changes), **options)
    return module, ir.to_proto(trace(module))


@functools.cache
def session(variant):
    return open_session(traced(variant)[1])


def run(variant, ids, mask, position_ids, cache):
    """Logits and present caches, as the module gives them."""
    feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids}
    for layer, parts in enumerate(cache):
        for name, part in zip(("key", "value", "score"), parts, strict=True):
            feeds[f"past_key_values.{layer}.{name}"] = part
    return session(variant).run(None, feeds)


def expected(module, ids, mask, position_ids, cache):
    tensors = [tuple(torch.from_numpy(part) for part in parts) for parts in cache]
    with torch.no_grad():
        logits, present = module(*(torch.from_numpy(x) for x in (ids, mask, position_ids)), tensors)
    return [logits.numpy(), *(part.numpy() for parts in present for part in parts)]


def random_cache(architecture, batch, past):
    random = np.random.default_rng(past)
    heads, size = architecture.num_key_value_heads, architecture.head_dim
    return [
        (
            random.normal(size=(batch, heads, past, size)).astype(np.float32),
            random.normal(size=(batch, heads, past, size)).astype(np.float32),
            random.uniform(0.5, 3, size=(batch, heads, past)).astype(np.float32),
        )
        for _ in range(LAYERS)
    ]


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("new", [1, 2, 7, 40])
@pytest.mark.parametrize("past", [0, 1, 2, 7, 33])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_extent_of_every_dynamic_axis(variant, past, new, batch):
    """Padding in every row but the first, when there is room; beyond window and trained length where they sum up."""
    module = traced(variant)[0]
    ids = distinct_ids(batch, new, seed=past)
    mask = left_padded(new, *range(0, min(batch, new))) if new >= batch else np.ones_like(ids)
    inputs = (ids, mask, past + positions(mask), random_cache(module.architecture, batch, past))
    logits, *present = run(variant, *inputs)
    right_logits, *right_present = expected(module, *inputs)
    assert_equal_to_rounding(logits[mask == 1], right_logits[mask == 1], ONNXRUNTIME)
    real = np.concatenate([np.ones((batch, past), bool), mask == 1], axis=1)
    for found, right in zip(present, right_present, strict=True):
        # Time is axis 2. A padding token's key and value are nobody's; its score is, and NEG.
        if found.ndim == 3:
            found_score, right_score = (x.swapaxes(1, 2) for x in (found, right))
            assert_equal_to_rounding(found_score[real], right_score[real], ONNXRUNTIME)
            np.testing.assert_array_equal(found_score[~real], np.finfo(np.float32).min)
        else:
            assert_equal_to_rounding(found.swapaxes(1, 2)[real], right.swapaxes(1, 2)[real], ONNXRUNTIME)


@pytest.mark.parametrize("variant", VARIANTS)
def test_checker_and_versions(variant):
    model = traced(variant)[1]
    onnx.checker.check_model(model)
    assert model.ir_version == 10
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 23, "doge": 1}
    assert model.producer_name == "doge-export"


@pytest.mark.parametrize("variant", VARIANTS)
def test_inputs_and_outputs(variant):
    module, model = traced(variant)
    heads = module.architecture.num_key_value_heads
    new, past = "sequence_length", "past_sequence_length"

    def caches(prefix, time):
        axes = ["batch_size", heads, time]
        return {
            f"{prefix}.{layer}.{part}": axes + [16] * (part != "score")
            for layer in range(LAYERS)
            for part in ("key", "value", "score")
        }

    def axes(values):
        return {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
        }

    tokens = ["batch_size", new]
    assert axes(model.graph.input) == {
        "input_ids": tokens,
        "attention_mask": tokens,
        "position_ids": tokens,
        **caches("past_key_values", past),
    }
    assert axes(model.graph.output) == {
        "logits": [*tokens, CONFIG["vocab_size"]],
        **caches("present", f"{past} + {new}"),
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_doge_nodes_have_bodies_of_standard_operators(variant):
    model = traced(variant)[1]
    nodes = Counter(node.op_type for node in model.graph.node if node.domain == "doge")
    is_moe = variant.startswith("moe")
    assert nodes == {"DynamicMaskAttention": LAYERS} | ({"CDMoE": LAYERS} if is_moe else {})
    assert sorted(function.name for function in model.functions) == sorted(nodes)
    assert {node.domain for node in model.graph.node} == {"", "doge"}
    assert {node.domain for function in model.functions for node in function.node} == {""}


def test_layers_are_told_in_standard_operators_of_their_own():
    """One node where the ecosystem has one: nothing was decomposed."""
    nodes = Counter(node.op_type for node in traced("dense")[1].graph.node)
    assert nodes["RMSNormalization"] == 4 * LAYERS + 1
    assert nodes["RotaryEmbedding"] == 2 * LAYERS
    assert nodes["MatMul"] == 8 * LAYERS + 1
    assert nodes["Softplus"] == LAYERS


def test_initializers_are_the_parameters():
    """Under their own names and once: an untied head of its own, a tied one not at all."""
    for variant in ("dense", "tied-biases-short"):
        module, model = traced(variant)
        names = {tensor.name for tensor in model.graph.initializer}
        assert set(module.state_dict()) <= names
        floats = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= 1024]
        assert sum(len(tensor.raw_data) for tensor in floats) == 4 * sum(
            parameter.numel() for parameter in module.parameters() if parameter.numel() >= 256
        )


def attributes(model, name):
    return {
        onnx.helper.get_attribute_value(attribute)
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name == name
    }


@pytest.mark.parametrize(
    ("rope_type", "max_length", "selects", "scales"),
    [
        ("dynamic", WINDOW, False, False),
        ("dynamic", WINDOW + 1, True, False),
        ("dynamic", TRAINED, True, False),
        ("dynamic", TRAINED + 1, True, True),
        ("default", TRAINED + 1, True, False),
    ],
)
def test_max_length_decides_what_is_in_the_graph(rope_type, max_length, selects, scales):
    rope = {"rope_type": rope_type, "rope_theta": 1e4} | ({"factor": 4.0} if rope_type == "dynamic" else {})
    model = random_model(num_hidden_layers=1, rope_parameters=rope)
    graph = ir.to_proto(trace(module_of(model, max_length=max_length)))
    assert attributes(graph, "keep_window_size") == {WINDOW if selects else 0}
    operators = {node.op_type for node in graph.graph.node}
    assert ("ReduceMax" in operators) is scales
    assert ("Pow" in operators) is scales


def test_no_compiler_is_imported():
    """To import torch's takes longer than to trace."""
    program = """
import sys
from compositions import EVERY, random_module
from doge_export.graph import trace
from doge_export.model import DogeForExport
module = random_module(EVERY["M5"])
module = DogeForExport.from_tensors(module.architecture, module.state_dict())
trace(module)
print([name for name in ("torch._dynamo", "torch.onnx", "torch.export._trace") if name in sys.modules])
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1]
    )
    assert result.stdout.strip() == "[]", result.stderr

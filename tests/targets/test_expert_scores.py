"""Which experts a token is given: in 16 bits the same ones as in float32, since their scores stay float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from composition_runs import DECODERS, LENGTH, VOCABULARY, run, traits
from compositions import EVERY, random_module, traced
from doge_runs import distinct_ids
from one_thread import open_session

from doge_export.graph import trace
from doge_export.runtime.decoders.decoder import SequenceLimits
from doge_export.targets import TARGETS, lower
from doge_export.targets.half import HalfPrecision, prepare
from doge_export.targets.tensorrt import Form, lower_for_tensorrt

ROUTED = ["M0", "M1", "M4", "M5", "M6", "M7", "M7-fixed", "values from a table"]
TARGETS_OF_ROUTED = [*DECODERS, "tensorrt plugin", "tensorrt native"]
LAYERS = 2
NORMS = {"RMSNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "Div"}
"""Div is the last node but one of a norm in primitive ones."""


def halved(name, target, dtype):
    model = traced(name)[1]
    if target.startswith("tensorrt"):
        precision = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}[dtype]
        lower_for_tensorrt(model, Form(precision, target.split()[1], 32))
    else:
        lower(model, TARGETS[target], traits(name))
        prepare(model)
        HalfPrecision(dtype)(model)
    return model


def behind(value, seen):
    """All that a value is computed from, itself included, up to the norm of the hidden states."""
    if value is None or value in seen:
        return seen
    seen.add(value)
    node = value.producer()
    if node is not None and node.op_type not in NORMS:
        for source in node.inputs:
            behind(source, seen)
    return seen


def rankings(model):
    """Return all values that experts are ranked by, for each TopK, CDMoE and FusedCDMoE; no scores of keys."""
    places = {"TopK": (0,), "CDMoE": (1, 2), "FusedCDMoE": (1,)}
    found = [behind(node.inputs[place], set()) for node in model.graph for place in places.get(node.op_type, ())]
    return [values for values in found if not any(x.producer() and x.producer().op_type == "Softplus" for x in values)]


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
@pytest.mark.parametrize("target", TARGETS_OF_ROUTED)
@pytest.mark.parametrize("name", ROUTED)
def test_nothing_is_rounded_between_a_norm_and_a_ranking(name, target, dtype):
    """The norm's result, the router's weights and its scores are float32: nothing in 16 bits comes in between."""
    found = rankings(halved(name, target, dtype))
    assert len(found) >= LAYERS
    for values in found:
        types = {value.dtype if value.const_value is None else value.const_value.dtype for value in values}
        assert ir.DataType.FLOAT in types
        assert not types & {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
        assert any(value.producer() and value.producer().op_type in NORMS for value in values)


def with_close_scores(name):
    """Routers whose scores of a token are one large number plus a thousandth of what they were."""
    module = random_module(EVERY[name])
    with torch.no_grad():
        for parameter_name, weight in module.named_parameters():
            if parameter_name.endswith("router_gate.weight"):
                weight.copy_(1e-3 * weight + 8 * weight.mean(dim=0, keepdim=True))
    return module


@pytest.mark.parametrize("target", DECODERS)
def test_experts_that_16_bits_do_not_tell_apart(target):
    """Scores of some 10 that differ by 1e-3: in float16 most would be equal, and the lower expert would be picked."""
    name = "M7-fixed"
    model = trace(with_close_scores(name))
    lower(model, TARGETS[target], traits(name))
    exact, ids = (
        DECODERS[target](open_session(model), SequenceLimits(32, 32, False)),
        distinct_ids(2, LENGTH, VOCABULARY),
    )
    expected = run(exact, ids)
    prepare(model)
    HalfPrecision()(model)
    found = run(DECODERS[target](open_session(model), SequenceLimits(32, 32, False)), ids)
    off = np.abs(found - expected).max(axis=-1) / expected.std()
    assert off.max() < 0.03  # 0.4 where the canonical graph's scores are float16

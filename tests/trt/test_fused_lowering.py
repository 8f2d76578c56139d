"""The fused nodes of an engine's graph mean what the nodes of the contract do, and are made where they can be."""

from __future__ import annotations

import numpy as np
import pytest
from compositions import EVERY, FULLY_MASKING
from doge_runs import ONNXRUNTIME, assert_equal_to_rounding, distinct_ids
from engine_on_cpu import EngineOnCpu, plan_of, random_traced

from doge_export.targets.passes import fuse_attention, fuse_routing

CAPACITY, LENGTH, VOCABULARY = 32, 24, 96
IDS = distinct_ids(3, LENGTH, VOCABULARY)
QUICK = {"score by query head", "M7"}
NAMES = [name for name in EVERY if name not in FULLY_MASKING]
ATTENTION, EXPERTS = "FusedDynamicMaskAttention", "FusedCDMoE"
UNFUSED = {"no scores", "keys stand still", "values from a table", "biases"}
"""Compositions whose attention is not fused: other scores or values, keys that stand still, projections with a bias."""
ROUTED = {"M7", "M7-fixed"}
"""Those whose routing is fused: the scores are halves of a projection. In M6 they are sorted, before it matched."""


def quick(name):
    return pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)


def operators(plan):
    return {node.op_type for node in plan.graph.graph if node.domain == "doge"}


@pytest.mark.parametrize("name", [quick(name) for name in NAMES])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_fused_or_not_the_logits_are_the_same(monkeypatch, name, precision):
    """In float32 to rounding; in float16, where a sum's last digits are rounded away, nearly to the bit."""
    _, traced = random_traced(name, CAPACITY)
    fused = EngineOnCpu(plan_of(traced, precision=precision))
    monkeypatch.setattr(fuse_attention, "_parts", lambda node: None)
    monkeypatch.setattr(fuse_routing, "_router", lambda node: None)
    apart = EngineOnCpu(plan_of(traced, precision=precision))
    assert operators(apart.plan) <= {"DynamicMaskAttention", "CDMoE"}
    found, expected = (runner.logits(IDS[0], [20, 1, 3]) for runner in (fused, apart))
    if precision == "fp32":
        assert_equal_to_rounding(found, expected, ONNXRUNTIME)
    else:
        assert np.abs(found - expected).max() <= 1e-4
    for name_of_cache, cache in fused.caches.items():
        np.testing.assert_allclose(cache, apart.caches[name_of_cache], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [quick(name) for name in NAMES])
def test_what_is_fused(name):
    found = operators(plan_of(random_traced(name, CAPACITY)[1]))
    assert (ATTENTION in found) is (name not in UNFUSED)
    assert (EXPERTS in found) is (name in ROUTED)
    assert ("DynamicMaskAttention" in found) is (name in UNFUSED)


def test_a_product_and_a_node_take_the_place_of_all(monkeypatch):
    """Norms, rotations, scores and their weights are gone; so is all that only they read."""
    _, traced = random_traced("as today", CAPACITY)
    fused = plan_of(traced)
    monkeypatch.setattr(fuse_attention, "_parts", lambda node: None)
    apart = plan_of(traced)
    layers = len(fused.caches) // 3

    def count(plan, *op_types):
        return sum(node.op_type in op_types for node in plan.graph.graph)

    assert count(fused, "Softplus", "Exp", "Split", "Concat") < count(apart, "Softplus", "Exp", "Split", "Concat")
    assert count(fused, "Softplus", "Exp") == 0 and count(apart, "Softplus", "Exp") == 2 * layers
    assert count(apart, "MatMul") - count(fused, "MatMul") == 3 * layers  # q, k, v and the scores in one
    assert fused.memory.weights <= apart.memory.weights
    node = next(node for node in fused.graph.graph if node.op_type == ATTENTION)
    assert node.attributes["qk_norm"].as_int() == node.attributes["exponential_score"].as_int() == 1
    assert len(node.inputs) == 12

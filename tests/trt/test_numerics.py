"""The very graph of an engine in 16 bits, executed in onnxruntime, against float32 PyTorch: its loss without a GPU.

As onnxruntime's CPU runs it, which keeps float32 between nodes, and with every value rounded as it is stored, which is
what a GPU gives and the only way for bfloat16. Bars in fp16: mean KL at most 1e-3 nats, the same best token in 99.5 %
of the cases, nothing infinite.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import onnx_ir as ir
import pytest
import torch
from doge_runs import distinct_ids
from engine_on_cpu import EngineOnCpu, agreement, plan_of, random_traced, reference, scores_raised, stored_traced
from older_doge import make_checkpoint
from one_thread import open_session
from sixteen_bits import emulated

from doge_export.assets import bundled
from doge_export.quantization.texts import MESSAGES, STORIES
from doge_export.runtime.tokenizer import Tokenizer
from doge_export.trt.describe import plan_facts

KL, ARGMAX, BFLOAT16_ARGMAX = 1e-3, 0.995, 0.975
"""bfloat16 rounds eight times as much as float16, and its share of other best tokens is some four times as large."""
CAPACITY, LENGTH, VOCABULARY = 32, 24, 96
FOURTEEN = 14.0
"""Times softplus of about 1: scores of e^14, some 1e6, and far beyond float16 in any case."""


def told(name, result, argmax=ARGMAX):
    """For whoever runs this with -s: the README's numbers come from here."""
    sys.stdout.write(f"{name}: {result}\n")
    assert result.mean_kl <= KL
    assert result.argmax >= argmax


def texts(folder):
    """Some 400 tokens a model was trained on the like of, in rows."""
    tokenizer = Tokenizer.from_folder(folder)
    rows = [tokenizer.encode(" ".join(part)) for part in (STORIES[:8], STORIES[8:], MESSAGES[:8], MESSAGES[8:])]
    return [np.array(row[:110]) for row in rows]


@pytest.mark.parametrize(
    ("precision", "is_rounded"), [("fp16", False), ("fp16", True), ("bf16", True)], ids=["fp16", "fp16-gpu", "bf16-gpu"]
)
@pytest.mark.parametrize("attention", ["plugin", pytest.param("native", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["doge-nano", "doge-nano-moe"])
def test_bundled(name, attention, precision, is_rounded):
    """Selection at work where the plugin computes attention: the window of both is 64."""
    folder = bundled(name)
    module, traced = stored_traced(folder, 64 if attention == "native" else 128)
    runner = EngineOnCpu(plan_of(traced, attention=attention, precision=precision), is_rounded)
    rows = [row[: traced.max_length] for row in texts(folder)]
    expected = np.concatenate([reference(module, row) for row in rows])
    found = agreement(expected, np.concatenate([runner.logits(row) for row in rows]))
    told(
        f"{name} {attention} {precision} {'rounded' if is_rounded else ''}",
        found,
        ARGMAX if precision == "fp16" else BFLOAT16_ARGMAX,
    )


@pytest.mark.parametrize("attention", ["plugin", "native"])
def test_scores_up_to_a_million(attention):
    """One key takes it all, the same as in float32; nothing overflows though float16 ends at 65504."""
    module, traced = random_traced("score by query head", CAPACITY)
    ids, found = distinct_ids(4, LENGTH, VOCABULARY), []
    with scores_raised(module, FOURTEEN):
        runner = EngineOnCpu(plan_of(traced, attention=attention))
        expected = [reference(module, row) for row in ids]
    for row in ids:
        found.append(runner.logits(row, [16, *[1] * 8]))
        assert 1e6 < runner.caches["past_key_values.0.score"].max() < np.inf
    told(f"large scores, {attention}", agreement(np.concatenate(expected), np.concatenate(found)))


@pytest.mark.parametrize("attention", ["plugin", "native"])
def test_rows_of_padding_alone(attention):
    """They stay finite and change nothing for the others, whatever slots hold: of native attention earlier keys."""
    module, traced = random_traced("score by query head", CAPACITY)
    runner = EngineOnCpu(plan_of(traced, attention=attention, max_batch=3))
    ids = distinct_ids(2, LENGTH, VOCABULARY)
    runner.reset(3, fill=60000.0 if attention == "plugin" else 30.0)
    found = runner.read([ids[0].tolist(), [], ids[1, :5].tolist()])
    assert np.isfinite(runner.outputs["logits"]).all()
    expected = [reference(module, ids[0]), reference(module, ids[1, :5])]
    told("beside padding", agreement(np.concatenate(expected), np.concatenate([found[0], found[2]])))


def test_the_largest_values_are_seen():
    """Far from the end of float16 where the model is sane; a finding where a weight makes them larger than that."""
    folder = bundled("doge-nano")
    _, traced = stored_traced(folder, 128)
    traced = dataclasses.replace(traced, provenance=dataclasses.replace(traced.provenance, folder=folder))
    plan = plan_of(traced, calibrate=True)
    assert plan.findings == ()
    assert len(plan.extremes) > 20
    assert 1 < max(extreme.magnitude for extreme in plan.extremes) < 65504 / 8
    copy = ir.serde.deserialize_model(ir.serde.serialize_model(traced.graph))
    norm = copy.graph.initializers["model.layers.0.post_attention_layernorm.weight"]
    norm.const_value = ir.tensor(norm.const_value.numpy() * np.float32(1e5), name=norm.name)
    findings = plan_of(dataclasses.replace(traced, graph=copy), calibrate=True).findings
    assert {finding.rule for finding in findings} == {"overflow"}
    assert any("float16 ends at 65504: take --bf16 or --fp32" in str(finding) for finding in findings)
    operators = [finding.where.split()[0] for finding in findings]
    assert len(operators) == len(set(operators))


def test_one_value_that_is_not_a_number_is_a_finding():
    """Of 256 in a weight; and what is printed is JSON all the same."""
    folder = bundled("doge-nano")
    _, traced = stored_traced(folder, 128)
    copy = ir.serde.deserialize_model(ir.serde.serialize_model(traced.graph))
    norm = copy.graph.initializers["model.layers.3.post_attention_layernorm.weight"]
    weight = norm.const_value.numpy().copy()
    weight[200] = np.nan
    norm.const_value = ir.tensor(weight, name=norm.name)
    provenance = dataclasses.replace(traced.provenance, folder=folder)
    plan = plan_of(dataclasses.replace(traced, graph=copy, provenance=provenance), calibrate=True)
    assert {finding.rule for finding in plan.findings} == {"overflow"}
    assert all("in float32 already" in str(finding) for finding in plan.findings)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    facts = json.loads(json.dumps(plan_facts(plan)), parse_constant=refuse)
    assert None in [value["magnitude"] for value in facts["typing"]["largest"].values()]


def test_rounding_is_what_numpy_rounds():
    """onnxruntime would be free to leave out a Cast to 16 bits and back."""
    for dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        value = ir.val("x", dtype=ir.DataType.FLOAT, shape=[3])
        halved = ir.node("Cast", [value], {"to": dtype})
        halved.outputs[0].type = ir.TensorType(dtype)
        twice = ir.node("Add", [halved.outputs[0], halved.outputs[0]])
        twice.outputs[0].name, twice.outputs[0].type = "y", ir.TensorType(dtype)
        graph = ir.Graph([value], twice.outputs, nodes=[halved, twice], opset_imports={"": 18})
        session = open_session(emulated(ir.Model(graph, ir_version=8)))
        given = np.array([1.0009766, 3.1415927, 1000.4], np.float32)
        (found,) = session.run(None, {"x": given})
        np.testing.assert_array_equal(found, 2 * given.astype(dtype.numpy()).astype(np.float32))


SIZES = [("20M", "G7", 256), ("20M-MoE", "G4b", 256), ("60M", "G7", 192), ("160M", "G7", 128)]


FORMS = [("fp16", False, 0.985), ("fp16", True, 0.985), ("bf16", True, 0.92)]
"""Precision, whether every value is rounded, and the least share of equal best tokens over all positions."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "generation", "length"), SIZES)
def test_real_sizes(tmp_path, name, generation, length):
    """Random weights, scaled so that activations are as large as trained ones, at the size of a published model.

    Random logits are independent, so that of some 4 % of the tokens the best leads by less than 1 % of the logits'
    deviation. Rounding nothing but the weights to float16, in float32 PyTorch, already leaves 99.5 % (20M), 99.2 %
    (20M-MoE), 98.8 % (60M) of all tokens with the same best: the bar is held where the best is not as good as tied.
    """
    make_checkpoint.make(name, tmp_path, generation)
    module, traced = stored_traced(tmp_path, 2 * length)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randperm(module.architecture.vocab_size, generator=generator)[:length].numpy() for _ in range(6)]
    expected = np.concatenate([reference(module, row) for row in rows])
    assert 0.5 < expected.std() < 20
    best = np.sort(expected, axis=-1)[:, -2:]
    is_decided = best[:, 1] - best[:, 0] > 0.01 * expected.std()
    assert is_decided.mean() > 0.9
    for precision, is_rounded, share in FORMS:
        runner = EngineOnCpu(plan_of(traced, precision=precision), is_rounded)
        found = np.concatenate([runner.logits(row) for row in rows])
        decided = agreement(expected[is_decided], found[is_decided])
        label = f"{name} {generation} {precision} {'rounded' if is_rounded else ''}"
        told(label, agreement(expected, found), share)
        told(f"{label}, decided", decided, ARGMAX if precision == "fp16" else 0.93)

"""The plan of an engine: profiles, buffers, memory, trtexec's line, and what is refused."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil

import numpy as np
import onnx_ir as ir
import pytest
from engine_on_cpu import EngineOnCpu, largest_sizes, plan_of, random_traced

from doge_export import DogeExportError, export
from doge_export.assets import bundled
from doge_export.graph import schemas
from doge_export.package import read_manifest
from doge_export.runtime.engine import plugin_file
from doge_export.trt import device_memory
from doge_export.trt.creators import packaged
from doge_export.trt.make import refuse_findings
from doge_export.trt.plan_engine import plan_engine

CAPACITY = 32


@pytest.fixture(scope="module")
def plan():
    return plan_of(random_traced("as today", CAPACITY)[1], max_batch=3, max_logits=5)


def buffers(plan):
    """Every input and output that is no cache, by name."""
    cached = {name for cache in plan.caches for name in (cache.past, cache.present)}
    return {name: binding for name, binding in (plan.inputs | plan.outputs).items() if name not in cached}


def candidates(plan):
    """How many of the best next tokens a run gives beside all logits."""
    best = plan.outputs.get("best_tokens")
    return best.shape[2] if best else 0


def test_profiles(plan):
    prefill, decode = plan.profiles["prefill"], plan.profiles["decode"]
    assert list(plan.profiles) == ["prefill", "decode"]
    assert prefill.keys() == decode.keys() == plan.inputs.keys()
    assert prefill["input_ids"] == ((1, 1), (1, 32), (3, 32))
    assert decode["input_ids"] == ((1, 1), (1, 1), (3, 1))
    assert prefill["past_lengths"] == decode["past_lengths"] == ((1,), (1,), (3,))
    assert (prefill["logits_tokens"][2], decode["logits_tokens"][2]) == ((3, 5), (3, 1))
    assert prefill["past_key_values.1.score"] == ((1, 2, 32), (1, 2, 32), (3, 2, 32))


@pytest.mark.parametrize(
    ("capacity", "chunkable_length", "max_logits", "longest"),
    [
        (700, 700, 5, 512),
        (700, 2048, 600, 600),
        (700, 699, 5, 700),
        (700, 0, 5, 700),
        (400, 400, 5, 400),
    ],
)
def test_a_run_reads_no_more_than_the_runtime_gives_it(capacity, chunkable_length, max_logits, longest):
    """A prompt that may be read in pieces is read in pieces of 512; any other whole."""
    traced = random_traced("as today", capacity)[1]
    provenance = dataclasses.replace(traced.provenance, chunkable_length=chunkable_length)
    plan = plan_of(dataclasses.replace(traced, provenance=provenance), max_batch=3, max_logits=max_logits)
    assert plan.profiles["prefill"]["input_ids"] == ((1, 1), (1, min(512, capacity)), (3, longest))
    assert plan.profiles["prefill"]["past_key_values.0.key"][2][2] == plan.max_length == capacity
    assert largest_sizes(plan) == {"batch": 3, "sequence": longest, "num_logits": max_logits}


def test_more_rows_than_tensorrt_counts():
    traced = random_traced("as today", CAPACITY)[1]
    plan = plan_of(traced, max_batch=10**8)
    assert {finding.rule for finding in plan.findings} == {"volume"} and plan.memory.workspace is None
    with pytest.raises(DogeExportError, match=r"no engine can be built of this: .*: lower --max-batch .*and \d more"):
        refuse_findings(plan)


def test_memory_is_that_of_the_buffers_a_runtime_allocates(plan):
    """Counted on arrays of the bound shapes, beside the weights that the file holds."""
    caches = [np.zeros(cache.shape, cache.dtype.numpy()) for cache in plan.caches]
    assert plan.memory.caches == sum(array.nbytes for array in caches)
    sizes = largest_sizes(plan)
    shapes = {name: [sizes.get(x, x) for x in binding.shape] for name, binding in buffers(plan).items()}
    arrays = [np.zeros(shape, buffers(plan)[name].dtype.numpy()) for name, shape in shapes.items()]
    assert plan.memory.io == sum(array.nbytes for array in arrays)
    answers = ["logits", "best_logits", "best_tokens"]
    assert list(buffers(plan)) == ["input_ids", "past_lengths", "logits_tokens", *answers]
    tensors = [value.const_value for value in plan.graph.graph.initializers.values()]
    assert plan.memory.weights == sum(tensor.numpy().nbytes for tensor in tensors)
    assert plan.memory.total == plan.memory.weights + plan.memory.caches + plan.memory.io + (plan.memory.workspace or 0)


def test_a_run_stays_within_the_planned_shapes(plan):
    runner = EngineOnCpu(plan)
    runner.reset(plan.max_batch)
    runner.read([[1, 2, 3]] * plan.max_batch)
    for cache in plan.caches:
        assert runner.outputs[cache.present].shape == cache.shape
        assert runner.outputs[cache.present].dtype == cache.dtype.numpy()
    assert runner.outputs["logits"].shape == (3, 3, 96)


@pytest.mark.parametrize("attention", ["plugin", "native"])
def test_the_best_tokens_are_those_of_the_logits(attention):
    """Of every token whose logits are asked for; lower ids first among equals, as onnxruntime has it."""
    plan = plan_of(random_traced("score by query head", CAPACITY)[1], attention=attention, candidates=7)
    assert candidates(plan) == 7 and plan.findings == ()
    runner = EngineOnCpu(plan)
    runner.read([[5, 1, 8, 2]])
    logits, best, tokens = (runner.outputs[name] for name in ("logits", "best_logits", "best_tokens"))
    assert tokens.dtype == np.int32 and best.dtype == np.float32
    np.testing.assert_array_equal(tokens, np.argsort(-logits, axis=-1, kind="stable")[..., :7])
    np.testing.assert_array_equal(best, np.take_along_axis(logits, tokens, axis=-1))


def test_more_candidates_than_tokens_and_none(plan):
    traced = random_traced("as today", CAPACITY)[1]
    assert candidates(plan_of(traced, candidates=1000)) == 96
    without = plan_of(traced, candidates=0)
    assert candidates(without) == 0 and [*buffers(without)] == ["input_ids", "past_lengths", "logits_tokens", "logits"]


def test_half_the_weights(plan):
    wide = plan_of(random_traced("as today", CAPACITY)[1], precision="fp32")
    assert plan.memory.weights < 0.6 * wide.memory.weights


def test_without_kernels_the_workspace_is_not_known(plan, monkeypatch):
    monkeypatch.setattr(device_memory, "cached_builds", lambda: [])
    sizes = largest_sizes(plan)
    assert device_memory.memory_of(plan.graph, plan.inputs | plan.outputs, plan.caches, sizes).workspace is None
    native = plan_of(random_traced("score by query head", CAPACITY)[1], attention="native")
    assert native.memory.workspace == 0


def test_a_library_that_does_not_load_is_passed_over(plan, monkeypatch, tmp_path):
    (tmp_path / device_memory.KERNELS).write_text("not a library")
    monkeypatch.setattr(
        device_memory, "cached_builds", lambda: [{"folder": str(tmp_path), "libraries": [device_memory.KERNELS]}]
    )
    sizes = largest_sizes(plan)
    assert device_memory.memory_of(plan.graph, plan.inputs | plan.outputs, plan.caches, sizes).workspace is None


def test_trtexec(plan):
    words = shlex.split(plan.trtexec("a folder/model.onnx", "x.engine", "/p/libdoge_trt_plugin.so"))
    assert words[:4] == [
        "trtexec", "--onnx=a folder/model.onnx", "--saveEngine=x.engine", "--dynamicPlugins=/p/libdoge_trt_plugin.so",
    ]  # fmt: skip
    assert [word for word in words if word.startswith("--profile")] == ["--profile=0", "--profile=1"]
    most = [word for word in words if word.startswith("--maxShapes=")]
    assert "input_ids:3x32," in most[0]
    assert "past_key_values.0.key:3x2x32x16" in most[1]
    assert len(words) == 12
    old = plan_of(random_traced("as today", CAPACITY)[1], tensorrt_version=(10, 9))
    assert "--stronglyTyped" in old.trtexec()
    assert (
        "--dynamicPlugins"
        not in plan_of(random_traced("score by query head", CAPACITY)[1], attention="native").trtexec()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "unknown precision 'int8'; choose fp16, bf16, fp32"),
        ({"attention": "fast"}, "unknown attention 'fast'; choose plugin or native"),
        ({"max_batch": 0}, "max batch is 0, expected 1 or more"),
        ({"max_logits": 0}, "max logits is 0, expected 1 or more"),
        ({"candidates": 3841}, "candidates is 3841, expected 0 to 3840"),
        ({"tensorrt_version": (10, 8)}, "TensorRT 10.8 is too old; 10.9 or newer expected"),
        ({"attention": "native", "tensorrt_version": (10, 14)}, "TensorRT 10.14 lacks layers of native attention"),
        ({"max_length": 0}, "max length 0 is not a number of tokens"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(DogeExportError, match=re.escape(message)):
        plan_engine(bundled("doge-nano"), **options)


@pytest.fixture(scope="module")
def canonical(tmp_path_factory):
    out = tmp_path_factory.mktemp("canonical") / "out"
    return export(bundled("doge-nano"), out, target="canonical", max_length=96, validate=False).folder


def test_of_an_export(canonical):
    """Without the checkpoint, and for fewer tokens than it was made for."""
    plan = plan_engine(canonical, max_length=80)
    assert plan.max_length == 80
    assert plan.plugin_nodes == 4
    assert plan.findings == ()
    assert plan.provenance.companions[0] == canonical / "config.json"
    assert "tokenizer.json" in [file.name for file in plan.provenance.companions]
    assert plan.provenance.architecture["vocab_size"] == plan.outputs["logits"].shape[2]
    assert plan.inputs["past_key_values.0.key"].dtype == ir.DataType.FLOAT16


def test_refusals_of_an_export(canonical):
    with pytest.raises(DogeExportError, match=r"max length is 97, and .* was exported for 96: give the checkpoint"):
        plan_engine(canonical, max_length=97)
    with pytest.raises(DogeExportError, match="is an export, where cdmoe_routing is decided"):
        plan_engine(canonical, cdmoe_routing="per-token")


def test_another_export_stands_for_its_checkpoint(nano_folder):
    recorded = read_manifest(nano_folder)
    plan = plan_engine(nano_folder, max_length=60, calibrate=False)
    assert (plan.provenance.source.model, plan.max_length) == (recorded.source.model, 60)
    assert plan.findings == ()


def test_the_package_knows_all_operators():
    """That it is the plugin's own list is checked beside the plugin: tests/plugins/test_trt_library.py."""
    assert [(creator.name, creator.namespace, creator.version) for creator in packaged()] == [
        ("DynamicMaskAttention", "doge", "1"), ("CDMoE", "doge", "1"),
        ("FusedDynamicMaskAttention", "doge", "1"), ("FusedCDMoE", "doge", "1"),
    ]  # fmt: skip
    assert (schemas.DOMAIN, str(schemas.VERSION)) == (plugin_file.NAMESPACE, plugin_file.VERSION) == ("doge", "1")


@pytest.mark.parametrize("content", [b"hello" * 100, b"", None])
def test_a_damaged_graph_of_an_exported_folder_is_one_line(bundled_folder, tmp_path, content):
    folder = tmp_path / "out"
    shutil.copytree(bundled_folder("doge-nano", "canonical"), folder)
    file = folder / "onnx" / "model.onnx"
    file.write_bytes(file.read_bytes()[:20_000] if content is None else content)
    with pytest.raises(DogeExportError, match="is damaged") as error:
        plan_engine(folder)
    assert "\n" not in str(error.value)

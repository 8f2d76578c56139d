"""From a model to the plan of its engine; neither TensorRT nor a GPU is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from doge_export.console import log
from doge_export.errors import DogeExportError
from doge_export.plugin.tensorrt_versions import OLDEST, dotted
from doge_export.runtime.context import PREFILL_CHUNK
from doge_export.targets.half import operators_by_type
from doge_export.targets.half.extremes import Extreme
from doge_export.targets.lowering import extent, named
from doge_export.targets.tensorrt import DTYPES, Attention, Form, Precision, lower_for_tensorrt
from doge_export.trt.device_memory import memory_of
from doge_export.trt.engine_plan import DECODE, PREFILL, Binding, EnginePlan, PlannedCache, Range
from doge_export.trt.importers import Version
from doge_export.trt.largest_values import largest_values, overflows, texts_for
from doge_export.trt.lint import lint
from doge_export.trt.rules.layers import MOST_PICKS
from doge_export.trt.traced import Traced, open_model

NEWEST: Version = (11, 4)
NATIVE_SINCE: Version = (10, 15)
"""The first TensorRT with every layer that native attention is made of."""
CANDIDATES = 64
"""More than the 50 that transformers samples from by default."""


def plan_engine(
    model: str | Path,
    *,
    precision: Precision = "fp16",
    attention: Attention = "plugin",
    max_batch: int = 1,
    max_length: int | None = None,
    max_logits: int = 64,
    candidates: int = CANDIDATES,
    tensorrt_version: Version = NEWEST,
    calibrate: bool = True,
    **options: Any,
) -> EnginePlan:
    """What an engine of `model` will be.

    Args:
        model: a checkpoint (folder, hub id, bundled name) or a folder exported with `--target canonical`.
        precision: of weights, activations and caches.
        attention: "plugin", or "native" for TensorRT's own layers, which select no keys.
        max_batch: rows at once.
        max_length: tokens of a row, prompt and answer together; max_position_embeddings by default.
        max_logits: tokens of a row whose logits one run may give.
        candidates: the best next tokens that every run gives beside all logits; 0: none. Greedy choice and top-k up to
            their number (less where logits are equal there) copy only these to the host.
        tensorrt_version: that is to read the graph: (major, minor).
        calibrate: in fp16, run the graph on texts first and look how large the values get that float16 is to hold: one
            beyond its end is a finding.
        options: as `pipeline.plan` takes them: cdmoe_routing, revision...

    Raises DogeExportError for what no engine can be.
    """
    _check(precision, attention, max_batch, max_logits, candidates, tensorrt_version)
    traced = open_model(model, max_length=max_length, **options)
    return plan_traced(
        traced,
        precision=precision,
        attention=attention,
        max_batch=max_batch,
        max_logits=max_logits,
        candidates=candidates,
        tensorrt_version=tensorrt_version,
        calibrate=calibrate,
    )


def plan_traced(
    traced: Traced,
    *,
    precision: Precision = "fp16",
    attention: Attention = "plugin",
    max_batch: int = 1,
    max_logits: int = 64,
    candidates: int = CANDIDATES,
    tensorrt_version: Version = NEWEST,
    calibrate: bool = False,
) -> EnginePlan:
    """As `plan_engine`, of a graph that is there already; it is lowered in place."""
    graph, capacity = traced.graph, traced.max_length
    if attention == "native":
        _require_no_selection(graph, capacity)
    candidates = min(candidates, extent(named(graph.graph.outputs, "logits")[0], 2))
    form = Form(precision, attention, capacity, candidates)
    extremes = _extremes(traced, form) if calibrate and precision == "fp16" else ()
    log(f"lowering for TensorRT {dotted(tensorrt_version)}")
    lower_for_tensorrt(graph, form)
    inputs = {binding.name: binding for binding in map(_binding, graph.graph.inputs)}
    outputs = {binding.name: binding for binding in map(_binding, graph.graph.outputs)}
    max_logits = min(max_logits, capacity)
    largest = {"batch": max_batch, "sequence": _longest(traced, max_logits), "num_logits": max_logits}
    caches = tuple(_cache(inputs[name], outputs, max_batch) for name in inputs if name.startswith("past_key_values."))
    return EnginePlan(
        graph=graph,
        precision=precision,
        attention=attention,
        tensorrt_version=tensorrt_version,
        max_batch=max_batch,
        max_length=capacity,
        max_logits=max_logits,
        inputs=inputs,
        outputs=outputs,
        caches=caches,
        profiles=_profiles(inputs, largest),
        plugin_nodes=sum(node.domain == "doge" for node in graph.graph),
        memory=memory_of(graph, inputs | outputs, caches, largest),
        findings=(*lint(graph, tensorrt_version, sizes=largest), *overflows(extremes)),
        types=operators_by_type(graph),
        provenance=traced.provenance,
        extremes=extremes,
    )


def _longest(traced: Traced, max_logits: int) -> int:
    """Tokens of a row that one run reads at most: all that the caches hold, unless a prompt may be read in pieces."""
    capacity = traced.max_length
    if traced.provenance.chunkable_length < capacity:
        return capacity
    return min(capacity, max(PREFILL_CHUNK, max_logits))


def _extremes(traced: Traced, form: Form) -> tuple[Extreme, ...]:
    log("looking for the largest values")
    return largest_values(traced, form, texts_for(traced))


def _check(precision: str, attention: str, max_batch: int, max_logits: int, candidates: int, version: Version) -> None:
    if precision not in DTYPES:
        raise DogeExportError(f"unknown precision {precision!r}; choose {', '.join(DTYPES)}")
    if attention not in ("plugin", "native"):
        raise DogeExportError(f"unknown attention {attention!r}; choose plugin or native")
    for name, value in (("max batch", max_batch), ("max logits", max_logits)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise DogeExportError(f"{name} is {value!r}, expected 1 or more")
    if not isinstance(candidates, int) or isinstance(candidates, bool) or not 0 <= candidates <= MOST_PICKS:
        raise DogeExportError(f"candidates is {candidates!r}, expected 0 to {MOST_PICKS}, TensorRT's limit of TopK")
    if version < OLDEST:
        raise DogeExportError(f"TensorRT {dotted(version)} is too old; {dotted(OLDEST)} or newer expected")
    if attention == "native" and version < NATIVE_SINCE:
        raise DogeExportError(
            f"TensorRT {dotted(version)} lacks layers of native attention; use {dotted(NATIVE_SINCE)} or newer, or "
            "--attention plugin"
        )


def _require_no_selection(model: ir.Model, capacity: int) -> None:
    windows = [
        node.attributes["keep_window_size"].as_int() for node in model.graph if node.op_type == "DynamicMaskAttention"
    ]
    window = min((window for window in windows if window), default=capacity)
    if capacity > window:
        raise DogeExportError(
            f"native attention selects no keys, and rows of {capacity} tokens lose those beyond keep_window_size "
            f"{window}: use --max-length {window}, or --attention plugin"
        )


def _binding(value: ir.Value) -> Binding:
    assert value.name is not None and value.dtype is not None and value.shape is not None
    return Binding(value.name, value.dtype, tuple(size if isinstance(size, int) else str(size) for size in value.shape))


def _cache(past: Binding, outputs: dict[str, Binding], max_batch: int) -> PlannedCache:
    present = outputs[past.name.replace("past_key_values", "present")]
    assert (present.dtype, present.shape) == (past.dtype, past.shape), f"{past.name} is not written in place"
    return PlannedCache(
        past.name, present.name, past.dtype, tuple(x if isinstance(x, int) else max_batch for x in past.shape)
    )


def _profiles(inputs: dict[str, Binding], largest: dict[str, int]) -> dict[str, dict[str, Range]]:
    smallest = {"batch": 1, "sequence": 1, "num_logits": 1}
    sizes = {
        PREFILL: (smallest, smallest | {"sequence": min(PREFILL_CHUNK, largest["sequence"])}, largest),
        DECODE: (smallest, smallest, smallest | {"batch": largest["batch"]}),
    }

    return {
        profile: {name: (binding.at(least), binding.at(best), binding.at(most)) for name, binding in inputs.items()}
        for profile, (least, best, most) in sizes.items()
    }

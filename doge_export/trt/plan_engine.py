"""Plan the engine of a model; neither TensorRT nor a GPU is needed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from doge_export.console import log
from doge_export.errors import DogeExportError
from doge_export.graph.schemas import DOMAIN
from doge_export.package.manifest import UNLIMITED
from doge_export.plugin.tensorrt_versions import dotted
from doge_export.runtime.context import PREFILL_CHUNK
from doge_export.runtime.engine.kinds import KINDS, TENSORRT
from doge_export.targets.contract import extent, node_input
from doge_export.targets.half import operators_by_type
from doge_export.targets.half.extremes import Extreme
from doge_export.targets.lowering import named
from doge_export.targets.tensorrt import Form, lower_for_tensorrt
from doge_export.trt.device_memory import memory_of
from doge_export.trt.engine_options import PROFILE_ROWS, EngineOptions
from doge_export.trt.engine_plan import DECODE, PREFILL, Binding, EnginePlan, PlannedCache, Range
from doge_export.trt.largest_values import largest_values, overflows, texts_for
from doge_export.trt.lint import lint
from doge_export.trt.traced import Traced, open_model


def plan_engine(
    model: str | Path, *, max_length: int | Literal["unlimited"] | None = None, **options: Any
) -> EnginePlan:
    """Plan an engine of `model`.

    Args:
        model: a checkpoint (folder, hub id, bundled name), or an exported folder, see `open_model`.
        max_length: tokens of a row, prompt and answer together. None: max_position_embeddings. "unlimited", with
            bounded caches, is as many as RoPE has exact float32 positions.
        options: fields of `EngineOptions`; any others are those of `pipeline.plan`: cdmoe_routing, revision... None is
            the default.

    Returns:
        the plan, with findings if no engine may be built of it.

    Raises:
        DogeExportError: an option is wrong, or no engine can be made of the model.
    """
    options = {name: value for name, value in options.items() if value is not None}
    fields = {field.name for field in dataclasses.fields(EngineOptions)}
    asked = EngineOptions(**{name: value for name, value in options.items() if name in fields})
    asked.check()
    opening = {name: value for name, value in options.items() if name not in fields}
    traced = open_model(model, max_length=UNLIMITED if max_length == "unlimited" else max_length, **opening)
    # An export may be unlimited, too, and be asked for without its bounded cache.
    if traced.max_length == UNLIMITED and (asked.cache or traced.cache) != "bounded":
        raise DogeExportError(
            "max length unlimited needs a cache of constant size: add --cache bounded, or a number with --max-length"
        )
    return plan_traced(traced, asked)


def plan_traced(traced: Traced, options: EngineOptions) -> EnginePlan:
    """Plan an engine of a traced model, whose graph is lowered in place. Otherwise like `plan_engine`."""
    graph, max_length = traced.graph, traced.max_length
    cache = options.cache or traced.cache
    if cache == "bounded":
        capacity = _require_bounded(traced, options.attention)
    elif options.attention == "native":
        _require_no_selection(graph, max_length)
    max_logits = min(options.max_logits, max_length)
    longest = _longest(traced, max_logits, options.max_prompt if cache == "bounded" else max_length)
    candidates = min(options.candidates, extent(named(graph.graph.outputs, "logits")[0], 2))
    form = Form(options.precision, options.attention, max_length, candidates)
    if cache == "bounded":
        form = dataclasses.replace(form, capacity=capacity, bounded=True, longest=longest)
    extremes = _extremes(traced, form) if options.calibrate and options.precision == "fp16" else ()
    kind = KINDS[options.builder]
    log(f"lowering for {kind.title}" + (f" {dotted(options.tensorrt_version)}" if kind == TENSORRT else ""))
    lower_for_tensorrt(graph, form)
    inputs = {binding.name: binding for binding in map(_binding, graph.graph.inputs)}
    outputs = {binding.name: binding for binding in map(_binding, graph.graph.outputs)}
    largest = {"batch": options.max_batch, "sequence": longest, "num_logits": max_logits}
    pasts = [binding for name, binding in inputs.items() if name.startswith("past_key_values.")]
    caches = tuple(_cache(past, outputs, options.max_batch) for past in pasts)
    return EnginePlan(
        graph=graph,
        precision=options.precision,
        attention=options.attention,
        builder=options.builder,
        tensorrt_version=options.tensorrt_version,
        max_batch=options.max_batch,
        max_length=max_length,
        max_logits=max_logits,
        cache=cache,
        inputs=inputs,
        outputs=outputs,
        caches=caches,
        profiles=_profiles(inputs, largest, max(options.max_batch, PROFILE_ROWS[options.builder])),
        plugin_nodes=sum(node.domain == DOMAIN for node in graph.graph),
        memory=memory_of(graph, inputs | outputs, caches, largest),
        findings=(*lint(graph, options.tensorrt_version, sizes=largest), *overflows(extremes)),
        types=operators_by_type(graph),
        provenance=traced.provenance,
        extremes=extremes,
    )


def _longest(traced: Traced, max_logits: int, max_prompt: int) -> int:
    """Return the most tokens of a row that one run reads.

    A prompt that may be read in pieces is read in pieces of `PREFILL_CHUNK`; any other must fit into one run.
    """
    longest = max(PREFILL_CHUNK, max_logits)
    if traced.provenance.chunkable_length < traced.max_length:
        longest = max(longest, max_prompt)
    return min(traced.max_length, longest)


def _extremes(traced: Traced, form: Form) -> tuple[Extreme, ...]:
    log("looking for the largest values")
    return largest_values(traced, form, texts_for(traced))


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


def _require_bounded(traced: Traced, attention: str) -> int:
    """Return keep_window_size, the slots of bounded caches.

    Raises:
        DogeExportError: they would not be exact, or of no use.
    """
    if attention == "native":
        raise DogeExportError(
            "--cache bounded lets a new key take the slot of the worst one, for which TensorRT has no layer: take "
            "--attention plugin, or --cache unbounded"
        )
    nodes = [node for node in traced.graph.graph if node.op_type == "DynamicMaskAttention"]
    heads, window = (
        min(node.attributes[name].as_int() for node in nodes) for name in ("kv_num_heads", "keep_window_size")
    )
    trained_window = traced.provenance.architecture.get("keep_window_size", window)
    if not trained_window:
        raise DogeExportError(
            "--cache bounded has no bound for this model: without keep_window_size every token may attend to every "
            "earlier one; take --cache unbounded"
        )
    scores = extent(node_input(nodes[0], 6), 1)
    if scores != heads:
        raise DogeExportError(
            f"--cache bounded needs one score for each of the {heads} key/value heads, this model has {scores}: each "
            "would keep keys of its own, a cache for each in the place of one; take --cache unbounded"
        )
    if traced.max_length <= trained_window:
        raise DogeExportError(
            f"--cache bounded keeps {trained_window} keys and max length {traced.max_length} needs no more: take "
            "--cache unbounded, or --max-length unlimited"
        )
    return window


def _binding(value: ir.Value) -> Binding:
    assert value.name is not None and value.dtype is not None and value.shape is not None
    return Binding(value.name, value.dtype, tuple(size if isinstance(size, int) else str(size) for size in value.shape))


def _cache(past: Binding, outputs: dict[str, Binding], max_batch: int) -> PlannedCache:
    present = outputs[past.name.replace("past_key_values", "present")]
    assert (present.dtype, present.shape) == (past.dtype, past.shape), f"{past.name} is not written in place"
    shape = tuple(size if isinstance(size, int) else max_batch for size in past.shape)
    return PlannedCache(past.name, present.name, past.dtype, shape)


def _profiles(inputs: dict[str, Binding], largest: dict[str, int], rows: int) -> dict[str, dict[str, Range]]:
    smallest = {"batch": 1, "sequence": 1, "num_logits": 1}
    best = smallest | {"sequence": min(PREFILL_CHUNK, largest["sequence"])}
    sizes = {
        PREFILL: (smallest, best, largest | {"batch": rows}),
        DECODE: (smallest, smallest, smallest | {"batch": rows}),
    }

    return {
        profile: {name: (binding.at(least), binding.at(best), binding.at(most)) for name, binding in inputs.items()}
        for profile, (least, best, most) in sizes.items()
    }

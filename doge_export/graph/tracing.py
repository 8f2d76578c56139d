"""Trace the module to canonical ONNX: record its PyTorch calls and translate them.

Each kind of layer is recorded once and written for every layer under its own names, so the time hardly depends on their
number. torch.fx records calls with symbolic sizes: no size of an example is baked in, and control flow that depends on
one fails.

28 November 2026: torch.fx instead of torch.export and torch.onnx, which import a compiler and decompose the module in
seconds. tests/whole_trace.py keeps that way as the oracle of the tests.

The canonical graph holds standard ops of opset 23 (RMSNormalization and RotaryEmbedding among them) and nodes of domain
`doge` with a function body. Inputs and outputs, for each layer i:

    input_ids, attention_mask, position_ids          int64 [batch_size, sequence_length]
    past_key_values.{i}.key, .value                  [batch_size, Hkv, past_sequence_length, D]
    past_key_values.{i}.score                        float32 [batch_size, Hs, past_sequence_length]
    logits                                           [batch_size, sequence_length, V]
    present.{i}.key, .value, .score                  as above, past_sequence_length + sequence_length long

attention_mask speaks of the new tokens alone: padding among the cached ones is already in their scores.

Tasks without a cache have input_ids, attention_mask and one output: last_hidden_state [batch_size, sequence_length, H]
or logits [batch_size, labels].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from doge_export.checkpoint.architecture import Architecture
from doge_export.graph import functions
from doge_export.graph.blocks import Recorder
from doge_export.graph.extents import EXAMPLES, ExampleSizes, Type, type_of
from doge_export.graph.schemas import DOMAIN, IR_VERSION, OPSET, VERSION
from doge_export.graph.tidy import tidy
from doge_export.graph.translator import Translator
from doge_export.model import DogeForTask

CACHE_PARTS = ("key", "value", "score")


TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids")
"""Inputs of the new tokens; a task without a cache has the first two."""


def cache_names(prefix: str, layer: int) -> list[str]:
    """Return the names of a layer's caches; `prefix` is "past_key_values" or "present"."""
    return [f"{prefix}.{layer}.{part}" for part in CACHE_PARTS]


def trace(module: DogeForTask) -> ir.Model:
    """Return the canonical ONNX of a module; its initializers share memory with the module's parameters."""
    architecture = module.eval().architecture
    layers = range(architecture.num_hidden_layers if architecture.task == "text-generation" else 0)
    examples = [_example(architecture, len(layers), sizes) for sizes in EXAMPLES]
    recorder = Recorder(module, module.model.layers)
    with torch.no_grad():
        whole = recorder.record(examples, {"cache": [fx.PH for _ in layers]} if layers else None)

    names = [*TOKEN_INPUTS[: 3 if layers else 2], *(cache_names("past_key_values", i) for i in layers)]
    arguments = _inputs(names, type_of(*examples))
    graph = ir.Graph(list(_leaves(arguments)), [], nodes=[], opset_imports={"": OPSET, DOMAIN: VERSION}, name="doge")
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        stored = ir.tensor(tensor.detach().numpy(), name=name)
        graph.register_initializer(ir.val(name, const_value=stored))
    results = Translator(graph, recorder.blocks).write(whole, arguments)
    first = "last_hidden_state" if architecture.task == "feature-extraction" else "logits"
    outputs = [first, *(name for i in layers for name in cache_names("present", i))]
    for value, name in zip(_leaves(results), outputs, strict=True):
        value.name = name
        graph.outputs.append(value)

    weights_inside = architecture.moe is not None and architecture.moe.weights_inside
    model = ir.Model(
        graph,
        ir_version=IR_VERSION,
        producer_name="doge-export",
        functions=[functions.body("DynamicMaskAttention"), functions.body("CDMoE", weights_inside)],
    )
    tidy(model)
    return model


def _example(architecture: Architecture, layers: int, sizes: ExampleSizes) -> tuple[Any, ...]:
    """Return arguments of the module, a cache for each of `layers` behind them."""
    tokens = torch.ones(sizes.batch, sizes.new, dtype=torch.int64)
    if not layers:
        return tokens, tokens
    entry = torch.zeros(sizes.batch, architecture.num_key_value_heads, sizes.past, architecture.head_dim)
    score = torch.zeros(sizes.batch, architecture.cached_scores, sizes.past)
    return tokens, tokens, tokens, *[(entry, entry, score)] * layers


def _inputs(names: Any, types: Any) -> Any:
    """Make values of the given types and names; a tuple for a list of names."""
    if isinstance(types, Type):
        return ir.val(names, dtype=types.dtype, shape=types.axes)
    return tuple(_inputs(*each) for each in zip(names, types, strict=True))


def _leaves(values: Any) -> Iterator[ir.Value]:
    """Yield the values of nested tuples and lists, in order."""
    if isinstance(values, ir.Value):
        yield values
    else:
        for each in values:
            yield from _leaves(each)

"""A whole module traced by torch.export and translated by torch.onnx: the oracle of `doge_export.graph.tracing`.

It takes seconds for each module, more with every layer, and plays no part in an export.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset23 as op
from onnxscript.values import Op
from torch.export import Dim

from doge_export.checkpoint.architecture import Architecture
from doge_export.graph import functions, schemas
from doge_export.graph.reshapes import constant_target, target_value
from doge_export.graph.schemas import IR_VERSION, OPSET
from doge_export.graph.tidy import tidy
from doge_export.graph.tracing import cache_names
from doge_export.model import DogeForTask

_TORCHLIB_OPSET = 18
"""What torch.onnx writes of itself. None of the standard ops it emits for this module (elementwise, shape and gather
ops) changed its meaning between 18 and 23, so the model is declared as 23 without a conversion."""


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    product = op.MatMul(x, op.Transpose(weight, perm=[1, 0]))
    return product if bias is None else op.Add(product, bias)


def _rms_norm(x: Any, normalized_shape: Any, weight: Any, eps: float) -> Any:
    return op.RMSNormalization(x, weight, axis=-1, epsilon=eps)


def _silu(x: Any) -> Any:
    return op.Mul(x, op.Sigmoid(x))


def _rotate(x: Any, cos: Any, sin: Any, num_heads: int) -> Any:
    return op.RotaryEmbedding(x, cos, sin, num_heads=num_heads)


_DynamicMaskAttention = Op(functions.DOGE, "DynamicMaskAttention", schemas.DYNAMIC_MASK_ATTENTION)
_RatioMaskAttention = Op(functions.DOGE, "RatioMaskAttention", schemas.RATIO_MASK_ATTENTION)
_CDMoE = Op(functions.DOGE, "CDMoE", schemas.CDMOE)


def _dynamic_mask_attention(
    query: Any,
    key: Any,
    value: Any,
    score: Any,
    past_key: Any,
    past_value: Any,
    past_score: Any,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    keep_window_size: int,
) -> Any:
    # Attributes by name: a schema does not keep their order.
    return _DynamicMaskAttention(
        *(query, key, value, score, past_key, past_value, past_score),
        num_heads=num_heads,
        kv_num_heads=kv_num_heads,
        scale=scale,
        keep_window_size=keep_window_size,
    )


def _ratio_mask_attention(
    query: Any,
    key: Any,
    value: Any,
    score: Any,
    past_key: Any,
    past_value: Any,
    past_score: Any,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    ratio: float,
    keep_window_size: int,
    of_excess: bool,
    adds_causality: bool,
) -> Any:
    return _RatioMaskAttention(
        *(query, key, value, score, past_key, past_value, past_score),
        num_heads=num_heads,
        kv_num_heads=kv_num_heads,
        scale=scale,
        ratio=repr(ratio),
        keep_window_size=keep_window_size,
        of_excess=int(of_excess),
        adds_causality=int(adds_causality),
    )


def _cdmoe(
    hidden: Any,
    scores_x: Any,
    scores_y: Any,
    down_embed: Any,
    up_embed: Any,
    num_experts_per_tok: int,
    weights_inside: bool = False,
) -> Any:
    return _CDMoE(
        *(hidden, scores_x, scores_y, down_embed, up_embed),
        num_experts_per_tok=num_experts_per_tok,
        weights_inside=int(weights_inside),
    )


_TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.linear.default: _linear,
    torch.ops.aten.rms_norm.default: _rms_norm,
    torch.ops.aten.silu.default: _silu,
    torch.ops.aten.softplus.default: op.Softplus,
    torch.ops.doge.rotate.default: _rotate,
    torch.ops.doge.dynamic_mask_attention.default: _dynamic_mask_attention,
    torch.ops.doge.ratio_mask_attention.default: _ratio_mask_attention,
    torch.ops.doge.cdmoe.default: _cdmoe,
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx reports torchvision's absence, and its own deprecations, to whoever exports."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _example(architecture: Architecture) -> tuple[tuple[Any, ...], tuple[Any, ...], list[str], list[str]]:
    """Arguments of the module, which of their axes are dynamic, and the names of inputs and outputs.

    The example is larger than 1 in every dynamic axis, and no two axes are equal: torch.export makes constants of 0 and
    1, and one axis of equal ones. A tensor object given twice would become one input.
    """
    batch, new, past = 3, 5, 7
    by_token, by_key = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    inputs = ["input_ids", "attention_mask"]
    outputs = {"text-generation": "logits", "feature-extraction": "last_hidden_state", "text-classification": "logits"}
    names = [outputs[architecture.task]]
    if architecture.task != "text-generation":
        tokens = tuple(torch.ones(batch, new, dtype=torch.int64) for _ in inputs)
        return tokens, (by_token, by_token), inputs, names
    layers = range(architecture.num_hidden_layers)
    heads, size, scores = architecture.num_key_value_heads, architecture.head_dim, architecture.cached_scores
    cache = [
        (torch.zeros(batch, heads, past, size), torch.zeros(batch, heads, past, size), torch.zeros(batch, scores, past))
        for _ in layers
    ]
    inputs.append("position_ids")
    tokens = tuple(torch.ones(batch, new, dtype=torch.int64) for _ in inputs)
    return (
        (*tokens, cache),
        (by_token, by_token, by_token, [(by_key, by_key, by_key) for _ in layers]),
        inputs + [name for i in layers for name in cache_names("past_key_values", i)],
        names + [name for i in layers for name in cache_names("present", i)],
    )


def whole_trace(module: DogeForTask) -> ir.Model:
    """Canonical ONNX of a module, as `graph.trace` gives it."""
    architecture = module.architecture
    arguments, dynamic_shapes, input_names, output_names = _example(architecture)
    with torch.no_grad(), _quiet():
        exported = torch.export.export(module.eval(), arguments, dynamic_shapes=dynamic_shapes)
        program = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=_TORCHLIB_OPSET,
            custom_translation_table=_TRANSLATIONS,
            optimize=False,
            verbose=False,
            input_names=input_names,
            output_names=output_names,
        )
    assert program is not None
    model = program.model
    model.ir_version = IR_VERSION
    model.opset_imports[""] = OPSET
    model.producer_name, model.producer_version = "doge-export", None
    model.graph.name = "doge"
    _name_axes(model.graph)
    weights_inside = architecture.moe is not None and architecture.moe.weights_inside
    for body in (functions.body("DynamicMaskAttention"), functions.body("CDMoE", weights_inside)):
        model.functions[body.identifier()] = body
    model.opset_imports["doge"] = 1
    StaticReshapes()(model)
    tidy(model)
    return model


def _name_axes(graph: ir.Graph) -> None:
    """Axis names the ecosystem knows: transformers.js takes exactly `batch_size` for the batch."""
    total = "past_sequence_length + sequence_length"
    for value in [*graph.inputs, *graph.outputs]:
        assert value.name is not None and value.shape is not None
        sizes: list[int | str | ir.SymbolicDim] = list(value.shape)
        sizes[0] = "batch_size"
        if "." in value.name:
            sizes[2] = "past_sequence_length" if value.name.startswith("past") else total
        elif not isinstance(sizes[1], int):
            sizes[1] = "sequence_length"
        value.shape = ir.Shape(sizes)


class StaticReshapes(ir.passes.InPlacePass):
    """Reshape to a constant where the symbolic shapes allow it; torch.onnx computes every shape."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every such Reshape of the main graph."""
        modified = False
        for node in model.graph.all_nodes():
            if node.op_type == "Reshape" and (target := self._target(node)) is not None:
                node.replace_input_with(1, target_value(model.graph, target))
                node.attributes.pop("allowzero", None)
                modified = True
        return ir.passes.PassResult(model, modified)

    @staticmethod
    def _target(node: ir.Node) -> list[int] | None:
        source, result = node.inputs[0], node.outputs[0]
        if source is None or source.shape is None or result.shape is None or source.const_value is not None:
            return None
        return constant_target(list(source.shape), list(result.shape))

"""The graph of a TensorRT engine: caches of fixed capacity, types as TensorRT 11 takes them, with or without plugin."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes import common

from doge_export.graph.tidy import tidy
from doge_export.targets.contract import run_passes
from doge_export.targets.half import HalfPrecision, prepare
from doge_export.targets.half.flow import Flow
from doge_export.targets.passes.candidates import Candidates
from doge_export.targets.passes.fixed_capacity import FixedCapacity
from doge_export.targets.passes.float32_norm import Float32RMSNorm
from doge_export.targets.passes.float32_residuals import Float32Residuals
from doge_export.targets.passes.fold_scores import FoldScores
from doge_export.targets.passes.fuse_attention import FuseAttention
from doge_export.targets.passes.fuse_routing import FuseRouting
from doge_export.targets.passes.inline_functions import InlineFunctions
from doge_export.targets.passes.native_attention import NativeAttention
from doge_export.targets.passes.plugin_nodes import PluginNodes
from doge_export.targets.passes.primitives import PrimitiveRMSNorm, PrimitiveRotaryEmbedding
from doge_export.targets.passes.reduced_angles import ReducedAngles
from doge_export.targets.passes.rope_tables import RopeTables, scales_rope
from doge_export.targets.passes.routed_experts import RoutedExperts
from doge_export.targets.passes.transpose_weights import TransposeWeights

EnginePrecision = Literal["fp16", "bf16", "fp32"]
Attention = Literal["plugin", "native"]

DTYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16, "fp32": ir.DataType.FLOAT}
OPSETS: dict[Attention, int] = {"plugin": 18, "native": 24}
"""18: nothing newer is needed, and every TensorRT 10 reads it. 24: TensorScatter."""
IR_VERSIONS: dict[Attention, int] = {"plugin": 8, "native": 10}


@dataclasses.dataclass(frozen=True)
class Form:
    """The form of an engine's graph.

    Attributes:
        precision: type of weights, activations and caches.
        attention: "plugin" for our kernels, "native" for TensorRT's own layers.
        capacity: slots of a cache row.
        candidates: how many of the best next tokens the graph gives beside all logits; 0 for none.
        bounded: the caches keep the `capacity` best keys of rows of any length.
        longest: with bounded caches, the most tokens of a row in one run.
    """

    precision: EnginePrecision
    attention: Attention
    capacity: int
    candidates: int = 0
    bounded: bool = False
    longest: int = 0


def lower_for_tensorrt(model: ir.Model, form: Form) -> None:
    """Lower a canonical language model for an engine.

    Args:
        model: canonical graph; changed in place. Its inputs and outputs become those of `trt.engine_plan.EnginePlan`.
        form: what the engine's graph is to be.

    Raises:
        ContractError: the graph is not what a pass needs.
    """
    lower_in_float32(model, form)
    if form.precision != "fp32":
        prepare(model)
        HalfPrecision(DTYPES[form.precision])(model)
    else:
        for value in Flow(model.graph).reals:
            value.dtype = value.dtype or ir.DataType.FLOAT
    run_passes(
        model,
        (
            *_angles(model.graph, form),
            Float32RMSNorm(),
            *([Candidates(form.candidates)] if form.candidates else []),
            *([PluginNodes()] if form.attention == "plugin" else []),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        ),
    )
    tidy(model)
    model.graph.sort()


def _angles(graph: ir.Graph, form: Form) -> Sequence[ir.passes.InPlacePass]:
    """Return the pass for cosines and sines of RoPE: rows of unbounded length have no table by position."""
    if form.bounded:
        return [ReducedAngles()]
    return [] if scales_rope(graph) else [RopeTables(form.capacity)]


def lower_in_float32(model: ir.Model, form: Form) -> None:
    """Run the passes of `lower_for_tensorrt` that come before types are given.

    The graph then still computes in float32, so that its values can be measured.

    Args:
        model: canonical graph; changed in place.
        form: what the engine's graph is to be; its precision is not read.

    Raises:
        ContractError: the graph is not what a pass needs.
    """
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes: Sequence[ir.passes.InPlacePass] = (
        FixedCapacity(form.capacity, bounded=form.bounded, longest=form.longest),
        FuseAttention(),
        FuseRouting(),
        PrimitiveRMSNorm(),
        PrimitiveRotaryEmbedding(),
    )
    if form.attention == "native":
        passes = (FixedCapacity(form.capacity), NativeAttention(), RoutedExperts(), InlineFunctions())
    # Folded scores come straight from the hidden states: 16-bit values between would change their exponentials.
    run_passes(model, (FoldScores(repeats=False), *passes, Float32Residuals(), TransposeWeights()))
    model.opset_imports[""] = OPSETS[form.attention]
    model.ir_version = IR_VERSIONS[form.attention]
    model.graph.sort()

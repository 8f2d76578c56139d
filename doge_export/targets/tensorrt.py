"""TensorRT: the canonical graph with caches in place, typed as TensorRT 11 follows it, for our plugin or for none."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes import common

from doge_export.graph.tidy import tidy
from doge_export.targets.half import HalfPrecision, prepare
from doge_export.targets.half.flow import Flow
from doge_export.targets.passes.candidates import Candidates
from doge_export.targets.passes.fixed_capacity import FixedCapacity
from doge_export.targets.passes.fold_scores import FoldScores
from doge_export.targets.passes.inline_functions import InlineFunctions
from doge_export.targets.passes.native_attention import NativeAttention
from doge_export.targets.passes.plugin_nodes import PluginNodes
from doge_export.targets.passes.primitives import PrimitiveRMSNorm, PrimitiveRotaryEmbedding
from doge_export.targets.passes.rope_tables import RopeTables
from doge_export.targets.passes.routed_experts import RoutedExperts
from doge_export.targets.passes.transpose_weights import TransposeWeights
from doge_export.targets.passes.wide_norm import WideRMSNorm
from doge_export.targets.passes.wide_residuals import WideResiduals

Precision = Literal["fp16", "bf16", "fp32"]
Attention = Literal["plugin", "native"]

DTYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16, "fp32": ir.DataType.FLOAT}
OPSETS: dict[Attention, int] = {"plugin": 18, "native": 24}
"""18: nothing newer is needed, and every TensorRT 10 reads it. 24: TensorScatter."""
IR_VERSIONS: dict[Attention, int] = {"plugin": 8, "native": 10}


@dataclasses.dataclass(frozen=True)
class Form:
    """What an engine's graph is to be: the type of its weights, who computes attention, slots of a cache row, and how
    many of the best next tokens it gives beside all logits.
    """

    precision: Precision
    attention: Attention
    capacity: int
    candidates: int = 0


def lower_for_tensorrt(model: ir.Model, form: Form) -> None:
    """Lower a canonical language model in place; inputs and outputs are then those of `trt.plan.EnginePlan`."""
    lower_in_float32(model, form)
    if form.precision != "fp32":
        prepare(model)
        HalfPrecision(DTYPES[form.precision])(model)
    else:
        for value in Flow(model.graph).reals:
            value.dtype = value.dtype or ir.DataType.FLOAT
    _run(model, (RopeTables(form.capacity), WideRMSNorm(), Candidates(form.candidates)))
    if form.attention == "plugin":
        PluginNodes()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    tidy(model)
    model.graph.sort()


def lower_in_float32(model: ir.Model, form: Form) -> None:
    """The part of `lower_for_tensorrt` before types are given: whoever wants to see values in float32 starts here."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes: Sequence[ir.passes.InPlacePass] = (
        FixedCapacity(form.capacity),
        PrimitiveRMSNorm(),
        PrimitiveRotaryEmbedding(),
    )
    if form.attention == "native":
        passes = (FixedCapacity(form.capacity), NativeAttention(), RoutedExperts(), InlineFunctions())
    # Scores straight from the hidden states: through values rounded to 16 bits their exponentials would differ.
    _run(model, (FoldScores(repeats=False), *passes, WideResiduals(), TransposeWeights()))
    model.opset_imports[""] = OPSETS[form.attention]
    model.ir_version = IR_VERSIONS[form.attention]
    model.graph.sort()


def _run(model: ir.Model, passes: Sequence[ir.passes.InPlacePass]) -> None:
    for one in passes:
        one(model)

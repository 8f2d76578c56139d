"""What a float32 graph needs before its values are given types; what it computes stays the same."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from doge_export.targets.half.attention_bias import RelativeBias
from doge_export.targets.half.split_projections import SeparateDeciding


def prepare(model: ir.Model) -> None:
    """Rewrite `model` in place, for `HalfPrecision` and for whoever wants to look at its values in float32 first."""
    ir.passes.Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.RemoveUnusedNodesPass(),  # left by a lowering; a value that one reads too would not only decide
        SeparateDeciding(),
        RelativeBias(),
        common.TopologicalSortPass(),
    )(model)

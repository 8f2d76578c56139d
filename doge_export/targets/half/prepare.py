"""The rewriting of a float32 graph before its values are given types; the results stay the same."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from doge_export.targets.contract import run_passes
from doge_export.targets.half.attention_bias import RelativeBias
from doge_export.targets.half.unfuse_projections import UnfuseSensitive


def prepare(model: ir.Model) -> None:
    """Rewrite `model` in place for `HalfPrecision`; it still computes in float32, so that its values can be measured.

    Raises:
        ContractError: the graph is not what a pass needs.
    """
    run_passes(
        model,
        (
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.RemoveUnusedNodesPass(),  # left by a lowering; read by one, a value would not only feed a ranking
            UnfuseSensitive(),
            RelativeBias(),
            common.TopologicalSortPass(),
        ),
    )

"""Lowering of the canonical graph to what one runtime wants."""

from __future__ import annotations

import onnx_ir as ir

from doge_export.graph.tidy import tidy
from doge_export.targets.canonical import CANONICAL
from doge_export.targets.contract import run_passes
from doge_export.targets.onnxruntime import ONNXRUNTIME
from doge_export.targets.portable import PORTABLE
from doge_export.targets.target import Target, Traits

TARGETS = {target.name: target for target in (ONNXRUNTIME, PORTABLE, CANONICAL)}

__all__ = ["TARGETS", "Target", "Traits", "lower"]


def lower(model: ir.Model, target: Target, traits: Traits) -> None:
    """Lower a canonical graph for one target.

    Args:
        model: canonical graph, as `graph.trace` returns it; changed in place.
        target: one of `TARGETS`.
        traits: properties of the model that decide how it is lowered.

    Raises:
        ContractError: the graph is not what a pass of the target needs.
    """
    run_passes(model, target.passes(traits))
    model.opset_imports[""] = target.opset
    model.ir_version = target.ir_version
    tidy(model)
    model.graph.sort()  # passes insert nodes out of order, and the standard asks for a topological order

"""Lowering of the canonical graph to what one runtime wants."""

from __future__ import annotations

import onnx_ir as ir

from doge_export.graph.tidy import tidy
from doge_export.targets.canonical import CANONICAL
from doge_export.targets.onnxruntime import ONNXRUNTIME
from doge_export.targets.portable import PORTABLE
from doge_export.targets.target import Target, Traits

TARGETS = {target.name: target for target in (ONNXRUNTIME, PORTABLE, CANONICAL)}

__all__ = ["TARGETS", "Target", "Traits", "lower"]


def lower(model: ir.Model, target: Target, traits: Traits) -> None:
    """Lower canonical ONNX in place.

    Args:
        model: as `graph.trace` gives it.
        target: one of `TARGETS`.
        traits: of the model.
    """
    for lowering in target.passes(traits):
        lowering(model)
    model.opset_imports[""] = target.opset
    model.ir_version = target.ir_version
    tidy(model)
    model.graph.sort()  # passes put nodes where they found others, and the standard asks for an order

"""Lowering of the canonical graph to what one runtime wants."""

from __future__ import annotations

import onnx_ir as ir

from doge_export.graph.tidy import tidy
from doge_export.targets.onnxruntime import ONNXRUNTIME
from doge_export.targets.portable import PORTABLE
from doge_export.targets.target import Target

TARGETS = {target.name: target for target in (ONNXRUNTIME, PORTABLE)}

__all__ = ["TARGETS", "Target", "lower"]


def lower(model: ir.Model, target: Target, *, mixes_tokens: bool = False) -> None:
    """Lower canonical ONNX in place.

    Args:
        model: as `graph.trace` gives it.
        target: one of `TARGETS`.
        mixes_tokens: the model routes experts as transformers does, so that padding reaches real tokens.
    """
    for lowering in target.passes(mixes_tokens):
        lowering(model)
    model.opset_imports[""] = target.opset
    model.ir_version = target.ir_version
    tidy(model)

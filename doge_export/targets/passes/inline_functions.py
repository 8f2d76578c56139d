"""Put the body of every `doge` function in the place of its node: standard ops only."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common


class InlineFunctions(ir.passes.InPlacePass):
    """After this pass the model has no node of domain `doge` and no function."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inline, and lift the constants that the bodies brought."""
        modified = bool(model.functions)
        common.InlinePass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.DeduplicateInitializersPass()(model)
        model.opset_imports.pop("doge", None)
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """No custom node is left."""
        left = [node.name for node in model.graph.all_nodes() if node.domain == "doge"]
        if left:
            raise ir.passes.PostconditionError(f"nodes of domain doge were left: {left}")

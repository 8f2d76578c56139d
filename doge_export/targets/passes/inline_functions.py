"""The body of every `doge` function in the place of its node: standard ops only."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from doge_export.graph.schemas import DOMAIN
from doge_export.targets.contract import GraphPass, describe


class InlineFunctions(GraphPass):
    """Inline all functions, so that the model has no function and no node of domain `doge`.

    Needs a function for every node of domain `doge` that is left. A model without functions stays as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inline, and lift the constants that the function bodies hold."""
        modified = bool(model.functions)
        common.InlinePass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.DeduplicateInitializersPass()(model)
        model.opset_imports.pop(DOMAIN, None)
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Ensure that no node of domain `doge` is left."""
        left = [describe(node) for node in model.graph.all_nodes() if node.domain == DOMAIN]
        if left:
            raise ir.passes.PostconditionError(f"InlineFunctions: {', '.join(left)}: expected a function, found none")

"""The residual stream in float32: every layer adds to it, and it takes little memory beside the weights."""

from __future__ import annotations

import onnx_ir as ir

from doge_export.targets.contract import ContractError, GraphPass, graph_input


class Float32Residuals(GraphPass):
    """Add a Cast to float32 after the embedding, from where the residual stream keeps that type through every sum.

    Runs before types are given. Rounded to 16 bits after each layer, the stream causes most of a 16-bit graph's error.
    Needs an input input_ids by which a Gather looks up the embedding.
    """

    def requires(self, model: ir.Model) -> None:
        """Require the lookup of the embedding."""
        super().requires(model)
        ids = graph_input(model.graph, "input_ids")
        if not _lookups(ids):
            raise ContractError(ids, "expected a Gather that looks up the embedding by it, found none")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cast the rows that are looked up by input_ids."""
        graph = model.graph
        for node in _lookups(graph_input(graph, "input_ids")):
            rows = node.outputs[0]
            cast = ir.node("Cast", [rows], {"to": ir.DataType.FLOAT})
            result = cast.outputs[0]
            rows.replace_all_uses_with(result)
            cast.replace_input_with(0, rows)
            result.name, result.dtype, result.shape = f"{rows.name}.stream", ir.DataType.FLOAT, rows.shape
            graph.insert_after(node, cast)
        return ir.passes.PassResult(model, modified=True)


def _lookups(ids: ir.Value) -> list[ir.Node]:
    return [node for node, place in ids.uses() if node.op_type == "Gather" and place == 1]

"""The residual stream in float32: it is what every layer adds to, and what it costs is not weights."""

from __future__ import annotations

import onnx_ir as ir


class WideResiduals(ir.passes.InPlacePass):
    """A Cast to float32 behind the embedding, from where the stream follows its type through every sum.

    Comes before types are given. Rounded to 16 bits after each layer, the stream is where most of a 16-bit graph's
    error comes from.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """What is looked up for input_ids."""
        graph = model.graph
        ids = next(value for value in graph.inputs if value.name == "input_ids")
        lookups = [node for node, place in ids.uses() if node.op_type == "Gather" and place == 1]
        for node in lookups:
            rows = node.outputs[0]
            cast = ir.node("Cast", [rows], {"to": ir.DataType.FLOAT})
            result = cast.outputs[0]
            rows.replace_all_uses_with(result)
            cast.replace_input_with(0, rows)
            result.name, result.dtype, result.shape = f"{rows.name}.stream", ir.DataType.FLOAT, rows.shape
            graph.insert_after(node, cast)
        return ir.passes.PassResult(model, modified=bool(lookups))

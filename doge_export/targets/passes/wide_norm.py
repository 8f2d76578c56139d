"""RMSNormalization in float32 whatever the graph's type: the square of 256 is beyond float16."""

from __future__ import annotations

import onnx_ir as ir

from doge_export.targets.passes.patterns import made_by

FLOAT = ir.DataType.FLOAT


class WideRMSNorm(ir.passes.InPlacePass):
    """RMSNormalization of 16 bits -> Cast, RMSNormalization in float32, Cast.

    The standard asks for float32 inside (stash_type); what TensorRT does with 16 bits is not documented.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Every such node of the main graph."""
        graph = model.graph
        nodes = [node for node in graph if node.op_type == "RMSNormalization" and node.outputs[0].dtype != FLOAT]
        for node in nodes:
            old = node.outputs[0]
            for place, value in enumerate(node.inputs):
                assert value is not None
                if (source := _float32_source(value)) is not None:
                    node.replace_input_with(place, source)
                    continue
                wide = ir.node("Cast", [value], {"to": FLOAT})
                wide.outputs[0].dtype, wide.outputs[0].shape = FLOAT, value.shape
                graph.insert_before(node, wide)
                node.replace_input_with(place, wide.outputs[0])
            back = ir.node("Cast", [old], {"to": old.dtype})
            result = back.outputs[0]
            old.replace_all_uses_with(result)
            back.replace_input_with(0, old)
            result.type, result.shape = old.type, old.shape
            old.type = ir.TensorType(FLOAT)
            graph.insert_after(node, back)
        return ir.passes.PassResult(model, modified=bool(nodes))


def _float32_source(value: ir.Value) -> ir.Value | None:
    """What was rounded to make `value`."""
    cast = made_by(value, "Cast")
    source = cast.inputs[0] if cast is not None else None
    return source if source is not None and source.dtype == FLOAT else None

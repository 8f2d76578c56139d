"""RMSNormalization in float32 in a graph of 16 bits: the square of 256 is beyond float16."""

from __future__ import annotations

import onnx_ir as ir

from doge_export.targets.contract import ContractError, GraphPass, node_input
from doge_export.targets.passes.patterns import computed_by

FLOAT = ir.DataType.FLOAT


class Float32RMSNorm(GraphPass):
    """RMSNormalization of 16 bits -> Cast, RMSNormalization in float32, Cast.

    The standard asks for float32 inside (stash_type); what TensorRT does with 16 bits is not documented. Norms of
    float32 stay as they are. Needs a known type of every norm.
    """

    def requires(self, model: ir.Model) -> None:
        """Require typed norms with a weight."""
        super().requires(model)
        for node in _norms(model.graph):
            node_input(node, 0), node_input(node, 1)
            if node.outputs[0].dtype is None:
                raise ContractError(node, "expected an output of known type")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the norms of the main graph."""
        graph = model.graph
        nodes = [node for node in _norms(graph) if node.outputs[0].dtype != FLOAT]
        for node in nodes:
            old = node.outputs[0]
            for place in range(len(node.inputs)):
                value = node_input(node, place)
                if (source := _float32_source(value)) is not None:
                    node.replace_input_with(place, source)
                    continue
                cast = ir.node("Cast", [value], {"to": FLOAT})
                cast.outputs[0].dtype, cast.outputs[0].shape = FLOAT, value.shape
                graph.insert_before(node, cast)
                node.replace_input_with(place, cast.outputs[0])
            back = ir.node("Cast", [old], {"to": old.dtype})
            result = back.outputs[0]
            old.replace_all_uses_with(result)
            back.replace_input_with(0, old)
            result.type, result.shape = old.type, old.shape
            old.type = ir.TensorType(FLOAT)
            graph.insert_after(node, back)
        return ir.passes.PassResult(model, modified=bool(nodes))


def _norms(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type == "RMSNormalization"]


def _float32_source(value: ir.Value) -> ir.Value | None:
    """Return the float32 value that a Cast rounded to `value`, if there is one."""
    cast = computed_by(value, "Cast")
    source = cast.inputs[0] if cast is not None else None
    return source if source is not None and source.dtype == FLOAT else None

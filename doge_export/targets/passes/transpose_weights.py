"""Linear weights stored as the right operand of their MatMul, so that nothing is transposed at run time."""

from __future__ import annotations

import onnx_ir as ir

from doge_export.targets.contract import GraphPass, initializer
from doge_export.targets.lowering import weight


class TransposeWeights(GraphPass):
    """Transpose(initializer) -> initializer.

    1. A two-dimensional initializer that only this Transpose reads is stored transposed.
    2. One that other nodes read too (the embedding of a tied head) stays as it is, so that the file holds it once;
       onnxruntime transposes it once while it loads. Every other Transpose stays too.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold each such Transpose."""
        nodes = [node for node in model.graph if node.op_type == "Transpose" and _is_own_matrix(node)]
        for node in nodes:
            self._fold(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(nodes))

    @staticmethod
    def _fold(graph: ir.Graph, node: ir.Node) -> None:
        name, tensor = initializer(node.inputs[0])
        rows, columns = tensor.shape.numpy()
        transposed = weight(graph, f"{name}_t", tensor, (columns, rows), lambda: tensor.numpy().T)
        node.outputs[0].replace_all_uses_with(transposed)
        graph.remove(node, safe=True)
        del graph.initializers[name]


def _is_own_matrix(transpose: ir.Node) -> bool:
    """Return whether a Transpose swaps the axes of a two-dimensional initializer that nothing else reads."""
    source = transpose.inputs[0]
    if source is None or source.const_value is None or len(source.uses()) > 1:
        return False
    return len(source.const_value.shape) == 2 and list(transpose.attributes.get_ints("perm", [1, 0])) == [1, 0]

"""Store linear weights as the right operand of their MatMul, so that nothing is transposed at run time."""

from __future__ import annotations

import onnx_ir as ir

from doge_export.targets.lowering import stored, weight


class TransposeWeights(ir.passes.InPlacePass):
    """Transpose(initializer) -> initializer.

    1. The initializer is used by this Transpose alone: it is stored transposed.
    2. It is used elsewhere too (the embedding of a tied head): left alone, so that the file holds it once; onnxruntime
       transposes it once while it loads.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold each Transpose of a 2-D initializer."""
        modified = False
        for node in [node for node in model.graph if node.op_type == "Transpose"]:
            source = node.inputs[0]
            if source is None or source.const_value is None or len(source.uses()) > 1:
                continue
            self._fold(model.graph, node)
            modified = True
        return ir.passes.PassResult(model, modified)

    @staticmethod
    def _fold(graph: ir.Graph, node: ir.Node) -> None:
        name, tensor = stored(node.inputs[0])
        rows, columns = tensor.shape.numpy()
        transposed = weight(graph, f"{name}_t", tensor, (columns, rows), lambda: tensor.numpy().T)
        node.outputs[0].replace_all_uses_with(transposed)
        graph.remove(node, safe=True)
        del graph.initializers[name]

"""Leave out what translation leaves behind: shape arithmetic, dead nodes, identities, duplicates."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common


def tidy(model: ir.Model) -> None:
    """Clean `model` in place; what it computes does not change."""
    ir.passes.Sequential(
        StaticReshapes(),
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
    )(model)


class StaticReshapes(ir.passes.InPlacePass):
    """Reshape to a constant where the symbolic shapes allow it.

    1. A dynamic axis that input and output share at the same place becomes 0 ("copy").
    2. One further dynamic axis becomes -1 ("infer"); with more the node is left alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every such Reshape of the main graph."""
        modified = False
        for node in model.graph.all_nodes():
            if node.op_type == "Reshape" and (target := self._target(node)) is not None:
                name = "shape_" + "_".join(str(size).replace("-", "m") for size in target)
                if name not in model.graph.initializers:
                    tensor = ir.tensor(np.array(target, dtype=np.int64), name=name)
                    model.graph.register_initializer(ir.val(name, const_value=tensor))
                node.replace_input_with(1, model.graph.initializers[name])
                node.attributes.pop("allowzero", None)
                modified = True
        return ir.passes.PassResult(model, modified)

    @staticmethod
    def _target(node: ir.Node) -> list[int] | None:
        source, result = node.inputs[0], node.outputs[0]
        if source is None or source.shape is None or result.shape is None or source.const_value is not None:
            return None
        target = []
        for axis, size in enumerate(result.shape):
            if isinstance(size, int):
                target.append(size)
            else:
                shared = axis < len(source.shape) and source.shape[axis] == size
                target.append(0 if shared else -1)
        return target if target.count(-1) <= 1 else None

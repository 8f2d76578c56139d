"""The best next tokens as outputs, so that sampling on the host need not copy all logits there."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.contract import ContractError, GraphPass, graph_output, shape_of
from doge_export.targets.lowering import constant


class Candidates(GraphPass):
    """Add outputs best_logits float32 and best_tokens int32, both [batch, num_logits, count]: the highest logits.

    Needs a graph output `logits` [batch, num_logits, V], float32.

    Args:
        count: how many of the highest logits; 1 or more.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def requires(self, model: ir.Model) -> None:
        """Require float32 logits."""
        super().requires(model)
        logits = graph_output(model.graph, "logits")
        shape_of(logits, 3)
        if logits.dtype != ir.DataType.FLOAT:
            raise ContractError(logits, f"expected float32, found {logits.dtype}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the outputs."""
        graph, tape = model.graph, Tape()
        logits = graph_output(graph, "logits")
        count = constant(graph, np.array([self._count]))
        best, places = tape.op_multi_out("TopK", [logits, count], num_outputs=2)
        tokens = tape.op("Cast", [places], {"to": ir.DataType.INT32})
        for value, name, dtype in (
            (best, "best_logits", ir.DataType.FLOAT),
            (tokens, "best_tokens", ir.DataType.INT32),
        ):
            value.name, value.dtype = name, dtype
            value.shape = ir.Shape([*shape_of(logits, 3)[:2], self._count])
            graph.outputs.append(value)
        graph.extend(tape.nodes)
        return ir.passes.PassResult(model, modified=True)

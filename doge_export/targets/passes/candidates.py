"""The best next tokens as outputs, so that whoever samples on the host need not copy all logits there."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.lowering import constant


class Candidates(ir.passes.InPlacePass):
    """Adds best_logits float32 and best_tokens int32, both [batch, num_logits, count]: the `count` highest logits."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Of a graph whose output logits [batch, num_logits, V] is float32; nothing is added for a count of 0."""
        if not self._count:
            return ir.passes.PassResult(model, modified=False)
        graph, tape = model.graph, Tape()
        logits = next(value for value in graph.outputs if value.name == "logits")
        assert logits.dtype == ir.DataType.FLOAT and logits.shape is not None
        count = constant(graph, np.array([self._count]))
        best, places = tape.op_multi_out("TopK", [logits, count], num_outputs=2)
        tokens = tape.op("Cast", [places], {"to": ir.DataType.INT32})
        for value, name, dtype in (
            (best, "best_logits", ir.DataType.FLOAT),
            (tokens, "best_tokens", ir.DataType.INT32),
        ):
            value.name, value.dtype, value.shape = name, dtype, ir.Shape([*logits.shape[:2], self._count])
            graph.outputs.append(value)
        graph.extend(tape.nodes)
        return ir.passes.PassResult(model, modified=True)

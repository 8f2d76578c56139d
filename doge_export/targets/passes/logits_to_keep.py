"""`num_logits_to_keep`: run the head over the last tokens only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from doge_export.targets.lowering import constant

NAME = "num_logits_to_keep"


class NumLogitsToKeep(ir.passes.InPlacePass):
    """Adds an int64 scalar input that cuts the hidden states before the head.

    0, its default, keeps every token: hidden[:, -n:], and -0 is the beginning. As an initializer with the same name it
    need not be fed.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cut the left operand of the product that makes the logits."""
        graph = model.graph
        logits = next(value for value in graph.outputs if value.name == "logits")
        head = logits.producer()
        assert head is not None and head.op_type in ("MatMul", "FusedMatMul"), "the logits come from the head"
        hidden = head.inputs[0]
        assert hidden is not None

        count = ir.val(NAME, dtype=ir.DataType.INT64, shape=[])
        count.const_value = ir.tensor(np.array(0, dtype=np.int64), name=NAME)
        graph.inputs.append(count)
        graph.register_initializer(count)

        tape = ir.tape.Tape()
        start = tape.op("Reshape", [tape.op("Neg", [count]), constant(graph, np.array([1], dtype=np.int64))])
        end = constant(graph, np.array([np.iinfo(np.int64).max], dtype=np.int64))
        axis = constant(graph, np.array([1], dtype=np.int64))
        last = tape.op("Slice", [hidden, start, end, axis])
        graph.insert_before(head, tape.nodes)
        head.replace_input_with(0, last)
        assert logits.shape is not None
        logits.shape = ir.Shape([logits.shape[0], "num_logits", logits.shape[2]])
        return ir.passes.PassResult(model, modified=True)

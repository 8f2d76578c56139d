"""The input `num_logits_to_keep`: logits of the last tokens only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from doge_export.targets.contract import GraphPass, graph_output, node_input, producer_of, shape_of
from doge_export.targets.lowering import constant

NAME = "num_logits_to_keep"
HEADS = ("MatMul", "FusedMatMul")
"""Operators that the head may be."""


class NumLogitsToKeep(GraphPass):
    """Add an int64 scalar input that cuts the hidden states before the head.

    0 keeps every token: hidden[:, -n:], and -0 is the beginning. An initializer of the same name, the default, makes
    feeding it optional. Needs an output `logits` [B, S, V] that a MatMul or FusedMatMul computes.

    Args:
        default: the number where nothing is fed. JavaScript cannot feed an input that has a default, and no tool knows
            this one: 1, which is what generation needs, spares it the logits of a whole prompt. The output then says so
            in its shape [B, 1, V], by which onnxruntime-genai knows such graphs; who feeds another number gets as many.
    """

    def __init__(self, default: int = 0) -> None:
        super().__init__()
        self._default = default

    def requires(self, model: ir.Model) -> None:
        """Require logits that come from the product of the head."""
        super().requires(model)
        logits = graph_output(model.graph, "logits")
        shape_of(logits, 3)
        node_input(producer_of(logits, *HEADS), 0)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cut the left operand of the product that computes the logits."""
        graph = model.graph
        logits = graph_output(graph, "logits")
        head = producer_of(logits, *HEADS)
        hidden = node_input(head, 0)

        count = ir.val(NAME, dtype=ir.DataType.INT64, shape=[])
        count.const_value = ir.tensor(np.array(self._default, dtype=np.int64), name=NAME)
        graph.inputs.append(count)
        graph.register_initializer(count)

        tape = ir.tape.Tape()
        start = tape.op("Reshape", [tape.op("Neg", [count]), constant(graph, np.array([1], dtype=np.int64))])
        end = constant(graph, np.array([np.iinfo(np.int64).max], dtype=np.int64))
        axis = constant(graph, np.array([1], dtype=np.int64))
        last = tape.op("Slice", [hidden, start, end, axis])
        graph.insert_before(head, tape.nodes)
        head.replace_input_with(0, last)
        batch, _, vocabulary = shape_of(logits, 3)
        logits.shape = ir.Shape([batch, self._default or "num_logits", vocabulary])
        return ir.passes.PassResult(model, modified=True)

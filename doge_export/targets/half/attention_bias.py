"""The bias of GroupQueryAttention in 16 bits, the type of the queries, which holds no score of 1e6."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.contract import GraphPass, check_attributes, extent, node_input
from doge_export.targets.half.flow import operator
from doge_export.targets.lowering import constant
from doge_export.targets.passes.selection import NEG, causal_keys

LOWEST = np.float32(-65504)
"""The lowest float16; its exponential is 0 in any type."""
QUERY, PAST_KEY, BIAS = 0, 3, 10
"""Places among the inputs of GroupQueryAttention."""


class RelativeBias(GraphPass):
    """Subtract from the bias [B, Hb, S, T] the largest value of each row, and bound the result by `LOWEST`.

    Softmax does not change by that. What is then far below 0 has no weight, and values near 0 are told apart better
    than before. Where the kernel applies causality, the bias also holds the scores of later keys: they are masked
    first, or a row would be taken relative to a score that it does not see.

    A fully masked row has NEG everywhere. Added to it the products vanish, so that such a token attends evenly to all
    keys; relative to its largest value the row is 0, and they would not. Where such rows are read (`causal` is 0),
    their query is set to 0 instead.

    Nodes without a bias stay as they are. Needs num_heads and kv_num_heads, and a static head size where queries are
    packed with keys and values.
    """

    def requires(self, model: ir.Model) -> None:
        """Require the head counts of every node with a bias."""
        super().requires(model)
        for node in _biased(model.graph):
            node_input(node, QUERY)
            check_attributes(node, "num_heads", "kv_num_heads")
            if node.inputs[1] is None:
                extent(node.inputs[PAST_KEY], 3)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the bias of every node that has one."""
        self._graph = model.graph
        self._earlier: ir.Value | None = None
        nodes = _biased(model.graph)
        for node in nodes:
            self._relate(node)
        return ir.passes.PassResult(model, modified=bool(nodes))

    def _relate(self, node: ir.Node) -> None:
        graph, tape = self._graph, Tape()
        bias = node_input(node, BIAS)
        causal = node.attributes.get("causal")
        by_kernel = causal is None or causal.as_int() != 0
        if by_kernel:
            bias = tape.op("Where", [self._not_later(tape, bias), bias, constant(graph, np.array(NEG))])
        top = tape.op("ReduceMax", [bias, constant(graph, np.array([-1]))])
        relative = tape.op("Max", [tape.op("Sub", [bias, top]), constant(graph, np.array(LOWEST))])
        node.replace_input_with(BIAS, relative)
        if not by_kernel:
            node.replace_input_with(QUERY, self._zeroed(tape, node, top))
        graph.insert_before(node, tape.nodes)

    def _not_later(self, tape: Tape, bias: ir.Value) -> ir.Value:
        """Return which keys a token sees, bool [S, T]; the same value for every layer."""
        if self._earlier is None:
            new, total = (tape.op("Shape", [bias], {"start": axis, "end": axis + 1}) for axis in (2, 3))
            self._earlier = causal_keys(tape, self._graph, tape.op("Sub", [total, new]), total)
        return self._earlier

    def _zeroed(self, tape: Tape, node: ir.Node, top: ir.Value) -> ir.Value:
        """Return the queries, alone or packed with keys and values, with 0 for fully masked rows."""
        graph, query = self._graph, node.inputs[QUERY]
        heads, kv_heads = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
        sees = tape.op("Greater", [top, constant(graph, np.array(NEG))])  # [B, Hb, S, 1]
        sees = tape.op("Transpose", [sees], {"perm": [0, 2, 1, 3]})
        rest = None
        if node.inputs[1] is None:
            size = extent(node.inputs[PAST_KEY], 3)
            widths = constant(graph, np.array([heads * size, 2 * kv_heads * size]))
            query, rest = tape.op_multi_out("Split", [query, widths], {"axis": -1}, num_outputs=2)
        by_head = tape.op("Reshape", [query, constant(graph, np.array([0, 0, heads, -1]))])
        zero = constant(graph, np.array(0, dtype=np.float32))
        query = tape.op("Where", [sees, by_head, zero])
        query = tape.op("Reshape", [query, constant(graph, np.array([0, 0, -1]))])
        return query if rest is None else tape.op("Concat", [query, rest], {"axis": -1})


def _biased(graph: ir.Graph) -> list[ir.Node]:
    """Return the nodes of GroupQueryAttention that have a bias."""
    nodes = [node for node in graph if operator(node) == ("com.microsoft", "GroupQueryAttention")]
    return [node for node in nodes if len(node.inputs) > BIAS and node.inputs[BIAS] is not None]

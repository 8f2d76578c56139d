"""GroupQueryAttention takes its bias in the type of its queries, and 16 bits hold no score of 1e6."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.half.flow import operator
from doge_export.targets.lowering import constant, extent
from doge_export.targets.passes.selection import NEG, causal_keys

LOWEST = np.float32(-65504)
"""Of float16; its exponential is 0 in any type."""
QUERY, PAST_KEY, BIAS = 0, 3, 10


class RelativeBias(ir.passes.InPlacePass):
    """The bias [B, Hb, S, T] less the largest of its row, which softmax does not see, and not below `LOWEST`.

    What is then far below 0 has no weight, and what is near 0 is told apart better than before. Where causality is the
    kernel's, later keys have their scores in the bias too: they are left out first, or a row would be taken relative to
    a score that it does not see.

    A row in which no key is visible has NEG everywhere. Added to it the products vanish, so that such a token attends
    evenly to all keys; less its largest the row is 0, and they would not. Where somebody reads such rows (`causal` is
    0), their query is made 0 instead.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Every node with a bias."""
        self._graph = model.graph
        self._earlier: ir.Value | None = None
        nodes = [node for node in model.graph if operator(node) == ("com.microsoft", "GroupQueryAttention")]
        nodes = [node for node in nodes if len(node.inputs) > BIAS and node.inputs[BIAS] is not None]
        for node in nodes:
            self._relate(node)
        return ir.passes.PassResult(model, modified=bool(nodes))

    def _relate(self, node: ir.Node) -> None:
        graph, tape = self._graph, Tape()
        bias = node.inputs[BIAS]
        assert bias is not None
        causal = node.attributes.get("causal")
        by_kernel = causal is None or causal.as_int() != 0
        if by_kernel:
            bias = tape.op("Where", [self._not_later(tape, bias), bias, constant(graph, np.array(NEG))])
        top = tape.op("ReduceMax", [bias, constant(graph, np.array([-1]))])
        relative = tape.op("Max", [tape.op("Sub", [bias, top]), constant(graph, np.array(LOWEST))])
        node.replace_input_with(BIAS, relative)
        if not by_kernel:
            node.replace_input_with(QUERY, self._seeing(tape, node, top))
        graph.insert_before(node, tape.nodes)

    def _not_later(self, tape: Tape, bias: ir.Value) -> ir.Value:
        """Which keys a token sees, bool [S, T]; of every layer the same."""
        if self._earlier is None:
            new, total = (tape.op("Shape", [bias], {"start": axis, "end": axis + 1}) for axis in (2, 3))
            self._earlier = causal_keys(tape, self._graph, tape.op("Sub", [total, new]), total)
        return self._earlier

    def _seeing(self, tape: Tape, node: ir.Node, top: ir.Value) -> ir.Value:
        """The queries, alone or packed with keys and values, 0 where a row sees nothing."""
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

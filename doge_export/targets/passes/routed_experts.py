"""CDMoE in as few nodes as standard operators allow: a token at a time costs what starting its nodes costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.lowering import Lowering, constant, extent
from doge_export.targets.passes.patterns import made_by


class RoutedExperts(Lowering):
    """All tokens in one axis, N = B * S, and all picks of a token in one, R * k, over which the last product sums.

    The flat index of a pair is its expert, so TopK's order among equals is the operator's.
    """

    domain, op_types = "doge", ("CDMoE",)

    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value | None]:
        """One layer."""
        hidden, scores_x, scores_y, down_embed, up_embed = node.inputs
        heads, keys, size = extent(scores_x, 2), extent(scores_x, 3), extent(hidden, 2)
        picks = node.attributes["num_experts_per_tok"].as_int()

        x = self._flat(tape, scores_x, heads, keys, 1)
        y = self._flat(tape, scores_y, heads, 1, keys)
        grid = tape.op("Reshape", [tape.op("Add", [x, y]), self.ints(-1, heads, keys * keys)])
        best, pairs = tape.op_multi_out("TopK", [grid, self.ints(picks)], {"axis": -1}, num_outputs=2)
        weights = tape.op("Softmax", [best], {"axis": -1})
        if heads > 1:
            weights = tape.op("Reshape", [weights, self.ints(-1, 1, heads * picks)])
        experts = tape.op("Reshape", [pairs, self.ints(-1, heads * picks)])

        column = tape.op("Reshape", [hidden, self.ints(-1, size, 1)])
        products = tape.op("MatMul", [tape.op("Gather", [down_embed, experts]), column])
        products = tape.op("Reshape", [products, self.ints(-1, 1, heads * picks)])
        if node.attributes["weights_inside"].as_int():
            activation = self._silu(tape, tape.op("Mul", [products, weights]))
        else:
            activation = tape.op("Mul", [self._silu(tape, products), weights])
        mixed = tape.op("MatMul", [activation, tape.op("Gather", [up_embed, experts])])
        return [tape.op("Reshape", [mixed, self._extents(tape, hidden)])]

    def _flat(self, tape: Tape, scores: ir.Value | None, *sizes: int) -> ir.Value:
        """Scores [B, S, R, K] as [N, *sizes], past the Reshape they may come out of."""
        reshape = made_by(scores, "Reshape")
        return tape.op("Reshape", [reshape.inputs[0] if reshape is not None else scores, self.ints(-1, *sizes)])

    @staticmethod
    def _silu(tape: Tape, x: ir.Value) -> ir.Value:
        return tape.op("Mul", [x, tape.op("Sigmoid", [x])])

    def _extents(self, tape: Tape, hidden: ir.Value | None) -> ir.Value:
        """[B, S, H]: of every layer the same, so they are those of input_ids and computed once."""
        assert hidden is not None
        name = "hidden_extents"
        known = next((value for node in self.graph for value in node.outputs if value.name == name), None)
        if known is not None:
            return known
        ids = next(value for value in self.graph.inputs if value.name == "input_ids")
        once = Tape()
        size = constant(self.graph, np.array([extent(hidden, 2)]))
        extents = once.op("Concat", [once.op("Shape", [ids]), size], {"axis": 0})
        extents.name = name
        self.graph.insert_before(self.graph[0], once.nodes)
        return extents

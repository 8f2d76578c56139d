"""CDMoE in as few nodes as standard operators allow: decoding one token costs as much as launching its nodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.graph.schemas import CDMOE, DOMAIN
from doge_export.targets.contract import extent, graph_input, node_input
from doge_export.targets.lowering import Lowering, constant
from doge_export.targets.passes.patterns import computed_by


class RoutedExperts(Lowering):
    """Lower CDMoE to standard ops.

    All tokens share one axis, N = B * S, and all picks of a token one, R * k, over which the last product sums. The
    flat index of a pair of keys is its expert, so TopK breaks ties as the operator does.

    Needs an input input_ids where there are experts; a graph without CDMoE stays as it is.
    """

    domain, op_types = DOMAIN, (CDMOE.name,)

    def requires(self, model: ir.Model) -> None:
        """Require input_ids where there are experts."""
        super().requires(model)
        if self.nodes(model.graph):
            graph_input(model.graph, "input_ids")

    def check(self, node: ir.Node) -> None:
        """Check one CDMoE node."""
        super().check(node)
        extent(node_input(node, 0), 2)
        for place in (1, 2):
            extent(node_input(node, place), 2), extent(node_input(node, place), 3)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace every node; all layers share one value for the extents of the hidden states."""
        self._hidden_extents: ir.Value | None = None
        return super().call(model)

    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value | None]:
        """Record one layer."""
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
        return [tape.op("Reshape", [mixed, self._extents(node_input(node, 0))])]

    def _flat(self, tape: Tape, scores: ir.Value | None, *sizes: int) -> ir.Value:
        """Reshape scores [B, S, R, K] to [N, *sizes], skipping a Reshape that they come out of."""
        reshape = computed_by(scores, "Reshape")
        return tape.op("Reshape", [reshape.inputs[0] if reshape is not None else scores, self.ints(-1, *sizes)])

    @staticmethod
    def _silu(tape: Tape, x: ir.Value) -> ir.Value:
        return tape.op("Mul", [x, tape.op("Sigmoid", [x])])

    def _extents(self, hidden: ir.Value) -> ir.Value:
        """Return the extents [B, S, H], computed once of input_ids: they are the same for every layer."""
        if self._hidden_extents is None:
            ids = graph_input(self.graph, "input_ids")
            once = Tape()
            size = constant(self.graph, np.array([extent(hidden, 2)]))
            self._hidden_extents = once.op("Concat", [once.op("Shape", [ids]), size], {"axis": 0})
            self._hidden_extents.name = "hidden_extents"
            self.graph.insert_before(self.graph[0], once.nodes)
        return self._hidden_extents

"""DynamicMaskAttention without selection, over caches of fixed capacity, in operators that TensorRT has layers for.

Exact while no row is longer than keep_window_size: then nothing is selected, and a score is a bias of its key.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.graph.schemas import DOMAIN
from doge_export.targets.contract import ContractError, check_signature, extent, graph_input, node_input, shape_of
from doge_export.targets.lowering import Lowering, constant, named
from doge_export.targets.passes.fixed_capacity import PAST_LENGTHS, constant_range
from doge_export.targets.passes.patterns import computed_by
from doge_export.targets.passes.selection import NEG

LOWEST = np.float32(-30000)
"""A relative bias whose exponential is 0; products added to it stay inside float16."""


class NativeAttention(Lowering):
    """Lower DynamicMaskAttention to TensorScatter into the caches, RotaryEmbedding, and Attention with a bias.

    The bias of a row is taken relative to its largest value, which does not change the softmax, because Attention takes
    it in the type of the queries and 16 bits hold no score of 1e6. Scores are cached as [B, Hs, C, 1]: TensorScatter
    takes four axes. Slots that nothing was written to are masked, their score and their key alike.

    Needs the graph that `FixedCapacity` leaves: inputs input_ids and past_lengths, caches named ".score" of static
    capacity, attention nodes that read past_lengths and whose keep_window_size no row exceeds.
    """

    domain, op_types = DOMAIN, ("DynamicMaskAttention",)

    def requires(self, model: ir.Model) -> None:
        """Require the graph of `FixedCapacity`."""
        super().requires(model)
        graph = model.graph
        graph_input(graph, "past_lengths"), graph_input(graph, "input_ids")
        scores = named(graph.inputs, ".score")
        if not scores:
            raise ContractError(f"graph {graph.name}", "expected inputs for cached scores, found none")
        extent(scores[0], 2)
        for value in [*scores, *named(graph.outputs, ".score")]:
            shape_of(value, 3)

    def check(self, node: ir.Node) -> None:
        """Check one attention node."""
        check_signature(node)
        node_input(node, PAST_LENGTHS)
        extent(node.inputs[4], 3)
        window, capacity = node.attributes["keep_window_size"].as_int(), extent(node.inputs[6], 2)
        if 0 < window < capacity:
            raise ContractError(node, f"expected a keep_window_size of 0 or from {capacity}, found {window}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Give the cached scores a fourth axis, compute which slots are visible, then replace every attention node."""
        graph = model.graph
        scores = [*named(graph.inputs, ".score"), *named(graph.outputs, ".score")]
        for value in scores:
            value.shape = ir.Shape([*shape_of(value, 3), 1])
        past_lengths = graph_input(graph, "past_lengths")
        capacity = extent(scores[0], 2)
        tape = Tape()
        self.write_at = tape.op("Cast", [past_lengths], {"to": ir.DataType.INT64})
        ids = graph_input(graph, "input_ids")
        zero = constant(graph, np.array([0]))
        steps = tape.op(
            "Slice", [constant_range(graph, capacity), zero, tape.op("Shape", [ids], {"start": 1, "end": 2}), zero]
        )
        first = tape.op("Unsqueeze", [past_lengths, constant(graph, np.array([1]))])
        rows = tape.op("Unsqueeze", [tape.op("Add", [first, steps]), constant(graph, np.array([1, 3]))])
        self.visible = tape.op("LessOrEqual", [constant_range(graph, capacity), rows])  # [B, 1, S, C]
        graph.insert_before(graph[0], tape.nodes)
        return super().call(model)

    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value | None]:
        """Record one layer."""
        query, key, value, score, past_key, past_value, past_score = node.inputs[:PAST_LENGTHS]
        heads, kv_heads = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
        size = extent(past_key, 3)
        by_key = tape.op("Unsqueeze", [tape.op("Transpose", [score], {"perm": [0, 2, 1]}), self.ints(3)])
        present_key = self._write(tape, past_key, self._rotated(tape, key, kv_heads, size))
        present_value = self._write(tape, past_value, self._by_head(tape, value, kv_heads, size))
        present_score = self._write(tape, past_score, by_key)
        for present, old in zip((present_key, present_value, present_score), node.outputs[1:], strict=True):
            present.type, present.shape = old.type, old.shape
        bias = self._bias(tape, present_score, heads)
        mixed = tape.op(
            "Attention",
            [self._rotated(tape, query, heads, size), present_key, present_value, bias],
            {"scale": node.attributes["scale"].as_float(), "TRT_decomposable": 1},
        )
        flat = tape.op("Transpose", [mixed], {"perm": [0, 2, 1, 3]})
        return tape.op("Reshape", [flat, self.ints(0, 0, heads * size)]), present_key, present_value, present_score

    def _by_head(self, tape: Tape, x: ir.Value | None, heads: int, size: int) -> ir.Value:
        """[B, S, heads * D] -> [B, heads, S, D]."""
        split = tape.op("Reshape", [x, self.ints(0, 0, heads, size)])
        return tape.op("Transpose", [split], {"perm": [0, 2, 1, 3]})

    def _rotated(self, tape: Tape, x: ir.Value | None, heads: int, size: int) -> ir.Value:
        """Do the same as `_by_head`, with a rotation of x moved behind it: TensorRT's layer takes four axes."""
        rotation = computed_by(x, "RotaryEmbedding")
        if rotation is None:
            return self._by_head(tape, x, heads, size)
        source, cos, sin = rotation.inputs[:3]
        return tape.op("RotaryEmbedding", [self._by_head(tape, source, heads, size), cos, sin])

    def _write(self, tape: Tape, past: ir.Value | None, new: ir.Value) -> ir.Value:
        """Write `new` [B, heads, S, *] after each row's past tokens, in place."""
        return tape.op("TensorScatter", [past, new, self.write_at], {"axis": -2, "mode": "linear"})

    def _bias(self, tape: Tape, score: ir.Value, heads: int) -> ir.Value:
        """Return the bias [B, Hq or 1, S, C], 0 for the best visible key of a row."""
        score_heads = extent(score, 1)
        by_key = tape.op("Transpose", [score], {"perm": [0, 1, 3, 2]})
        bias = tape.op("Where", [self.visible, by_key, constant(self.graph, np.array(NEG))])
        best = tape.op("ReduceMax", [bias, self.ints(-1)])
        bias = tape.op("Max", [tape.op("Sub", [bias, best]), constant(self.graph, np.array(LOWEST))])
        if score_heads in (1, heads):
            return bias
        heads_of = self.ints(*np.repeat(np.arange(score_heads), heads // score_heads).tolist())
        return tape.op("Gather", [bias, heads_of], {"axis": 1})

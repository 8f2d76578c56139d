"""The attention operators as onnxruntime's GroupQueryAttention, which updates a preallocated cache in place.

The key's score goes in as attention_bias; RoPE and the norms stay outside. Four things differ from the operator:

- past and present are one buffer of fixed capacity, bound as input and output, so the past length is not in its
  shape: it is that of the scores.
- The scores of all layers travel in one tensor, `past_scores` [past_sequence_length, batch_size, L * Hs] float32; the
  graph gives those of the new tokens, `new_scores` [sequence_length, batch_size, L * Hs], which the runtime has bound
  right behind the past ones. Time is the first axis so that a prefix is contiguous.
- Causality is the kernel's: it masks keys after P + i itself, for every row alike (padding is in the scores). With
  `whole_rows` the bias does it instead: a row that sees no key then attends evenly to all T keys, later ones included,
  as it does in transformers. Only padding is such a row, which nobody reads except reference CDMoE routing, which
  mixes tokens; or a token where an older generation's selection may leave it no key.
- The kernel wants heads of a multiple of 8; others, which no published model has, are padded with zeros, and so are
  their caches. No product changes by them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.lowering import Lowering, constant, extent, named
from doge_export.targets.passes.selection import ATTENTION, row_bias, score_heads_of, selects_keys

PAST_SCORES, NEW_SCORES = "past_scores", "new_scores"


class GroupQueryAttention(Lowering):
    """Needs com.microsoft. A selection becomes nodes only where the node has it."""

    domain, op_types = "doge", ATTENTION

    def __init__(self, whole_rows: bool = False) -> None:
        super().__init__()
        self.whole_rows = whole_rows

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the cache inputs and outputs, then every node."""
        graph = self.graph = model.graph
        nodes = self.nodes(graph)
        rows = extent(nodes[0].inputs[3], 2)
        width = len(nodes) * rows

        past_scores = ir.val(PAST_SCORES, ir.DataType.FLOAT, ["past_sequence_length", "batch_size", width])
        graph.inputs.append(past_scores)
        tape = Tape()
        self._lengths(tape, past_scores)
        shape = constant(graph, np.array([0, 0, len(nodes), rows]))
        by_layer = tape.op("Transpose", [tape.op("Reshape", [past_scores, shape])], {"perm": [2, 1, 3, 0]})
        self.past_scores = tape.op("Unsqueeze", [by_layer, self.ints(3)])  # [L, B, Hs, 1, P]
        graph.insert_before(graph[0], tape.nodes)

        for values in (graph.inputs, graph.outputs):
            for value in named(values, ".score"):
                values.remove(value)
        self.new_scores: list[ir.Value] = []
        result = super().call(model)

        end = Tape()
        every = end.op("Concat", self.new_scores, {"axis": -1}) if len(nodes) > 1 else self.new_scores[0]
        new_scores = end.op("Transpose", [every], {"perm": [1, 0, 2]})
        new_scores.name, new_scores.dtype = NEW_SCORES, ir.DataType.FLOAT
        new_scores.shape = ir.Shape(["sequence_length", "batch_size", width])
        graph.extend(end.nodes)
        graph.outputs.append(new_scores)
        caches = [*graph.inputs, *graph.outputs]
        for value in named(caches, ".key") + named(caches, ".value"):
            value.shape = ir.Shape(["batch_size", extent(value, 1), "capacity", _padded(extent(value, 3))])
        model.opset_imports["com.microsoft"] = 1
        return result

    def _lengths(self, tape: Tape, past_scores: ir.Value) -> None:
        """The past and total lengths, in the forms that the kernel and the bias want."""
        ids = next(value for value in self.graph.inputs if value.name == "input_ids")
        self.new_length = tape.op("Shape", [ids], {"start": 1, "end": 2})
        self.past_length = tape.op("Shape", [past_scores], {"start": 0, "end": 1})
        self.total_length = tape.op("Add", [self.past_length, self.new_length])
        self.total = tape.op("Cast", [tape.op("Squeeze", [self.total_length])], {"to": ir.DataType.INT32})
        last = tape.op("Sub", [self.total, constant(self.graph, np.array(1, dtype=np.int32))])
        batch = tape.op("Shape", [ids], {"start": 0, "end": 1})
        self.last_key = tape.op("Expand", [last, batch])

    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value | None]:
        """One layer."""
        query, key, value, score, past_key, past_value, _ = node.inputs
        heads, score_heads = node.attributes["num_heads"].as_int(), score_heads_of(node)
        assert score is not None
        layer = len(self.new_scores)
        self.new_scores.append(score)

        past = tape.op("Gather", [self.past_scores, constant(self.graph, np.array(layer))], {"axis": 0})
        new = tape.op("Transpose", [tape.op("Unsqueeze", [score, self.ints(1)])], {"perm": [0, 3, 1, 2]})
        bias = tape.op("Concat", [past, new], {"axis": -1})  # [B, Hs, 1, T]
        by_row = selects_keys(node) or self.whole_rows
        if by_row:
            bias = row_bias(tape, self.graph, node, bias, self.past_length, self.total_length)
        if 1 < score_heads < heads:
            repeated = np.arange(heads) * score_heads // heads
            bias = tape.op("Gather", [bias, constant(self.graph, repeated)], {"axis": 1})
        if not by_row:
            # The kernel wants a row for each new token.
            bias = tape.op("Expand", [bias, self._rows(tape)])
        attributes = {
            "num_heads": heads,
            "kv_num_heads": node.attributes["kv_num_heads"].as_int(),
            "scale": node.attributes["scale"].as_float(),
        }
        if self.whole_rows:
            attributes["causal"] = 0
        size = extent(query, 2) // heads
        query, key, value = (self._pad(tape, x, size) for x in (query, key, value))
        inputs = [query, key, value, past_key, past_value, self.last_key, self.total, None, None, None, bias]
        output, present_key, present_value = tape.op_multi_out(
            "GroupQueryAttention", inputs, attributes, domain="com.microsoft", num_outputs=3
        )
        if _padded(size) != size:
            by_head = tape.op("Reshape", [output, self.ints(0, 0, heads, _padded(size))])
            cut = tape.op("Slice", [by_head, self.ints(0), self.ints(size), self.ints(3)])
            output = tape.op("Reshape", [cut, self.ints(0, 0, heads * size)])
        for present, old in ((present_key, node.outputs[1]), (present_value, node.outputs[2])):
            present.type, present.shape = old.type, old.shape
        return output, present_key, present_value, None

    def _pad(self, tape: Tape, x: ir.Value | None, size: int) -> ir.Value | None:
        """[B, S, heads * D] with zeros behind each head, up to the kernel's size."""
        if _padded(size) == size:
            return x
        heads = extent(x, 2) // size
        by_head = tape.op("Reshape", [x, self.ints(0, 0, heads, size)])
        wide = tape.op("Pad", [by_head, self.ints(0, 0, 0, 0, 0, 0, 0, _padded(size) - size)])
        return tape.op("Reshape", [wide, self.ints(0, 0, heads * _padded(size))])

    def _rows(self, tape: Tape) -> ir.Value:
        if not hasattr(self, "_rows_shape"):
            parts = [self.ints(1, 1), self.new_length, self.ints(1)]
            self._rows_shape = tape.op("Concat", parts, {"axis": 0})
        return self._rows_shape


def _padded(size: int) -> int:
    return -(-size // 8) * 8

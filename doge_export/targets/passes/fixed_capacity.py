"""Caches of fixed capacity, rows padded on the right, everything that counts in int32: what an engine wants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnx_ir.tape import Tape

from doge_export.targets.lowering import constant, extent, named
from doge_export.targets.passes.rope_tables import scales_rope
from doge_export.targets.passes.selection import raw_scores

PAST_LENGTHS = 7
"""The place of past_lengths among an attention node's inputs."""

INT32 = ir.DataType.INT32


class FixedCapacity(ir.passes.InPlacePass):
    """The canonical graph's inputs and outputs become those of `trt.plan.EnginePlan`.

    1. A cache has `capacity` slots, whatever it holds; attention nodes read past_lengths.
    2. attention_mask goes: a row is padded on the right, where nothing that counts sees it.
    3. Positions follow from past_lengths. They stay an input only where RoPE is scaled by the length of the longest
       row, which padding must not make longer.
    4. Only the hidden states that logits_tokens names reach the head.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """A language model, as traced."""
        graph = self._graph = model.graph
        known = {value.name: value for value in graph.inputs}
        ids, mask, positions = known["input_ids"], known["attention_mask"], known["position_ids"]
        past_lengths = ir.val("past_lengths", dtype=INT32, shape=["batch"])
        logits_tokens = ir.val("logits_tokens", dtype=INT32, shape=["batch", "num_logits"])
        for value in (ids, positions):
            value.dtype, value.shape = INT32, ir.Shape(["batch", "sequence"])
        is_scaled = scales_rope(graph)
        caches = [value for value in graph.inputs if value not in (ids, mask, positions)]
        graph.inputs[:] = [ids, past_lengths, logits_tokens, *([positions] if is_scaled else []), *caches]

        self._drop_mask(mask, ids)
        for node in [node for node in graph if node.op_type == "DynamicMaskAttention"]:
            node.resize_inputs(PAST_LENGTHS + 1)
            node.replace_input_with(PAST_LENGTHS, past_lengths)
        self._widen(positions, positions if is_scaled else self._positions(ids, past_lengths))
        self._resize_caches()
        self._gather_logits(logits_tokens)
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)

    def _drop_mask(self, mask: ir.Value, ids: ir.Value) -> None:
        """Scores as they are before padding is marked in them."""
        graph = self._graph
        for node in [node for node in graph if node.op_type == "DynamicMaskAttention"]:
            scores = raw_scores(node)
            if scores is None:
                tape = Tape()
                shape = tape.op("Concat", [tape.op("Shape", [ids]), constant(graph, np.array([1]))], {"axis": 0})
                scores = tape.op("Expand", [constant(graph, np.array(0, np.float32)), shape])
                scores.dtype, scores.shape = ir.DataType.FLOAT, ir.Shape([None, None, 1])
                graph.insert_before(node, tape.nodes)
            node.replace_input_with(3, scores)
        mask.replace_all_uses_with(ids)  # whose shape is asked for; what marked padding has no reader any more

    def _positions(self, ids: ir.Value, past_lengths: ir.Value) -> ir.Value:
        """[B, S] int32: token i of a row stands behind the row's past ones; padding never leaves the tables."""
        graph, tape = self._graph, Tape()
        places = constant_range(graph, self._capacity)
        new = tape.op("Shape", [ids], {"start": 1, "end": 2})
        zero = constant(graph, np.array([0]))
        steps = tape.op("Slice", [places, zero, new, zero])
        first = tape.op("Unsqueeze", [past_lengths, constant(graph, np.array([1]))])
        last = constant(graph, np.array(self._capacity - 1, np.int32))
        positions = tape.op("Min", [tape.op("Add", [first, steps]), last], name="positions")
        positions.name, positions.dtype, positions.shape = "positions", INT32, ir.Shape(["batch", "sequence"])
        graph.insert_before(graph[0], tape.nodes)
        return positions

    def _widen(self, old: ir.Value, new: ir.Value) -> None:
        """What was traced on int64 positions goes on with int64."""
        cast = ir.node("Cast", [new], {"to": ir.DataType.INT64}, name="positions_in_int64")
        cast.outputs[0].dtype, cast.outputs[0].shape = ir.DataType.INT64, new.shape
        maker = new.producer()
        if maker is None:
            self._graph.insert_before(self._graph[0], cast)
        else:
            self._graph.insert_after(maker, cast)
        for node, place in old.uses():
            if node is not cast:
                node.replace_input_with(place, cast.outputs[0])

    def _resize_caches(self) -> None:
        for values in (self._graph.inputs, self._graph.outputs):
            for part in (".key", ".value", ".score"):
                for value in named(values, part):
                    assert value.shape is not None
                    value.shape = ir.Shape(["batch", value.shape[1], self._capacity, *value.shape[3:]])

    def _gather_logits(self, logits_tokens: ir.Value) -> None:
        """logits [B, num_logits, V] of hidden[b, logits_tokens[b, n]]."""
        graph, tape = self._graph, Tape()
        logits = next(value for value in graph.outputs if value.name == "logits")
        head = logits.producer()
        assert head is not None and head.op_type == "MatMul", "the logits come from the head"
        hidden = head.inputs[0]
        assert hidden is not None and logits.shape is not None
        size = constant(graph, np.array([extent(hidden, 2)]))
        shape = tape.op("Concat", [tape.op("Shape", [logits_tokens]), size], {"axis": 0})
        index = tape.op("Unsqueeze", [logits_tokens, constant(graph, np.array([2]))])
        wanted = tape.op("GatherElements", [hidden, tape.op("Expand", [index, shape])], {"axis": 1})
        wanted.dtype, wanted.shape = ir.DataType.FLOAT, ir.Shape(["batch", "num_logits", extent(hidden, 2)])
        graph.insert_before(head, tape.nodes)
        head.replace_input_with(0, wanted)
        logits.shape = ir.Shape(["batch", "num_logits", logits.shape[2]])


def constant_range(graph: ir.Graph, count: int) -> ir.Value:
    """0, 1, ... as int32 [count]."""
    name = f"range_{count}"
    if name not in graph.initializers:
        tensor = ir.tensor(np.arange(count, dtype=np.int32), name=name)
        graph.register_initializer(ir.val(name, const_value=tensor))
    return graph.initializers[name]

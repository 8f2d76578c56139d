"""Caches of fixed capacity, rows padded on the right, all lengths and positions in int32: the inputs of an engine."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnx_ir.tape import Tape

from doge_export.targets.contract import (
    ContractError,
    GraphPass,
    extent,
    graph_input,
    graph_output,
    node_input,
    producer_of,
    shape_of,
)
from doge_export.targets.lowering import constant, named
from doge_export.targets.passes.rope_tables import POSITIONS, scales_rope
from doge_export.targets.passes.selection import ATTENTION, check_attention, raw_scores

PAST_LENGTHS, NEW_LENGTHS, PAST_SLOTS = 7, 8, 9
"""The places of these among an attention node's inputs; the last two are there with bounded caches only."""

INT32 = ir.DataType.INT32

LONGEST = 2**24
"""Most tokens of a row with bounded caches: float32 counts no further."""


class FixedCapacity(GraphPass):
    """Turn the canonical graph's inputs and outputs into those of `trt.engine_plan.EnginePlan`.

    1. A cache has `capacity` slots, however many are filled; attention nodes read past_lengths.
    2. attention_mask goes: rows are padded on the right, where causality hides the padding from every token.
    3. Positions are computed from past_lengths. They stay an input only where RoPE is scaled by the length of the
       longest row, which padding must not make longer.
    4. Only the hidden states that logits_tokens names reach the head.
    5. Bounded caches keep the `capacity` best keys of a row in any order, see plugins/include/doge/operators.h. Their
       slots, int32, tell the place in the text of each; new_lengths tells padding, which must not take the place of a
       key.

    Needs a canonical language model: inputs input_ids, attention_mask and position_ids; DynamicMaskAttention as its
    only attention operator, with padding marked in the scores; an output `logits` that a MatMul computes.

    Args:
        capacity: slots of a cache row.
        bounded: a row may be longer than its cache.
        longest: with bounded caches, the most tokens of a row in one run.
    """

    def __init__(self, capacity: int, *, bounded: bool = False, longest: int = 0) -> None:
        super().__init__()
        self._capacity, self._bounded = capacity, bounded
        self._longest = longest if bounded else capacity

    def requires(self, model: ir.Model) -> None:
        """Require a canonical language model without RatioMaskAttention."""
        super().requires(model)
        graph = model.graph
        for name in ("input_ids", "attention_mask", "position_ids"):
            graph_input(graph, name)
        for node in graph:
            if node.op_type in ATTENTION:
                check_attention(node)
                if node.op_type != "DynamicMaskAttention":
                    raise ContractError(node, "expected DynamicMaskAttention, the only attention that reads lengths")
        for values in (graph.inputs, graph.outputs):
            for ending, rank in ((".key", 4), (".value", 4), (".score", 3)):
                for value in named(values, ending):
                    shape_of(value, rank)
        logits = graph_output(graph, "logits")
        shape_of(logits, 3)
        extent(node_input(producer_of(logits, "MatMul"), 0), 2)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the inputs, then what reads them."""
        graph = self._graph = model.graph
        ids, mask, positions = (graph_input(graph, name) for name in ("input_ids", "attention_mask", "position_ids"))
        past_lengths = ir.val("past_lengths", dtype=INT32, shape=["batch"])
        logits_tokens = ir.val("logits_tokens", dtype=INT32, shape=["batch", "num_logits"])
        for value in (ids, positions):
            value.dtype, value.shape = INT32, ir.Shape(["batch", "sequence"])
        is_scaled = scales_rope(graph)
        caches = [value for value in graph.inputs if value not in (ids, mask, positions)]
        new_lengths = ir.val("new_lengths", dtype=INT32, shape=["batch"])
        optional = [*([new_lengths] if self._bounded else []), *([positions] if is_scaled else [])]
        graph.inputs[:] = [ids, past_lengths, logits_tokens, *optional, *caches]

        self._drop_mask(mask, ids)
        for node in [node for node in graph if node.op_type == "DynamicMaskAttention"]:
            node.resize_inputs(PAST_LENGTHS + 1)
            node.replace_input_with(PAST_LENGTHS, past_lengths)
            if self._bounded:
                self._add_slots(node, new_lengths)
        self._cast_to_int64(positions, positions if is_scaled else self._positions(ids, past_lengths))
        self._resize_caches()
        self._gather_logits(logits_tokens)
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)

    def _drop_mask(self, mask: ir.Value, ids: ir.Value) -> None:
        """Let attention read the scores in which padding is not marked yet."""
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
        mask.replace_all_uses_with(ids)  # readers of its shape; the nodes that marked padding have no reader any more

    def _add_slots(self, node: ir.Node, new_lengths: ir.Value) -> None:
        """Let an attention node keep the places of its keys in an input, and give them in an output."""
        past_key = node_input(node, 4)
        assert past_key.name is not None
        shape = ir.Shape(["batch", extent(past_key, 1), self._capacity])
        name = past_key.name.replace(".key", ".slots")
        past = ir.val(name, dtype=INT32, shape=shape)
        node.attributes["bounded"] = ir.AttrInt64("bounded", 1)
        node.resize_inputs(PAST_SLOTS + 1)
        node.replace_input_with(NEW_LENGTHS, new_lengths)
        node.replace_input_with(PAST_SLOTS, past)
        node.resize_outputs(len(node.outputs) + 1)
        present = node.outputs[-1]
        present.name, present.dtype, present.shape = name.replace("past_key_values", "present"), INT32, shape
        self._graph.inputs.append(past)
        self._graph.outputs.append(present)

    def _positions(self, ids: ir.Value, past_lengths: ir.Value) -> ir.Value:
        """Compute positions int32 [B, S]: the row's past length plus the token's place, up to the last of a row.

        The bound keeps padding inside the tables of cosines and sines.
        """
        graph, tape = self._graph, Tape()
        places = constant_range(graph, self._longest)
        new = tape.op("Shape", [ids], {"start": 1, "end": 2})
        zero = constant(graph, np.array([0]))
        steps = tape.op("Slice", [places, zero, new, zero])
        first = tape.op("Unsqueeze", [past_lengths, constant(graph, np.array([1]))])
        last = constant(graph, np.array((LONGEST if self._bounded else self._capacity) - 1, np.int32))
        positions = tape.op("Min", [tape.op("Add", [first, steps]), last], name=POSITIONS)
        positions.name, positions.dtype, positions.shape = POSITIONS, INT32, ir.Shape(["batch", "sequence"])
        graph.insert_before(graph[0], tape.nodes)
        return positions

    def _cast_to_int64(self, old: ir.Value, new: ir.Value) -> None:
        """Let the readers of `old`, which were traced with int64 positions, read `new` cast to int64."""
        cast = ir.node("Cast", [new], {"to": ir.DataType.INT64}, name="positions_in_int64")
        cast.outputs[0].dtype, cast.outputs[0].shape = ir.DataType.INT64, new.shape
        producer = new.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], cast)
        else:
            self._graph.insert_after(producer, cast)
        for node, place in old.uses():
            if node is not cast:
                node.replace_input_with(place, cast.outputs[0])

    def _resize_caches(self) -> None:
        for values in (self._graph.inputs, self._graph.outputs):
            for ending, rank in ((".key", 4), (".value", 4), (".score", 3)):
                for value in named(values, ending):
                    shape = shape_of(value, rank)
                    value.shape = ir.Shape(["batch", shape[1], self._capacity, *shape[3:]])

    def _gather_logits(self, logits_tokens: ir.Value) -> None:
        """Compute logits [B, num_logits, V] of hidden[b, logits_tokens[b, n]]."""
        graph, tape = self._graph, Tape()
        logits = graph_output(graph, "logits")
        head = producer_of(logits, "MatMul")
        hidden = node_input(head, 0)
        size = constant(graph, np.array([extent(hidden, 2)]))
        shape = tape.op("Concat", [tape.op("Shape", [logits_tokens]), size], {"axis": 0})
        index = tape.op("Unsqueeze", [logits_tokens, constant(graph, np.array([2]))])
        wanted = tape.op("GatherElements", [hidden, tape.op("Expand", [index, shape])], {"axis": 1})
        wanted.dtype, wanted.shape = ir.DataType.FLOAT, ir.Shape(["batch", "num_logits", extent(hidden, 2)])
        graph.insert_before(head, tape.nodes)
        head.replace_input_with(0, wanted)
        logits.shape = ir.Shape(["batch", "num_logits", shape_of(logits, 3)[2]])


def constant_range(graph: ir.Graph, count: int) -> ir.Value:
    """Return the initializer 0, 1, ... int32 [count]."""
    name = f"range_{count}"
    if name not in graph.initializers:
        tensor = ir.tensor(np.arange(count, dtype=np.int32), name=name)
        graph.register_initializer(ir.val(name, const_value=tensor))
    return graph.initializers[name]

"""The attention operators in standard ops, with scores recomputed from the cached values.

For the portable graph, and for every graph without a cache. No loader of ONNX language models carries a third state
per layer, so the scores are not cached, and `attention_mask` covers past and new tokens,
[batch_size, past_sequence_length + sequence_length].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnx_ir.tape import Tape

from doge_export.graph.schemas import DOMAIN
from doge_export.targets.contract import extent, graph_input, node_input
from doge_export.targets.lowering import Lowering, constant, named
from doge_export.targets.passes.selection import (
    ATTENTION,
    check_attention,
    raw_scores,
    read_lengths_from,
    row_bias,
    visible_keys,
)

TOTAL = "past_sequence_length + sequence_length"


class StandardAttention(Lowering):
    """Lower every attention operator to MatMul, Softmax, MatMul.

    The queries of a group meet their key as rows of one matrix, [B, Hkv, group * S, D], so that no key is repeated.
    Needs inputs input_ids and attention_mask, padding marked in the scores, and a static head size. A graph without a
    cache has no inputs ".key", ".value" and ".score", and then keeps the axes of its mask.
    """

    domain, op_types = DOMAIN, ATTENTION

    def requires(self, model: ir.Model) -> None:
        """Require the inputs that say which keys are visible."""
        super().requires(model)
        graph_input(model.graph, "input_ids"), graph_input(model.graph, "attention_mask")

    def check(self, node: ir.Node) -> None:
        """Check one attention node."""
        check_attention(node)
        extent(node.inputs[4], 3)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove the cached scores, widen the mask, then replace every node."""
        graph = model.graph
        for values in (graph.inputs, graph.outputs):
            for value in named(values, ".score"):
                values.remove(value)
        mask, ids = graph_input(graph, "attention_mask"), graph_input(graph, "input_ids")
        if named(graph.inputs, ".key"):
            mask.shape = ir.Shape(["batch_size", TOTAL])
        read_lengths_from(ids, mask)
        tape = Tape()
        self.total_length = tape.op("Shape", [mask], {"start": 1, "end": 2})
        past_length = tape.op("Sub", [self.total_length, tape.op("Shape", [ids], {"start": 1, "end": 2})])
        self.visible = visible_keys(tape, graph, mask, past_length, self.total_length, causal=True)
        graph.insert_before(graph[0], tape.nodes)
        result = super().call(model)
        # The scores now read the whole value cache, whose Concat comes later in the graph.
        common.TopologicalSortPass()(model)
        return result

    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value | None]:
        """Record one layer."""
        _, key, _, _, past_key, past_value, _ = node.inputs
        value = node_input(node, 2)
        kv_heads, size = node.attributes["kv_num_heads"].as_int(), extent(past_key, 3)
        score = raw_scores(node)
        score_heads = 1 if score is None else extent(score, 2)
        is_cached = past_key in self.graph.inputs

        present_key, present_value = (self.split(tape, x, kv_heads, size) for x in (key, value))
        if is_cached:
            present_key = tape.op("Concat", [past_key, present_key], {"axis": 2})
            present_value = tape.op("Concat", [past_value, present_value], {"axis": 2})
            if score is not None:
                flat = tape.op("Transpose", [present_value], {"perm": [0, 2, 1, 3]})
                _recompute(score, value, tape.op("Reshape", [flat, self.ints(0, 0, kv_heads * size)]))
        for present, old in ((present_key, node.outputs[1]), (present_value, node.outputs[2])):
            present.type, present.shape = old.type, old.shape

        scores = None
        if score is not None:
            by_key = tape.op("Transpose", [score], {"perm": [0, 2, 1]})
            scores = tape.op("Unsqueeze", [by_key, self.ints(2)])  # [B, Hs, 1, T]
        bias = row_bias(tape, self.graph, node, scores, self.visible, self.total_length)
        output = self.attend(tape, node, present_key, present_value, bias, score_heads)
        return output, present_key, present_value, None

    def split(self, tape: Tape, x: ir.Value | None, heads: int, size: int) -> ir.Value:
        """Record x [B, S, heads * D] as [B, heads, S, D]."""
        by_head = tape.op("Reshape", [x, self.ints(0, 0, heads, size)])
        return tape.op("Transpose", [by_head], {"perm": [0, 2, 1, 3]})

    def attend(
        self, tape: Tape, node: ir.Node, keys: ir.Value, values: ir.Value, bias: ir.Value, score_heads: int
    ) -> ir.Value:
        """Record softmax attention of a node's queries [B, S, Hq * D].

        Args:
            tape: records the nodes.
            node: the attention node.
            keys, values: [B, Hkv, T, D].
            bias: [B, Hs, S, T], added to the scaled products.
            score_heads: Hs.

        Returns:
            [B, S, Hq * D].
        """
        heads, kv_heads = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
        size, group = extent(node.inputs[4], 3), heads // kv_heads
        if score_heads == heads and group > 1:
            rows = tape.op("Concat", [self.ints(0, kv_heads, -1), self.total_length], {"axis": 0})
            bias = tape.op("Reshape", [bias, rows])
        elif group > 1:
            bias = tape.op("Concat", [bias] * group, {"axis": 2})

        queries = tape.op("Reshape", [node.inputs[0], self.ints(0, 0, kv_heads, group, size)])
        queries = tape.op("Transpose", [queries], {"perm": [0, 2, 3, 1, 4]})
        queries = tape.op("Reshape", [queries, self.ints(0, kv_heads, -1, size)])
        scale = constant(self.graph, np.array(node.attributes["scale"].as_float(), dtype=np.float32))
        keys = tape.op("Transpose", [keys], {"perm": [0, 1, 3, 2]})
        logits = tape.op("Add", [tape.op("MatMul", [tape.op("Mul", [queries, scale]), keys]), bias])
        mixed = tape.op("MatMul", [tape.op("Softmax", [logits], {"axis": -1}), values])
        mixed = tape.op("Reshape", [mixed, self.ints(0, kv_heads, group, -1, size)])
        mixed = tape.op("Transpose", [mixed], {"perm": [0, 3, 1, 2, 4]})
        return tape.op("Reshape", [mixed, self.ints(0, 0, heads * size)])


def _recompute(score: ir.Value, value: ir.Value, every_value: ir.Value) -> None:
    """Let the nodes that compute `score` from `value` [B, S, Hkv * D] read `every_value` [B, T, Hkv * D] instead.

    They work token by token, so the same nodes then compute the scores of all T tokens.
    """
    pending, seen = [score.producer()], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for place, source in enumerate(node.inputs):
            if source is value:
                node.replace_input_with(place, every_value)
            elif source is not None:
                pending.append(source.producer())
        for result in node.outputs:
            if result.shape is not None:
                result.shape = ir.Shape([size if isinstance(size, int) else None for size in result.shape])

"""Which keys a row sees, in standard ops: padding, causality, and the two selections by score."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.lowering import constant

NEG = np.finfo(np.float32).min
ATTENTION = ("DynamicMaskAttention", "RatioMaskAttention")
"""The attention operators of domain `doge`; they differ in what `row_bias` does."""


def selects_keys(node: ir.Node) -> bool:
    """Whether an attention node leaves out keys by score."""
    return node.op_type == "RatioMaskAttention" or node.attributes["keep_window_size"].as_int() > 0


def raw_scores(node: ir.Node) -> ir.Value | None:
    """The scores [B, S, Hs] of an attention node before padding was marked in them; None where they are all zero."""
    marked = node.inputs[3]
    producer = marked.producer() if marked is not None else None
    assert producer is not None, "padding is marked in the scores"
    if node.op_type == "RatioMaskAttention":
        assert producer.op_type == "Concat"
        return producer.inputs[0]
    assert producer.op_type == "Where"
    scores = producer.inputs[1]
    assert scores is not None
    known = ir.convenience.get_const_tensor(scores)
    return None if known is not None and not known.numpy().any() else scores


def visible_keys(
    tape: Tape, graph: ir.Graph, mask: ir.Value, past_length: ir.Value, total_length: ir.Value, *, causal: bool
) -> ir.Value:
    """Which of T keys each of S new tokens may see, bool [B, 1, S, T]: tokens, and with `causal` none after P + i.

    mask int64 [B, T], 1 for a token; past_length and total_length int64 [1].
    """
    tokens = tape.op("Cast", [mask], {"to": ir.DataType.BOOL})
    tokens = tape.op("Unsqueeze", [tokens, constant(graph, np.array([1, 2]))])
    if not causal:
        one = constant(graph, np.array([1]))
        rows = tape.op("Sub", [total_length, past_length])
        return tape.op("Expand", [tokens, tape.op("Concat", [one, one, rows, one], {"axis": 0})])
    return tape.op("And", [tokens, causal_keys(tape, graph, past_length, total_length)])


def causal_keys(tape: Tape, graph: ir.Graph, past_length: ir.Value, total_length: ir.Value) -> ir.Value:
    """bool [S, T]: key j comes no later than new token P + i. Lengths int64 [1]."""
    zero, one = constant(graph, np.array(0)), constant(graph, np.array(1))
    keys = tape.op("Range", [zero, tape.op("Squeeze", [total_length]), one])
    rows = tape.op("Slice", [keys, past_length, total_length])
    rows = tape.op("Unsqueeze", [rows, constant(graph, np.array([1]))])
    return tape.op("LessOrEqual", [keys, rows])


def row_bias(
    tape: Tape, graph: ir.Graph, node: ir.Node, scores: ir.Value | None, visible: ir.Value, total_length: ir.Value
) -> ir.Value:
    """What an attention node adds to the products of each new token with every key, [B, Hs, S, T] float32.

    scores: `raw_scores` of cached and new tokens, [B, Hs, 1, T]. visible: as `visible_keys` gives it, causal where the
    node selects keys. total_length: int64 [1].
    """
    zero, lowest = constant(graph, np.array(0, dtype=np.float32)), constant(graph, np.array(NEG))
    if node.op_type == "RatioMaskAttention":
        assert scores is not None
        ranked = _leave_out_lowest(tape, graph, node, scores, total_length)
        if node.attributes["adds_causality"].as_int():
            return tape.op("Add", [ranked, tape.op("Where", [visible, zero, lowest])])
        return tape.op("Where", [visible, ranked, lowest])
    bias = tape.op("Where", [visible, zero if scores is None else scores, lowest])
    window = node.attributes["keep_window_size"].as_int()
    return _keep_best(tape, graph, bias, window, total_length) if window else bias


def _keep_best(tape: Tape, graph: ir.Graph, scores: ir.Value, window: int, total_length: ir.Value) -> ir.Value:
    """Scores [B, Hs, S, T] float32 of causal rows, NEG where they are not among the `window` best of their row.

    Of equal scores TopK takes the lower index, as the operator demands.
    """
    count = tape.op("Min", [total_length, constant(graph, np.array([window]))])
    best, indices = tape.op_multi_out("TopK", [scores, count], {"axis": -1, "sorted": 0}, num_outputs=2)
    nothing = tape.op("Expand", [constant(graph, np.array(NEG)), tape.op("Shape", [scores])])
    return tape.op("ScatterElements", [nothing, indices, best], {"axis": -1})


def _leave_out_lowest(tape: Tape, graph: ir.Graph, node: ir.Node, scores: ir.Value, total_length: ir.Value) -> ir.Value:
    """Scores [B, Hs, 1, T], NEG where `ratio_mask_attention` leaves out a key whoever looks."""
    window = constant(graph, np.array([node.attributes["keep_window_size"].as_int()]))
    ratio = constant(graph, np.array(float(node.attributes["ratio"].as_string()), dtype=np.float64))
    one, lowest = constant(graph, np.array([1])), constant(graph, np.array(NEG))

    counted = tape.op("Sub", [total_length, window]) if node.attributes["of_excess"].as_int() else total_length
    share = tape.op("Mul", [tape.op("Cast", [counted], {"to": ir.DataType.DOUBLE}), ratio])
    rank = tape.op("Cast", [share], {"to": ir.DataType.INT64})  # cut off towards zero, as int() does
    is_ranked = tape.op("And", [tape.op("Greater", [total_length, window]), tape.op("GreaterOrEqual", [rank, one])])

    last, end = constant(graph, np.array([-1])), constant(graph, np.array([np.iinfo(np.int64).max]))
    count = tape.op("Where", [is_ranked, rank, one])
    smallest, _ = tape.op_multi_out("TopK", [scores, count], {"axis": -1, "largest": 0, "sorted": 1}, num_outputs=2)
    threshold = tape.op("Slice", [smallest, last, end, last])
    is_left_out = tape.op("And", [tape.op("Less", [scores, threshold]), is_ranked])
    return tape.op("Where", [is_left_out, lowest, scores])

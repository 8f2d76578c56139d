"""Which keys a row sees, in standard ops: causality, and the two selections by score."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.lowering import constant, extent

NEG = np.finfo(np.float32).min
ATTENTION = ("DynamicMaskAttention", "RatioMaskAttention")
"""The attention operators of domain `doge`; they differ in what `row_bias` does."""


def selects_keys(node: ir.Node) -> bool:
    """Whether an attention node leaves out keys by score."""
    return node.op_type == "RatioMaskAttention" or node.attributes["keep_window_size"].as_int() > 0


def score_heads_of(node: ir.Node) -> int:
    """Hs of an attention node: 1, Hkv or Hq."""
    return extent(node.inputs[3], 2) - (node.op_type == "RatioMaskAttention")


def row_bias(
    tape: Tape, graph: ir.Graph, node: ir.Node, scores: ir.Value, past_length: ir.Value, total_length: ir.Value
) -> ir.Value:
    """What an attention node adds to the products of each new token with every key, [B, Hs, S, T] float32.

    scores: cached and new ones as the node's own are laid out, [B, Hs, 1, T] float32. past_length and total_length are
    int64 [1].
    """
    window = node.attributes["keep_window_size"].as_int()
    if node.op_type == "RatioMaskAttention":
        return _leave_out_lowest(tape, graph, node, scores, past_length, total_length)
    bias = _causal(tape, graph, scores, past_length, total_length)
    return _keep_best(tape, graph, bias, window, total_length) if window else bias


def _causal(tape: Tape, graph: ir.Graph, scores: ir.Value, past_length: ir.Value, total_length: ir.Value) -> ir.Value:
    """Scores [B, Hs, 1, T] float32 -> [B, Hs, S, T], NEG where key j is later than new token i: j > P + i."""
    zero, one = constant(graph, np.array(0)), constant(graph, np.array(1))
    keys = tape.op("Range", [zero, tape.op("Squeeze", [total_length]), one])
    rows = tape.op("Slice", [keys, past_length, total_length])
    rows = tape.op("Unsqueeze", [rows, constant(graph, np.array([1]))])
    return tape.op("Where", [tape.op("LessOrEqual", [keys, rows]), scores, constant(graph, np.array(NEG))])


def _keep_best(tape: Tape, graph: ir.Graph, scores: ir.Value, window: int, total_length: ir.Value) -> ir.Value:
    """Scores [B, Hs, S, T] float32 of causal rows, NEG where they are not among the `window` best of their row.

    Of equal scores TopK takes the lower index, as the operator demands.
    """
    count = tape.op("Min", [total_length, constant(graph, np.array([window]))])
    best, indices = tape.op_multi_out("TopK", [scores, count], {"axis": -1, "sorted": 0}, num_outputs=2)
    nothing = tape.op("Expand", [constant(graph, np.array(NEG)), tape.op("Shape", [scores])])
    return tape.op("ScatterElements", [nothing, indices, best], {"axis": -1})


def _leave_out_lowest(
    tape: Tape, graph: ir.Graph, node: ir.Node, scores: ir.Value, past_length: ir.Value, total_length: ir.Value
) -> ir.Value:
    """`ratio_mask_attention`'s bias. The last of the heads in `scores` [B, Hs + 1, 1, T] marks padding."""
    window = constant(graph, np.array([node.attributes["keep_window_size"].as_int()]))
    ratio = constant(graph, np.array(float(node.attributes["ratio"].as_string()), dtype=np.float64))
    one, lowest = constant(graph, np.array([1])), constant(graph, np.array(NEG))

    counted = tape.op("Sub", [total_length, window]) if node.attributes["of_excess"].as_int() else total_length
    share = tape.op("Mul", [tape.op("Cast", [counted], {"to": ir.DataType.DOUBLE}), ratio])
    rank = tape.op("Cast", [share], {"to": ir.DataType.INT64})  # cut off towards zero, as int() does
    is_ranked = tape.op("And", [tape.op("Greater", [total_length, window]), tape.op("GreaterOrEqual", [rank, one])])

    last, end = constant(graph, np.array([-1])), constant(graph, np.array([np.iinfo(np.int64).max]))
    first, heads = constant(graph, np.array([0])), constant(graph, np.array([1]))
    own = tape.op("Slice", [scores, first, last, heads])
    padding = tape.op("Slice", [scores, last, end, heads])
    count = tape.op("Where", [is_ranked, rank, one])
    smallest, _ = tape.op_multi_out("TopK", [own, count], {"axis": -1, "largest": 0, "sorted": 1}, num_outputs=2)
    threshold = tape.op("Slice", [smallest, last, end, last])
    is_left_out = tape.op("And", [tape.op("Less", [own, threshold]), is_ranked])
    own = tape.op("Where", [is_left_out, lowest, own])
    mask = _causal(tape, graph, padding, past_length, total_length)
    if node.attributes["adds_causality"].as_int():
        return tape.op("Add", [own, mask])
    return tape.op("Where", [tape.op("Equal", [mask, lowest]), lowest, own])

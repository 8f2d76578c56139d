"""The keys that a row sees, in standard ops: padding, causality, and the two selections by score."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.graph.schemas import DYNAMIC_MASK_ATTENTION, RATIO_MASK_ATTENTION
from doge_export.targets.contract import ContractError, check_signature, node_input, producer_of
from doge_export.targets.lowering import constant

NEG = np.finfo(np.float32).min
ATTENTION = (DYNAMIC_MASK_ATTENTION.name, RATIO_MASK_ATTENTION.name)
"""The attention operators of domain `doge`; they differ in the bias that `row_bias` returns."""
SCORE = 3
"""The place of the scores among an attention node's inputs."""


def selects_keys(node: ir.Node) -> bool:
    """Return whether an attention node leaves out keys by score."""
    return node.op_type == RATIO_MASK_ATTENTION.name or node.attributes["keep_window_size"].as_int() > 0


def check_attention(node: ir.Node) -> None:
    """Check an attention node of the canonical graph: its signature, and the node that marks padding in its scores.

    Raises:
        ContractError: an input or attribute is missing, or padding is not marked.
    """
    check_signature(node)
    raw_scores(node)


def padded_scores(node: ir.Node) -> ir.Value:
    """Return the scores [B, S, Hs] of an attention node, in which padding is marked."""
    return node_input(node, SCORE)


def raw_scores(node: ir.Node) -> ir.Value | None:
    """Return the scores [B, S, Hs] of an attention node before padding is marked in them; None where all are zero.

    Raises:
        ContractError: padding is not marked, by Where for DynamicMaskAttention and by Concat for RatioMaskAttention.
    """
    try:
        if node.op_type == RATIO_MASK_ATTENTION.name:
            return node_input(producer_of(padded_scores(node), "Concat"), 0)
        scores = node_input(producer_of(padded_scores(node), "Where"), 1)
    except ContractError as error:
        raise ContractError(node, f"expected scores in which padding is marked; {error}") from error
    known = ir.convenience.get_const_tensor(scores)
    return None if known is not None and not known.numpy().any() else scores


def read_lengths_from(ids: ir.Value, mask: ir.Value) -> None:
    """Let nodes that ask for the shape of the mask, to count the new tokens, ask for that of the ids.

    Args:
        ids: input_ids [B, S].
        mask: attention_mask, which is about to cover the cached tokens too.
    """
    for node, place in mask.uses():
        if node.op_type == "Shape":
            node.replace_input_with(place, ids)


def visible_keys(
    tape: Tape, graph: ir.Graph, mask: ir.Value, past_length: ir.Value, total_length: ir.Value, *, causal: bool
) -> ir.Value:
    """Return which of T keys each of S new tokens may see, bool [B, 1, S, T].

    Args:
        tape: records the nodes.
        graph: gets the constants.
        mask: int64 [B, T], 1 for a token and 0 for padding.
        past_length: P, int64 [1].
        total_length: T, int64 [1].
        causal: also hide the keys after P + i from token i.
    """
    tokens = tape.op("Cast", [mask], {"to": ir.DataType.BOOL})
    tokens = tape.op("Unsqueeze", [tokens, constant(graph, np.array([1, 2]))])
    if not causal:
        one = constant(graph, np.array([1]))
        rows = tape.op("Sub", [total_length, past_length])
        return tape.op("Expand", [tokens, tape.op("Concat", [one, one, rows, one], {"axis": 0})])
    return tape.op("And", [tokens, causal_keys(tape, graph, past_length, total_length)])


def causal_keys(tape: Tape, graph: ir.Graph, past_length: ir.Value, total_length: ir.Value) -> ir.Value:
    """Return bool [S, T]: key j comes no later than new token P + i. Lengths are int64 [1]."""
    zero, one = constant(graph, np.array(0)), constant(graph, np.array(1))
    keys = tape.op("Range", [zero, tape.op("Squeeze", [total_length]), one])
    rows = tape.op("Slice", [keys, past_length, total_length])
    rows = tape.op("Unsqueeze", [rows, constant(graph, np.array([1]))])
    return tape.op("LessOrEqual", [keys, rows])


def row_bias(
    tape: Tape,
    graph: ir.Graph,
    node: ir.Node,
    scores: ir.Value | None,
    visible: ir.Value,
    total_length: ir.Value,
    window: ir.Value | None = None,
    nothing: ir.Value | None = None,
) -> ir.Value:
    """Return what an attention node adds to the products of each new token with every key, [B, Hs, S, T] float32.

    Args:
        tape: records the nodes.
        graph: gets the constants.
        node: the attention node.
        scores: `raw_scores` of cached and new tokens, [B, Hs, 1, T]; None where all are zero.
        visible: as `visible_keys` returns it, causal where the node selects keys.
        total_length: T, int64 [1].
        window: number of keys that a token keeps, int64 [1]; None for the node's keep_window_size.
        nothing: NEG, [B, Hs, S, T], where several nodes may share it.

    Raises:
        ContractError: a RatioMaskAttention without scores.
    """
    zero, lowest = constant(graph, np.array(0, dtype=np.float32)), constant(graph, np.array(NEG))
    if node.op_type == RATIO_MASK_ATTENTION.name:
        if scores is None:
            raise ContractError(node, "expected scores to rank, found none")
        ranked = _leave_out_lowest(tape, graph, node, scores, total_length)
        if node.attributes["adds_causality"].as_int():
            return tape.op("Add", [ranked, tape.op("Where", [visible, zero, lowest])])
        return tape.op("Where", [visible, ranked, lowest])
    bias = tape.op("Where", [visible, zero if scores is None else scores, lowest])
    if window is None and (kept := node.attributes["keep_window_size"].as_int()):
        window = constant(graph, np.array([kept]))
    return bias if window is None else _keep_best(tape, graph, bias, window, total_length, nothing)


def _keep_best(
    tape: Tape,
    graph: ir.Graph,
    scores: ir.Value,
    window: ir.Value,
    total_length: ir.Value,
    nothing: ir.Value | None = None,
) -> ir.Value:
    """Return the scores [B, Hs, S, T] float32 of causal rows, NEG where not among the `window` best of their row.

    Of equal scores TopK takes the lower index, as the operator demands.
    """
    count = tape.op("Min", [total_length, window])
    best, indices = tape.op_multi_out("TopK", [scores, count], {"axis": -1, "sorted": 0}, num_outputs=2)
    if nothing is None:
        nothing = tape.op("Expand", [constant(graph, np.array(NEG)), tape.op("Shape", [scores])])
    return tape.op("ScatterElements", [nothing, indices, best], {"axis": -1})


def _leave_out_lowest(tape: Tape, graph: ir.Graph, node: ir.Node, scores: ir.Value, total_length: ir.Value) -> ir.Value:
    """Return the scores [B, Hs, 1, T], NEG where `ratio_mask_attention` leaves out a key for every row."""
    window = constant(graph, np.array([node.attributes["keep_window_size"].as_int()]))
    ratio = constant(graph, np.array(float(node.attributes["ratio"].as_string()), dtype=np.float64))
    one, lowest = constant(graph, np.array([1])), constant(graph, np.array(NEG))

    counted = tape.op("Sub", [total_length, window]) if node.attributes["of_excess"].as_int() else total_length
    share = tape.op("Mul", [tape.op("Cast", [counted], {"to": ir.DataType.DOUBLE}), ratio])
    rank = tape.op("Cast", [share], {"to": ir.DataType.INT64})  # truncated, as by int()
    is_ranked = tape.op("And", [tape.op("Greater", [total_length, window]), tape.op("GreaterOrEqual", [rank, one])])

    last, end = constant(graph, np.array([-1])), constant(graph, np.array([np.iinfo(np.int64).max]))
    count = tape.op("Where", [is_ranked, rank, one])
    smallest, _ = tape.op_multi_out("TopK", [scores, count], {"axis": -1, "largest": 0, "sorted": 1}, num_outputs=2)
    threshold = tape.op("Slice", [smallest, last, end, last])
    is_left_out = tape.op("And", [tape.op("Less", [scores, threshold]), is_ranked])
    return tape.op("Where", [is_left_out, lowest, scores])

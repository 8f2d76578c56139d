"""Which keys a row sees, in standard ops: causality, and the keep_window_size best scores."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.lowering import constant

NEG = np.finfo(np.float32).min


def causal(tape: Tape, graph: ir.Graph, scores: ir.Value, past_length: ir.Value, total_length: ir.Value) -> ir.Value:
    """Scores [B, Hs, 1, T] float32 -> [B, Hs, S, T], NEG where key j is later than new token i: j > P + i.

    past_length and total_length are int64 [1].
    """
    zero, one = constant(graph, np.array(0)), constant(graph, np.array(1))
    keys = tape.op("Range", [zero, tape.op("Squeeze", [total_length]), one])
    rows = tape.op("Slice", [keys, past_length, total_length])
    rows = tape.op("Unsqueeze", [rows, constant(graph, np.array([1]))])
    return tape.op("Where", [tape.op("LessOrEqual", [keys, rows]), scores, constant(graph, np.array(NEG))])


def keep_best(tape: Tape, graph: ir.Graph, scores: ir.Value, window: int, total_length: ir.Value) -> ir.Value:
    """Scores [B, Hs, S, T] float32 of causal rows, NEG where they are not among the `window` best of their row.

    Of equal scores TopK takes the lower index, as the operator demands.
    """
    count = tape.op("Min", [total_length, constant(graph, np.array([window]))])
    best, indices = tape.op_multi_out("TopK", [scores, count], {"axis": -1, "sorted": 0}, num_outputs=2)
    nothing = tape.op("Expand", [constant(graph, np.array(NEG)), tape.op("Shape", [scores])])
    return tape.op("ScatterElements", [nothing, indices, best], {"axis": -1})

"""dt_proj(v_proj(x)) as one linear layer of x, so that it becomes a few more columns of the product for q, k and v."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.lowering import extent, stored, weight
from doge_export.targets.passes.patterns import linear, made_by
from doge_export.targets.passes.selection import ATTENTION, raw_scores, selects_keys


class FoldScores(ir.passes.InPlacePass):
    """exp(A * softplus(W_dt W_v x)): the two weights are multiplied in float64, once.

    Where no key is selected by score, the rows are repeated for every query head of a group too, since attention wants
    a score for each query head or for all of them; not so with `repeats` False. Layers with biases are left alone.
    """

    def __init__(self, *, repeats: bool = True) -> None:
        super().__init__()
        self._repeats = repeats

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the scores of every attention node that has this form."""
        self.graph = model.graph
        nodes = [node for node in model.graph if node.domain == "doge" and node.op_type in ATTENTION]
        folded = [self._fold(node) for node in nodes]
        return ir.passes.PassResult(model, modified=any(folded))

    def _fold(self, node: ir.Node) -> bool:
        raw = raw_scores(node)
        exp = made_by(raw, "Exp")
        scaled = made_by(raw if exp is None else exp.inputs[0], "Mul")
        softplus = made_by(scaled.inputs[1], "Softplus") if scaled is not None else None
        outer = linear(softplus.inputs[0]) if softplus is not None else None
        inner = linear(outer.source) if outer is not None else None
        if raw is None or scaled is None or outer is None or inner is None or outer.source is not node.inputs[2]:
            return False
        score_heads, query_heads = extent(raw, 2), node.attributes["num_heads"].as_int()
        once = not self._repeats or selects_keys(node) or score_heads == 1
        repeats = 1 if once else query_heads // score_heads

        (name, dt), (_, value) = stored(outer.weight), stored(inner.weight)
        width, inputs = score_heads * repeats, value.shape.numpy()[1]

        def product() -> np.ndarray:
            rows = dt.numpy().astype(np.float64) @ value.numpy().astype(np.float64)
            return np.repeat(rows, repeats, axis=0).T.astype(np.float32)

        a_name, a = stored(scaled.inputs[0])
        rate = scaled.inputs[0]
        if repeats > 1:
            rate = weight(self.graph, f"{a_name}_by_head", a, (width,), lambda: np.repeat(a.numpy(), repeats))
        tape = Tape()
        step = tape.op("MatMul", [inner.source, weight(self.graph, f"{name}_v", dt, (inputs, width), product)])
        result = tape.op("Mul", [rate, tape.op("Softplus", [step])])
        if exp is not None:
            result = tape.op("Exp", [result])
        assert raw.shape is not None
        result.shape, result.type = ir.Shape([*raw.shape[:2], width]), raw.type
        # The padding of the new tokens is marked further down, for as many heads as there were.
        marked = node.inputs[3].producer() if node.inputs[3] is not None else None
        assert marked is not None
        self.graph.insert_before(marked, tape.nodes)
        for place, source in enumerate(marked.inputs):
            if source is raw:
                marked.replace_input_with(place, result)
        return True

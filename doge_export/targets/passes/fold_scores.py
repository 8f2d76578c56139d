"""dt_proj(v_proj(x)) as one linear layer of x, so that it becomes a few more columns of the product for q, k and v."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.graph.schemas import DOMAIN
from doge_export.targets.contract import GraphPass, extent, initializer, producer_of, shape_of
from doge_export.targets.lowering import weight
from doge_export.targets.passes.patterns import computed_by, linear
from doge_export.targets.passes.selection import ATTENTION, check_attention, padded_scores, raw_scores, selects_keys


class FoldScores(GraphPass):
    """Multiply the two weights of exp(A * softplus(W_dt W_v x)) in float64, once.

    Where no key is selected by score, the rows are also repeated for every query head of a group, since
    GroupQueryAttention takes one score for all query heads or one for each. Scores of any other form, such as layers
    with biases, stay as they are. Needs padding marked in the scores of every attention node.

    Args:
        repeats: False keeps one row for each score head.
    """

    def __init__(self, *, repeats: bool = True) -> None:
        super().__init__()
        self._repeats = repeats

    def requires(self, model: ir.Model) -> None:
        """Require attention nodes with the signature of their operator and padding marked in the scores."""
        super().requires(model)
        for node in _attention(model.graph):
            check_attention(node)
            raw = raw_scores(node)
            if raw is not None:
                shape_of(raw, 3)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the scores of every attention node that has this form."""
        self.graph = model.graph
        folded = [self._fold(node) for node in _attention(model.graph)]
        return ir.passes.PassResult(model, modified=any(folded))

    def _fold(self, node: ir.Node) -> bool:
        raw = raw_scores(node)
        exp = computed_by(raw, "Exp")
        scaled = computed_by(raw if exp is None else exp.inputs[0], "Mul")
        softplus = computed_by(scaled.inputs[1], "Softplus") if scaled is not None else None
        outer = linear(softplus.inputs[0]) if softplus is not None else None
        inner = linear(outer.source) if outer is not None else None
        if raw is None or scaled is None or outer is None or inner is None or outer.source is not node.inputs[2]:
            return False
        score_heads, query_heads = extent(raw, 2), node.attributes["num_heads"].as_int()
        once = not self._repeats or selects_keys(node) or score_heads == 1
        repeats = 1 if once else query_heads // score_heads

        (name, dt), (_, value) = initializer(outer.weight), initializer(inner.weight)
        width, inputs = score_heads * repeats, value.shape.numpy()[1]

        def product() -> np.ndarray:
            rows = dt.numpy().astype(np.float64) @ value.numpy().astype(np.float64)
            return np.repeat(rows, repeats, axis=0).T.astype(np.float32)

        a_name, a = initializer(scaled.inputs[0])
        rate = scaled.inputs[0]
        if repeats > 1:
            rate = weight(self.graph, f"{a_name}_by_head", a, (width,), lambda: np.repeat(a.numpy(), repeats))
        tape = Tape()
        step = tape.op("MatMul", [inner.source, weight(self.graph, f"{name}_v", dt, (inputs, width), product)])
        result = tape.op("Mul", [rate, tape.op("Softplus", [step])])
        if exp is not None:
            result = tape.op("Exp", [result])
        result.shape, result.type = ir.Shape([*shape_of(raw, 3)[:2], width]), raw.type
        # The node that marks padding comes later, and serves any number of heads.
        marked = producer_of(padded_scores(node), "Where", "Concat")
        self.graph.insert_before(marked, tape.nodes)
        for place, source in enumerate(marked.inputs):
            if source is raw:
                marked.replace_input_with(place, result)
        return True


def _attention(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.domain == DOMAIN and node.op_type in ATTENTION]

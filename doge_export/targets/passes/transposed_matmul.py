"""MatMul(x, Transpose(W)) as onnxruntime's FusedMatMul, which reads W as it is stored."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.contract import node_input
from doge_export.targets.lowering import Lowering
from doge_export.targets.passes.patterns import computed_by


class TransposedMatMul(Lowering):
    """Fuse the Transpose that `TransposeWeights` left: that of a tied head, whose weight is the embedding.

    onnxruntime would fold the Transpose into a second copy of the embedding while it loads; with transB it packs the
    weight for the product straight from the one copy that the embedding needs anyway. A MatMul whose right operand is
    not the transpose of an initializer stays as it is.
    """

    op_types = ("MatMul",)

    def check(self, node: ir.Node) -> None:
        """Check one product."""
        node_input(node, 0), node_input(node, 1)

    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value]:
        """Record a FusedMatMul, or the same MatMul again."""
        left, right = node.inputs
        transpose = computed_by(right, "Transpose")
        weight = transpose.inputs[0] if transpose is not None else None
        if weight is None or not weight.is_initializer():
            return [tape.op("MatMul", [left, right])]
        return [tape.op("FusedMatMul", [left, weight], {"transB": 1}, domain="com.microsoft")]

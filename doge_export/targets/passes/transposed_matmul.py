"""MatMul(x, Transpose(W)) as onnxruntime's FusedMatMul, which reads W as it lies."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.lowering import Lowering


class TransposedMatMul(Lowering):
    """What `TransposeWeights` left: a tied head, whose weight is the embedding.

    onnxruntime would fold the Transpose into a second copy of the embedding while it loads; with transB it packs the
    weight for the product straight from the one copy that the embedding needs anyway.
    """

    op_types = ("MatMul",)

    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value]:
        """Case 1: the right operand is a transposed initializer. Case 2: anything else stays a MatMul."""
        left, right = node.inputs
        transpose = right.producer() if right is not None else None
        if transpose is None or transpose.op_type != "Transpose" or not transpose.inputs[0].is_initializer():  # type: ignore[union-attr]
            return [tape.op("MatMul", [left, right])]
        return [tape.op("FusedMatMul", [left, transpose.inputs[0]], {"transB": 1}, domain="com.microsoft")]

"""RMSNormalization and RotaryEmbedding (opset 23) as older standard ops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.lowering import Lowering, constant


class PrimitiveRMSNorm(Lowering):
    """x / sqrt(mean(x^2) + eps) * weight, in the form that onnxruntime fuses again."""

    op_types = ("RMSNormalization",)

    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value]:
        """Six nodes."""
        x, weight = node.inputs
        epsilon = constant(self.graph, np.array(node.attributes["epsilon"].as_float(), dtype=np.float32))
        square = tape.op("Pow", [x, constant(self.graph, np.array(2.0, dtype=np.float32))])
        mean = tape.op("ReduceMean", [square, self.ints(-1)])
        root = tape.op("Sqrt", [tape.op("Add", [mean, epsilon])])
        return [tape.op("Mul", [tape.op("Div", [x, root]), weight])]


class PrimitiveRotaryEmbedding(Lowering):
    """Half-split rotation of x [B, S, heads * D] by cos and sin [B, S, D / 2]."""

    op_types = ("RotaryEmbedding",)

    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value]:
        """(first, second) -> (first cos - second sin, second cos + first sin)."""
        x, cos, sin = node.inputs
        heads = node.attributes["num_heads"].as_int()
        assert x is not None and x.shape is not None
        width = int(x.shape[2])  # type: ignore[arg-type]
        half = width // heads // 2
        by_head = tape.op("Reshape", [x, self.ints(0, 0, heads, 2 * half)])
        first, second = tape.op_multi_out("Split", [by_head, self.ints(half, half)], {"axis": -1}, num_outputs=2)
        cos, sin = (tape.op("Unsqueeze", [table, self.ints(2)]) for table in (cos, sin))

        def product(a: ir.Value, b: ir.Value) -> ir.Value:
            return tape.op("Mul", [a, b])

        turned = [
            tape.op("Sub", [product(first, cos), product(second, sin)]),
            tape.op("Add", [product(second, cos), product(first, sin)]),
        ]
        return [tape.op("Reshape", [tape.op("Concat", turned, {"axis": -1}), self.ints(0, 0, width)])]

"""RMSNormalization and RotaryEmbedding (opset 23) as older standard ops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.contract import ContractError, check_attributes, extent, node_input, shape_of
from doge_export.targets.lowering import Lowering, constant


class PrimitiveRMSNorm(Lowering):
    """Lower to x / sqrt(mean(x^2) + eps) * weight, in the form that onnxruntime fuses again.

    Needs norms over the last axis, with an epsilon.
    """

    op_types = ("RMSNormalization",)

    def check(self, node: ir.Node) -> None:
        """Check one norm."""
        node_input(node, 0), node_input(node, 1)
        check_attributes(node, "epsilon")
        if (axis := node.attributes.get_int("axis", -1)) != -1:
            raise ContractError(node, f"expected axis -1, found {axis}")

    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value]:
        """Record six nodes."""
        x, weight = node.inputs
        epsilon = constant(self.graph, np.array(node.attributes["epsilon"].as_float(), dtype=np.float32))
        square = tape.op("Pow", [x, constant(self.graph, np.array(2.0, dtype=np.float32))])
        mean = tape.op("ReduceMean", [square, self.ints(-1)])
        root = tape.op("Sqrt", [tape.op("Add", [mean, epsilon])])
        return [tape.op("Mul", [tape.op("Div", [x, root]), weight])]


class PrimitiveRotaryEmbedding(Lowering):
    """Lower the rotation of x [B, S, heads * D] by cos and sin [B, S, D / 2] to elementwise ops.

    Needs x of three axes and a static last one, num_heads, and halves that are not interleaved.
    """

    op_types = ("RotaryEmbedding",)

    def check(self, node: ir.Node) -> None:
        """Check one rotation."""
        x, _, _ = (node_input(node, place) for place in range(3))
        shape_of(x, 3), extent(x, 2)
        check_attributes(node, "num_heads")
        for name in ("interleaved", "rotary_embedding_dim"):
            if value := node.attributes.get_int(name, 0):
                raise ContractError(node, f"expected {name} 0, found {value}")

    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value]:
        """Record (first, second) -> (first cos - second sin, second cos + first sin)."""
        x, cos, sin = node.inputs
        heads = node.attributes["num_heads"].as_int()
        width = extent(x, 2)
        half = width // heads // 2
        by_head = tape.op("Reshape", [x, self.ints(0, 0, heads, 2 * half)])
        first, second = tape.op_multi_out("Split", [by_head, self.ints(half, half)], {"axis": -1}, num_outputs=2)
        cos, sin = (tape.op("Unsqueeze", [table, self.ints(2)]) for table in (cos, sin))

        def product(a: ir.Value, b: ir.Value) -> ir.Value:
            return tape.op("Mul", [a, b])

        rotated = [
            tape.op("Sub", [product(first, cos), product(second, sin)]),
            tape.op("Add", [product(second, cos), product(first, sin)]),
        ]
        return [tape.op("Reshape", [tape.op("Concat", rotated, {"axis": -1}), self.ints(0, 0, width)])]

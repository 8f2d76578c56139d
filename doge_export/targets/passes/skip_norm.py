"""x + y and the norm of the sum as one node."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.lowering import Lowering
from doge_export.targets.passes.patterns import made_by


class SkipNorm(Lowering):
    """RMSNormalization(Add(residual, branch)) -> com.microsoft SkipSimplifiedLayerNormalization.

    1. The norm of a sum of two computed tensors: fused; the sum, which the next residual reads, comes out beside it.
    2. Any other norm (of the embedding, of the heads) is left alone.
    """

    op_types = ("RMSNormalization",)

    def nodes(self, graph: ir.Graph) -> list[ir.Node]:
        """Norms of sums."""
        return [node for node in super().nodes(graph) if self._is_sum(node.inputs[0])]

    @staticmethod
    def _is_sum(value: ir.Value | None) -> bool:
        add = made_by(value, "Add")
        return add is not None and all(source is not None and source.producer() is not None for source in add.inputs)

    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value]:
        """The sum takes the place of Add's output everywhere else."""
        add = made_by(node.inputs[0], "Add")
        assert add is not None
        epsilon = node.attributes["epsilon"].as_float()
        normed, _, _, total = tape.op_multi_out(
            "SkipSimplifiedLayerNormalization",
            [add.inputs[0], add.inputs[1], node.inputs[1]],
            {"epsilon": epsilon},
            domain="com.microsoft",
            num_outputs=4,
        )
        old = add.outputs[0]
        total.shape, total.type = old.shape, old.type
        for user, place in list(old.uses()):
            if user is not node:
                user.replace_input_with(place, total)
        return [normed]

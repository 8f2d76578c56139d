"""A residual sum and its norm as one node."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.contract import ContractError, check_attributes, node_input, producer_of
from doge_export.targets.lowering import Lowering
from doge_export.targets.passes.patterns import computed_by


class SkipNorm(Lowering):
    """RMSNormalization(Add(residual, branch)) -> com.microsoft SkipSimplifiedLayerNormalization.

    1. The norm of a sum of two computed tensors is fused; the sum, which the next residual reads, is a second output.
    2. Any other norm (of the embedding, of the heads) stays as it is.

    Needs a weight and an epsilon in every norm of a sum.
    """

    op_types = ("RMSNormalization",)

    def nodes(self, graph: ir.Graph) -> list[ir.Node]:
        """Return the norms of sums."""
        return [node for node in super().nodes(graph) if self._is_sum(node.inputs[0])]

    @staticmethod
    def _is_sum(value: ir.Value | None) -> bool:
        add = computed_by(value, "Add")
        return add is not None and all(source is not None and source.producer() is not None for source in add.inputs)

    def check(self, node: ir.Node) -> None:
        """Check one norm of a sum."""
        node_input(node, 1)
        check_attributes(node, "epsilon")
        if (axis := node.attributes.get_int("axis", -1)) != -1:
            raise ContractError(node, f"expected axis -1, found {axis}")

    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value]:
        """Record the fused node; its second output takes the place of Add's output for all other readers."""
        add = producer_of(node_input(node, 0), "Add")
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

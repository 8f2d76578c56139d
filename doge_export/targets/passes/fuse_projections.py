"""One MatMul where several linear layers read the same input: query, key and value; gate, up and router."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.contract import GraphPass, initializer
from doge_export.targets.lowering import constant, weight


class FuseProjections(GraphPass):
    """MatMul(x, W1), MatMul(x, W2), ... -> Split(MatMul(x, [W1 W2 ...])).

    At batch 1 a small model spends its time on launching nodes, so one wide product beats several narrow ones.
    Products with a computed, shared or not two-dimensional right operand stay as they are.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse the products that share a left operand and have a weight of their own as right operand."""
        graph = model.graph
        by_input: dict[ir.Value, list[ir.Node]] = defaultdict(list)
        for node in graph:
            if node.op_type == "MatMul" and node.inputs[0] is not None and _is_own_matrix(node.inputs[1]):
                by_input[node.inputs[0]].append(node)
        groups = [(source, nodes) for source, nodes in by_input.items() if len(nodes) > 1]
        for source, nodes in groups:
            self._fuse(graph, source, nodes)
        return ir.passes.PassResult(model, modified=bool(groups))

    @staticmethod
    def _fuse(graph: ir.Graph, source: ir.Value, nodes: list[ir.Node]) -> None:
        names, tensors = zip(*(initializer(node.inputs[1]) for node in nodes), strict=True)
        widths = [tensor.shape.numpy()[1] for tensor in tensors]
        rows = tensors[0].shape.numpy()[0]
        joined = weight(
            graph, "+".join(names), tensors[0], (rows, sum(widths)),
            lambda: np.concatenate([tensor.numpy() for tensor in tensors], axis=1),
        )  # fmt: skip
        tape = Tape()
        product = tape.op("MatMul", [source, joined])
        parts = tape.op_multi_out(
            "Split", [product, constant(graph, np.array(widths))], {"axis": -1}, num_outputs=len(nodes)
        )
        for node, part in zip(nodes, parts, strict=True):
            part.name, part.shape, part.type = node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type
        graph.insert_before(nodes[0], tape.nodes)
        for node, part, name in zip(nodes, parts, names, strict=True):
            node.outputs[0].replace_all_uses_with(part)
            graph.remove(node, safe=True)
            del graph.initializers[name]


def _is_own_matrix(value: ir.Value | None) -> bool:
    """Return whether a value is a two-dimensional initializer with one reader."""
    return (
        value is not None
        and value.const_value is not None
        and len(value.const_value.shape) == 2
        and len(value.uses()) == 1
    )

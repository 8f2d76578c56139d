"""One MatMul where several linear layers read the same input: query, key and value; gate, up and router."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.lowering import constant, stored, weight


class FuseProjections(ir.passes.InPlacePass):
    """MatMul(x, W1), MatMul(x, W2), ... -> Split(MatMul(x, [W1 W2 ...])).

    A small model's time at batch 1 goes to starting work, not to doing it, so one wide product beats several narrow.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Group by left operand; needs weights stored as right operands."""
        graph = model.graph
        by_input: dict[ir.Value, list[ir.Node]] = defaultdict(list)
        for node in graph:
            if node.op_type == "MatMul" and node.inputs[0] is not None:
                right = node.inputs[1]
                if right is not None and right.const_value is not None and len(right.uses()) == 1:
                    by_input[node.inputs[0]].append(node)
        groups = [(source, nodes) for source, nodes in by_input.items() if len(nodes) > 1]
        for source, nodes in groups:
            self._fuse(graph, source, nodes)
        return ir.passes.PassResult(model, modified=bool(groups))

    @staticmethod
    def _fuse(graph: ir.Graph, source: ir.Value, nodes: list[ir.Node]) -> None:
        names, tensors = zip(*(stored(node.inputs[1]) for node in nodes), strict=True)
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

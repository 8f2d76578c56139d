"""The queries, keys and values of an attention node, computed in as few nodes as possible.

1. q and k are normalised: one product, one norm with a scale for each head, one rotation, one Split.
2. Neither is normalised, and the kernel rotates: one product for q, k and v, which the kernel takes packed.
3. Anything else (biases, values from a table, keys without RoPE) stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.contract import extent, graph_input, initializer
from doge_export.targets.lowering import constant, shaped, weight
from doge_export.targets.passes.patterns import Heads, Linear, heads, linear
from doge_export.targets.target import Traits

Inputs = tuple[ir.Value | None, ir.Value | None, ir.Value | None, tuple[ir.Value, ir.Value] | None]
"""query, key, value, and the tables of cosines and sines by which the kernel is to rotate."""


class JointHeads:
    """Builds the inputs of attention nodes.

    Args:
        graph: the graph that holds the nodes.
        nodes: all attention nodes, at least one.
        traits: properties of the model; tables of angles have `max_length` rows.
    """

    def __init__(self, graph: ir.Graph, nodes: Sequence[ir.Node], traits: Traits) -> None:
        self.graph = graph
        self.table: tuple[ir.Value, ir.Value] | None = None
        # The kernel rotates queries and keys or neither, and half a head must be a multiple of 8.
        rotations = [heads(x).rotation for node in nodes for x in node.inputs[:2]]
        size = extent(nodes[0].inputs[0], 2) // nodes[0].attributes["num_heads"].as_int()
        first = rotations[0]
        if traits.static_rope and first is not None and None not in rotations and size % 16 == 0:
            self.table = self._tabulated(first, traits.max_length)

    def _tabulated(self, rotation: ir.Node, length: int) -> tuple[ir.Value, ir.Value]:
        """Return tables of cosines and sines [length, D / 2]: position_ids becomes the constant range of positions."""
        graph = self.graph
        positions = graph_input(graph, "position_ids")
        tape = Tape()
        zero, one = constant(graph, np.array(0)), constant(graph, np.array(1))
        places = tape.op("Range", [zero, constant(graph, np.array(length)), one])
        row = tape.op("Unsqueeze", [places, constant(graph, np.array([0]))])
        graph.insert_before(graph[0], tape.nodes)
        positions.replace_all_uses_with(row)
        graph.inputs.remove(positions)

        end = Tape()
        tables = [end.op("Squeeze", [x, constant(graph, np.array([0]))]) for x in rotation.inputs[1:3]]
        graph.insert_before(rotation, end.nodes)
        return tables[0], tables[1]

    def build(self, tape: Tape, node: ir.Node) -> Inputs:
        """Return the inputs of one attention node, recording on `tape` what computes them."""
        query, key, value = node.inputs[:3]
        q, k, v = heads(query), heads(key), linear(value)
        joint = self._normalised(tape, node, q, k)
        if joint is not None:
            return *joint, value, self.table
        if self.table is None:
            return query, key, value, None
        if q.norm is None and k.norm is None:
            packed = self._product(tape, q.linear, k.linear, v)
            if packed is not None:
                return packed, None, None, self.table
            return q.projected, k.projected, value, self.table
        return self._unrotated(q), self._unrotated(k), value, self.table

    @staticmethod
    def _unrotated(x: Heads) -> ir.Value | None:
        """Return queries or keys before their rotation."""
        return x.rotation.inputs[0] if x.rotation is not None else x.projected

    def _normalised(self, tape: Tape, node: ir.Node, q: Heads, k: Heads) -> tuple[ir.Value, ir.Value] | None:
        """Pass q and k through one norm and, unless the kernel rotates, one rotation; None where either has none."""
        if q.norm is None or k.norm is None or q.rotation is None or k.rotation is None:
            return None
        product = self._product(tape, q.linear, k.linear)
        if product is None:
            return None
        widths = [extent(x.projected, 2) for x in (q, k)]
        size = widths[0] // node.attributes["num_heads"].as_int()
        counts = [width // size for width in widths]
        by_head = tape.op("Reshape", [product, constant(self.graph, np.array([0, 0, sum(counts), size]))])
        epsilon = q.norm.attributes["epsilon"].as_float()
        scale = self._scale([initializer(x.norm.inputs[1]) for x in (q, k) if x.norm is not None], counts, size)
        normed = tape.op("RMSNormalization", [by_head, scale], {"axis": -1, "epsilon": epsilon})
        joined = tape.op("Reshape", [normed, constant(self.graph, np.array([0, 0, sum(widths)]))])
        if self.table is None:
            joined = tape.op("RotaryEmbedding", [joined, *q.rotation.inputs[1:3]], {"num_heads": sum(counts)})
        split = tape.op_multi_out(
            "Split", [joined, constant(self.graph, np.array(widths))], {"axis": -1}, num_outputs=2
        )
        for part, width in zip(split, widths, strict=True):
            shaped(part, None, None, width)
        return split[0], split[1]

    def _scale(self, norms: Sequence[tuple[str, ir.TensorProtocol]], counts: Sequence[int], size: int) -> ir.Value:
        """Return the weights of the norms, one row for each head, [heads, D]."""
        tensors = [tensor for _, tensor in norms]

        def rows() -> np.ndarray:
            return np.repeat(np.stack([tensor.numpy() for tensor in tensors]), counts, axis=0)

        return weight(self.graph, "+".join(name for name, _ in norms), tensors[0], (sum(counts), size), rows)

    def _product(self, tape: Tape, *layers: Linear | None) -> ir.Value | None:
        """Record one product for linear layers that share a source; None for any other."""
        known = [layer for layer in layers if layer is not None]
        if len(known) < len(layers) or any(layer.source is not known[0].source for layer in known):
            return None
        names, tensors = zip(*(initializer(layer.weight) for layer in known), strict=True)
        shapes = [tensor.shape.numpy() for tensor in tensors]
        width = sum(rows for rows, _ in shapes)
        joined = weight(
            self.graph, "+".join(f"{name}_t" for name in names), tensors[0], (shapes[0][1], width),
            lambda: np.concatenate([tensor.numpy().T for tensor in tensors], axis=1),
        )  # fmt: skip
        return shaped(tape.op("MatMul", [known[0].source, joined]), None, None, width)

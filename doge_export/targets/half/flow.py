"""The values of a graph that are real numbers, that are stored with it, and that only feed sensitive operators."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from doge_export.targets.half.kinds import EXTENTS, FOLLOWING, KERNELS, NOT_REAL, PRODUCTS, SENSITIVE

FLOAT = ir.DataType.FLOAT
Operator = tuple[str, str]


def operator(node: ir.Node) -> Operator:
    """Return domain and name; the standard domain has one spelling, ""."""
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type)


class Flow:
    """What is known of the values of a float32 graph without subgraphs.

    Attributes:
        reals: the values of type float32.
        sensitive: nodes whose results only feed sensitive operators: a ranking, a comparison or an exponential.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.reals = self._reals()
        self._stored: dict[ir.Value, bool] = {}
        self.sensitive: set[ir.Node] = set()
        for node in reversed(graph):
            if self._may_be_sensitive(node) and all(map(self.feeds_only_sensitive, self.real_outputs(node))):
                self.sensitive.add(node)

    def real_inputs(self, node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
        """Yield place and value of each real input."""
        return ((place, value) for place, value in enumerate(node.inputs) if value is not None and value in self.reals)

    def real_outputs(self, node: ir.Node) -> list[ir.Value]:
        """Return the outputs that are real numbers."""
        return [value for value in node.outputs if value in self.reals]

    def computed_inputs(self, node: ir.Node) -> list[ir.Value]:
        """Return the real inputs that are not stored."""
        return [value for _, value in self.real_inputs(node) if not self.is_stored(value)]

    def is_stored(self, value: ir.Value) -> bool:
        """Return whether a value is an initializer, or one that `FOLLOWING` only moves: a transposed weight."""
        if value not in self._stored:
            node = value.producer()
            known = value.const_value is not None and not value.is_graph_input()
            if node is not None and not known:
                known = operator(node) in FOLLOWING and all(x is None or self.is_stored(x) for x in node.inputs)
            self._stored[value] = known
        return self._stored[value]

    def feeds_only_sensitive(self, value: ir.Value) -> bool:
        """Return whether all readers of a value's elements are sensitive, or only feed sensitive operators."""
        readers = [use for use in value.uses() if use.node.op_type not in EXTENTS]
        return bool(readers) and not value.is_graph_output() and all(self._is_sensitive(*use) for use in readers)

    def feeds_sensitive(self, node: ir.Node) -> bool:
        """Return whether any reader of a node's results is sensitive, or only feeds sensitive operators."""
        return any(self._is_sensitive(*use) for value in self.real_outputs(node) for use in value.uses())

    def _is_sensitive(self, node: ir.Node, place: int) -> bool:
        kernel = KERNELS.get(operator(node))
        if kernel is not None:
            return place in kernel.float32_inputs
        return operator(node) in SENSITIVE or node in self.sensitive

    def _may_be_sensitive(self, node: ir.Node) -> bool:
        if not self.real_outputs(node):
            return False
        if operator(node) in PRODUCTS:  # not queries times keys, which would cast a whole cache
            return any(self.is_stored(value) for _, value in self.real_inputs(node))
        return operator(node) in FOLLOWING or node.op_type == "Cast"

    def _reals(self) -> set[ir.Value]:
        values = [*self.graph.inputs, *self.graph.initializers.values()]
        reals = {value for value in values if _dtype(value) == FLOAT}
        for node in self.graph:
            reals.update(output for place, output in enumerate(node.outputs) if _is_real(node, place, reals))
        return reals


def _dtype(value: ir.Value) -> ir.DataType | None:
    return value.dtype if value.const_value is None else value.const_value.dtype


def _is_real(node: ir.Node, place: int, reals: set[ir.Value]) -> bool:
    if node.op_type in NOT_REAL or (node.op_type == "TopK" and place == 1):
        return False
    if node.outputs[place].dtype == ir.DataType.INT32:  # slots of a bounded cache
        return False
    if node.op_type == "Cast":
        return node.attributes["to"].as_int() == FLOAT
    if node.op_type == "CastLike":
        return node.inputs[1] in reals
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill is None or fill.as_tensor().dtype == FLOAT
    return any(value in reals for value in node.inputs if value is not None)


def fits(tensor: ir.TensorProtocol, limit: float) -> bool:
    """Return whether every finite number of a stored tensor is within a type's limit."""
    values = tensor.numpy()
    if not values.size or (values.min() >= -limit and values.max() <= limit):
        return True
    return not bool(np.any(np.isfinite(values) & (np.abs(values) > limit)))

"""The type that every real value of a graph is to have."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from doge_export.targets.half.flow import Flow, fits, operator
from doge_export.targets.half.kinds import FOLLOWING, JOINING, KERNELS, PRODUCTS
from doge_export.targets.lowering import named


class Types:
    """The type of every real value of a graph: float32 or 16 bits.

    Args:
        graph: float32 graph after `prepare`.
        limit: largest number of the 16-bit type.
    """

    def __init__(self, graph: ir.Graph, limit: float) -> None:
        self.flow = Flow(graph)
        self._limit = limit
        self._fits: dict[ir.Value, bool] = {}
        caches = [*graph.inputs, *graph.outputs]
        self._caches = {*named(caches, ".key"), *named(caches, ".value")}
        self._float32: set[ir.Value] = {value for value in graph.inputs if value not in self._caches}
        self._float32_nodes: set[ir.Node] = set()
        for node in graph:
            if self.flow.real_outputs(node) or any(self.flow.real_inputs(node)):
                self._decide(node)
        for node in reversed(graph):
            self._return_early(node)

    def is_float32(self, value: ir.Value) -> bool:
        """Return whether a value is float32."""
        return value in self._float32

    def is_float32_output(self, value: ir.Value) -> bool:
        """Return whether a graph output is to be float32: any real one but a cache."""
        return value in self.flow.reals and value not in self._caches

    def reads_float32(self, node: ir.Node, place: int) -> bool:
        """Return whether a node takes the input at a place in float32."""
        kernel = KERNELS.get(operator(node))
        return node in self._float32_nodes or (kernel is not None and place in kernel.float32_inputs)

    def _decide(self, node: ir.Node) -> None:
        kernel = KERNELS.get(operator(node))
        if self._is_float32_node(node):
            self._float32_nodes.add(node)
            self._float32.update(self.flow.real_outputs(node))
        elif kernel is not None:
            self._float32.update(node.outputs[place] for place in kernel.float32_outputs if place < len(node.outputs))

    def _is_float32_node(self, node: ir.Node) -> bool:
        kernel = KERNELS.get(operator(node))
        if kernel is not None:
            return kernel.float32_for_sensitive and self.flow.feeds_sensitive(node)
        if node.op_type == "CastLike":  # to the type of activations, or to that of integers
            return not self.flow.real_outputs(node)
        if operator(node) not in FOLLOWING | PRODUCTS:
            return True
        if not all(self._has_room(value) for _, value in self.flow.real_inputs(node)):
            return True
        computed = self.flow.computed_inputs(node)
        if operator(node) in PRODUCTS or not computed:
            return node in self.flow.sensitive
        in_float32 = [self.is_float32(value) for value in computed]
        # New keys that are joined to cached ones of 16 bits are 16 bits too.
        return all(in_float32) if node.op_type in JOINING else any(in_float32)

    def _has_room(self, value: ir.Value) -> bool:
        """Return whether 16 bits hold a value, if it is stored."""
        if value.const_value is None or value.is_graph_input():
            return True
        if value not in self._fits:
            self._fits[value] = fits(value.const_value, self._limit)
        return self._fits[value]

    def _return_early(self, node: ir.Node) -> None:
        """Give a node 16 bits where its result is only read in 16 bits."""
        if node not in self._float32_nodes or operator(node) not in FOLLOWING or node.op_type in JOINING:
            return
        if len({*self.flow.computed_inputs(node)}) > 1 or node in self.flow.sensitive:
            return
        if not all(self._has_room(value) for _, value in self.flow.real_inputs(node)):
            return
        outputs = self.flow.real_outputs(node)
        if any(self.is_float32_output(value) for value in outputs if value.is_graph_output()):
            return
        uses = [use for value in outputs for use in value.uses()]
        if uses and not any(self.reads_float32(*use) for use in uses):
            self._float32_nodes.discard(node)
            self._float32.difference_update(outputs)


def largest(dtype: ir.DataType) -> float:
    """Return the largest finite number of a 16-bit type."""
    return 65504.0 if dtype == ir.DataType.FLOAT16 else float(np.float32(3.3895313892515355e38))


def half_values(model: ir.Model, dtype: ir.DataType = ir.DataType.FLOAT16) -> list[ir.Value]:
    """Return the computed values that `HalfPrecision` would store in 16 bits or cast to them, in the graph's order.

    Args:
        model: float32 graph after `prepare`.
        dtype: the 16-bit type.
    """
    types = Types(model.graph, largest(dtype))

    def is_half(value: ir.Value) -> bool:
        return not types.is_float32(value) or any(not types.reads_float32(*use) for use in value.uses())

    values = (value for node in model.graph for value in types.flow.real_outputs(node))
    return [value for value in values if not types.flow.is_stored(value) and is_half(value)]

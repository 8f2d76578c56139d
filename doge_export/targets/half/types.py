"""Which type every real value of a graph is to have."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from doge_export.targets.half.flow import Flow, fits, operator
from doge_export.targets.half.kinds import FOLLOWING, JOINING, KERNELS, PRODUCTS
from doge_export.targets.lowering import named


class Types:
    """The type of every real value: wide is float32, else 16 bits, of which `limit` is the largest number."""

    def __init__(self, graph: ir.Graph, limit: float) -> None:
        self.flow = Flow(graph)
        self._limit = limit
        self._fits: dict[ir.Value, bool] = {}
        caches = [*graph.inputs, *graph.outputs]
        self._caches = {*named(caches, ".key"), *named(caches, ".value")}
        self._wide: set[ir.Value] = {value for value in graph.inputs if value not in self._caches}
        self._wide_nodes: set[ir.Node] = set()
        for node in graph:
            if self.flow.real_outputs(node) or any(self.flow.real_inputs(node)):
                self._decide(node)
        for node in reversed(graph):
            self._return_early(node)

    def is_wide(self, value: ir.Value) -> bool:
        """Whether a value is float32."""
        return value in self._wide

    def is_wide_output(self, value: ir.Value) -> bool:
        """Whether the world is to get it in float32."""
        return value in self.flow.reals and value not in self._caches

    def reads_wide(self, node: ir.Node, place: int) -> bool:
        """Whether a node takes an input in float32."""
        kernel = KERNELS.get(operator(node))
        return node in self._wide_nodes or (kernel is not None and place in kernel.wide_inputs)

    def _decide(self, node: ir.Node) -> None:
        kernel = KERNELS.get(operator(node))
        if self._is_wide_node(node):
            self._wide_nodes.add(node)
            self._wide.update(self.flow.real_outputs(node))
        elif kernel is not None:
            self._wide.update(node.outputs[place] for place in kernel.wide_outputs if place < len(node.outputs))

    def _is_wide_node(self, node: ir.Node) -> bool:
        kernel = KERNELS.get(operator(node))
        if kernel is not None:
            return kernel.serves_decisions and self.flow.serves_decision(node)
        if node.op_type == "CastLike":  # back to the type of activations, or to that of integers
            return not self.flow.real_outputs(node)
        if operator(node) not in FOLLOWING | PRODUCTS:
            return True
        if not all(self._has_room(value) for _, value in self.flow.real_inputs(node)):
            return True
        computed = self.flow.computed_inputs(node)
        if operator(node) in PRODUCTS or not computed:
            return node in self.flow.deciding
        wide = [self.is_wide(value) for value in computed]
        # What is joined to something stored in 16 bits is stored in 16 bits: new keys behind cached ones.
        return all(wide) if node.op_type in JOINING else any(wide)

    def _has_room(self, value: ir.Value) -> bool:
        """Whether 16 bits hold a stored value."""
        if value.const_value is None or value.is_graph_input():
            return True
        if value not in self._fits:
            self._fits[value] = fits(value.const_value, self._limit)
        return self._fits[value]

    def _return_early(self, node: ir.Node) -> None:
        """A step whose result is only read in 16 bits is done in 16 bits."""
        if node not in self._wide_nodes or operator(node) not in FOLLOWING or node.op_type in JOINING:
            return
        if len({*self.flow.computed_inputs(node)}) > 1 or node in self.flow.deciding:
            return
        if not all(self._has_room(value) for _, value in self.flow.real_inputs(node)):
            return
        outputs = self.flow.real_outputs(node)
        if any(self.is_wide_output(value) for value in outputs if value.is_graph_output()):
            return
        uses = [use for value in outputs for use in value.uses()]
        if uses and not any(self.reads_wide(*use) for use in uses):
            self._wide_nodes.discard(node)
            self._wide.difference_update(outputs)


def largest(dtype: ir.DataType) -> float:
    """The largest finite number of a 16-bit type."""
    return 65504.0 if dtype == ir.DataType.FLOAT16 else float(np.float32(3.3895313892515355e38))


def half_values(model: ir.Model, dtype: ir.DataType = ir.DataType.FLOAT16) -> list[ir.Value]:
    """The computed values of a prepared float32 model that `HalfPrecision` would store or cast to 16 bits, in order."""
    types = Types(model.graph, largest(dtype))

    def is_half(value: ir.Value) -> bool:
        return not types.is_wide(value) or any(not types.reads_wide(*use) for use in value.uses())

    values = (value for node in model.graph for value in types.flow.real_outputs(node))
    return [value for value in values if not types.flow.is_stored(value) and is_half(value)]

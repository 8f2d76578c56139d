"""Write nodes to an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.graph.extents import Type
from doge_export.graph.reshapes import constant_target, target_value

INT64 = ir.DataType.INT64


class Writer:
    """Append nodes to `graph`; sizes of dynamic axes are read from its inputs."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._tape = Tape(graph)
        self._extents: dict[str, ir.Value] = {}

    def op(self, op_type: str, *inputs: ir.Value, domain: str = "", **attributes: Any) -> ir.Value:
        """Append a node and return its result."""
        return self._tape.op(op_type, inputs, attributes, domain=domain)

    def ops(self, outputs: int, op_type: str, *inputs: ir.Value, domain: str = "", **attributes: Any) -> Any:
        """Append a node of several results and return them."""
        return tuple(self._tape.op_multi_out(op_type, inputs, attributes, num_outputs=outputs, domain=domain))

    def constant(self, values: Any, dtype: ir.DataType = INT64) -> ir.Value:
        """Return a number, or a list of numbers, as a value."""
        return self.op("Constant", value=ir.tensor(np.array(values, dtype=dtype.numpy())))

    def typed(self, x: Any, dtype: ir.DataType) -> ir.Value:
        """Return a number or a tensor as a value of the type, cast where it has another."""
        if not isinstance(x, ir.Value):
            return self.constant(x, dtype)
        return x if x.dtype == dtype else self.op("Cast", x, to=dtype)

    def extent(self, name: str) -> ir.Value:
        """Return the size of an input's axis, a scalar."""
        if name not in self._extents:
            source, axis = next(
                (value, axis)
                for value in self.graph.inputs
                for axis, size in enumerate(value.shape or ())
                if not isinstance(size, int) and size.value == name
            )
            size = self.op("Squeeze", self.op("Shape", source, start=axis, end=axis + 1))
            size.dtype, size.shape = INT64, ir.Shape([])
            self._extents[name] = size
        return self._extents[name]

    def sizes(self, sizes: Sequence[int | ir.Value]) -> ir.Value:
        """Return a list of sizes, some of them dynamic, as a value."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(sizes)
        one = self.constant([-1])
        parts = [self.constant([x]) if isinstance(x, int) else self.op("Reshape", x, one) for x in sizes]
        return self.op("Concat", *parts, axis=0)

    def reshape(self, x: ir.Value, result: Type) -> ir.Value:
        """Reshape a tensor to the axes of `result`."""
        axes = [size if isinstance(size, int) else size.value for size in x.shape or ()]
        target = constant_target(axes, result.axes)
        if target is not None:
            return self.op("Reshape", x, target_value(self.graph, target))
        sizes = self.sizes([axis if isinstance(axis, int) else self.extent(axis) for axis in result.axes])
        return self.op("Reshape", x, sizes, allowzero=1)

"""Writes nodes to an ONNX graph."""

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
    """Appends nodes to `graph`, whose inputs tell the extents."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._tape = Tape(graph)
        self._extents: dict[str, ir.Value] = {}

    def op(self, op_type: str, *inputs: ir.Value, domain: str = "", **attributes: Any) -> ir.Value:
        """The result of a new node."""
        return self._tape.op(op_type, inputs, attributes, domain=domain)

    def ops(self, outputs: int, op_type: str, *inputs: ir.Value, domain: str = "", **attributes: Any) -> Any:
        """The results of a new node that has several."""
        return tuple(self._tape.op_multi_out(op_type, inputs, attributes, num_outputs=outputs, domain=domain))

    def constant(self, values: Any, dtype: ir.DataType = INT64) -> ir.Value:
        """A number, or a list of numbers."""
        return self.op("Constant", value=ir.tensor(np.array(values, dtype=dtype.numpy())))

    def typed(self, x: Any, dtype: ir.DataType) -> ir.Value:
        """A number or a tensor, as a value of the type; as it is where it has it."""
        if not isinstance(x, ir.Value):
            return self.constant(x, dtype)
        return x if x.dtype == dtype else self.op("Cast", x, to=dtype)

    def extent(self, name: str) -> ir.Value:
        """How long an input's axis is, as a number."""
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
        """A list of sizes, some of which may be extents."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(sizes)
        one = self.constant([-1])
        parts = [self.constant([x]) if isinstance(x, int) else self.op("Reshape", x, one) for x in sizes]
        return self.op("Concat", *parts, axis=0)

    def reshape(self, x: ir.Value, result: Type) -> ir.Value:
        """The elements of a tensor in the axes of `result`."""
        axes = [size if isinstance(size, int) else size.value for size in x.shape or ()]
        target = constant_target(axes, result.axes)
        if target is not None:
            return self.op("Reshape", x, target_value(self.graph, target))
        sizes = self.sizes([axis if isinstance(axis, int) else self.extent(axis) for axis in result.axes])
        return self.op("Reshape", x, sizes, allowzero=1)

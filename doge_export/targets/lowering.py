"""What the passes of a target share: replacing nodes, small constants, weights computed when they are written."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape


class Lowering(ir.passes.InPlacePass):
    """Replaces every node of some operators by the nodes that `build` writes."""

    domain = ""
    op_types: tuple[str, ...]

    def nodes(self, graph: ir.Graph) -> list[ir.Node]:
        """The nodes to be replaced, in the graph's order."""
        return [node for node in graph if node.domain == self.domain and node.op_type in self.op_types]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Visit the main graph; nodes that `build` wrote are not visited again."""
        self.graph = model.graph
        nodes = self.nodes(model.graph)
        for node in nodes:
            tape = Tape()
            replace(node, tape, self.build(tape, node))
        return ir.passes.PassResult(model, modified=bool(nodes))

    @abc.abstractmethod
    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value | None]:
        """Record the replacement of `node` on `tape`; give a value for each of its outputs, None for an unused one."""

    def ints(self, *values: int) -> ir.Value:
        """A 1-D int64 constant."""
        return constant(self.graph, np.array(values, dtype=np.int64))


def replace(node: ir.Node, tape: Tape, values: Sequence[ir.Value | None]) -> None:
    """Put the nodes of `tape` in the place of `node`; its outputs keep their names and their places in the graph."""
    graph = node.graph
    assert graph is not None
    pairs = [(old, new) for old, new in zip(node.outputs, values, strict=True) if new is not None]
    for old, new in pairs:
        new.name = old.name
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], tape.nodes, [old for old, _ in pairs], [new for _, new in pairs]
    )


def constant(graph: ir.Graph, array: np.ndarray) -> ir.Value:
    """A small initializer, one for all equal arrays."""
    text = "_".join(str(x).replace("-", "m") for x in array.ravel().tolist()) or "empty"
    name = f"{array.dtype}_{'x'.join(map(str, array.shape)) or 'scalar'}_{text}"
    if name not in graph.initializers:
        graph.register_initializer(ir.val(name, const_value=ir.tensor(array, name=name)))
    return graph.initializers[name]


def stored(value: ir.Value | None) -> tuple[str, ir.TensorProtocol]:
    """Name and tensor of an initializer."""
    assert value is not None and value.name is not None and value.const_value is not None
    return value.name, value.const_value


def shaped(value: ir.Value, *sizes: int | str | None) -> ir.Value:
    """The value with a shape, float32; passes that come later ask for its static axes."""
    value.shape, value.dtype = ir.Shape(sizes), ir.DataType.FLOAT
    return value


def extent(value: ir.Value | None, axis: int) -> int:
    """The size of a static axis."""
    assert value is not None and value.shape is not None
    size = value.shape[axis]
    assert isinstance(size, int), f"axis {axis} of {value.name} is not static"
    return size


def named(values: Iterable[ir.Value], ending: str) -> list[ir.Value]:
    """Those inputs or outputs whose name ends so."""
    return [value for value in values if value.name is not None and value.name.endswith(ending)]


def weight(
    graph: ir.Graph, name: str, like: ir.TensorProtocol, shape: Sequence[int], values: Callable[[], np.ndarray]
) -> ir.Value:
    """An initializer whose `values` are computed when it is written, so that no second copy of a weight is held."""

    def tensor() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(values()), name=name)

    lazy = ir.LazyTensor(tensor, dtype=like.dtype, shape=ir.Shape(shape), name=name, cache=False)
    value = ir.val(name, const_value=lazy)
    graph.register_initializer(value)
    return value

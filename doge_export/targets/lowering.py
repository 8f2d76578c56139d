"""Helpers that passes share: replacing nodes, small constants, weights computed when they are written."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.graph.schemas import DOMAIN
from doge_export.targets.contract import ContractError, GraphPass, check_signature


class Lowering(GraphPass):
    """A pass that replaces every node of some operators by the nodes that `build` records.

    A graph without such nodes stays as it is. Nodes of domain `doge` must follow the schema of their operator.
    """

    domain = ""
    op_types: tuple[str, ...]

    def nodes(self, graph: ir.Graph) -> list[ir.Node]:
        """Return the nodes to be replaced, in the graph's order."""
        return [node for node in graph if node.domain == self.domain and node.op_type in self.op_types]

    def requires(self, model: ir.Model) -> None:
        """Check every node that is to be replaced."""
        super().requires(model)
        for node in self.nodes(model.graph):
            self.check(node)

    def check(self, node: ir.Node) -> None:
        """Check one node that is to be replaced.

        Raises:
            ContractError: `build` could not replace it.
        """
        if node.domain == DOMAIN:
            check_signature(node)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the nodes of the main graph; nodes that `build` recorded are not visited again."""
        self.graph = model.graph
        nodes = self.nodes(model.graph)
        for node in nodes:
            tape = Tape()
            replace(node, tape, self.build(tape, node))
        return ir.passes.PassResult(model, modified=bool(nodes))

    @abc.abstractmethod
    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value | None]:
        """Record the replacement of `node` on `tape`.

        Returns:
            A value for each output of `node`; None for an unused one.
        """

    def ints(self, *values: int) -> ir.Value:
        """Return a 1-D int64 constant."""
        return constant(self.graph, np.array(values, dtype=np.int64))


def replace(node: ir.Node, tape: Tape, values: Sequence[ir.Value | None]) -> None:
    """Put the nodes of `tape` in the place of `node`; its outputs keep their names and their places in the graph.

    Args:
        node: a node of a graph.
        tape: its replacement.
        values: a value for each output of `node`; None for an unused one.

    Raises:
        ContractError: the node belongs to no graph.
    """
    graph = node.graph
    if graph is None:
        raise ContractError(node, "expected a node of a graph")
    pairs = [(old, new) for old, new in zip(node.outputs, values, strict=True) if new is not None]
    for old, new in pairs:
        new.name = old.name
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], tape.nodes, [old for old, _ in pairs], [new for _, new in pairs]
    )


def constant(graph: ir.Graph, array: np.ndarray) -> ir.Value:
    """Return a small initializer, the same one for all equal arrays of one type."""
    text = "_".join(str(x).replace("-", "m") for x in array.ravel().tolist()) or "empty"
    name = f"{array.dtype}_{'x'.join(map(str, array.shape)) or 'scalar'}_{text}"
    found = graph.initializers.get(name)
    if found is not None and found.const_value is not None and found.const_value.dtype.numpy() != array.dtype:
        name += ".exact"  # that one was rounded to 16 bits since
    if name not in graph.initializers:
        graph.register_initializer(ir.val(name, const_value=ir.tensor(array, name=name)))
    return graph.initializers[name]


def shaped(value: ir.Value, *sizes: int | str | None) -> ir.Value:
    """Give a float32 value its shape, and return it; later passes ask for its static axes."""
    value.shape, value.dtype = ir.Shape(sizes), ir.DataType.FLOAT
    return value


def named(values: Iterable[ir.Value], ending: str) -> list[ir.Value]:
    """Return the values whose names end in `ending`; a graph without a cache has none named ".key"."""
    return [value for value in values if value.name is not None and value.name.endswith(ending)]


def weight(
    graph: ir.Graph, name: str, like: ir.TensorProtocol, shape: Sequence[int], values: Callable[[], np.ndarray]
) -> ir.Value:
    """Register an initializer whose data are computed when it is written, so that no second copy of a weight is held.

    Args:
        graph: gets the initializer.
        name: of the initializer.
        like: a tensor of the same dtype.
        shape: of the result of `values`.
        values: computes the data.

    Returns:
        The initializer.
    """

    def tensor() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(values()), name=name)

    lazy = ir.LazyTensor(tensor, dtype=like.dtype, shape=ir.Shape(shape), name=name, cache=False)
    value = ir.val(name, const_value=lazy)
    graph.register_initializer(value)
    return value

"""Cosines and sines of rotary embedding as float32 tables: a GPU's own functions lose accuracy at large angles."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.contract import ContractError, GraphPass
from doge_export.targets.passes.patterns import computed_by

POSITIONS = "positions"
"""Name of the value, int32 [B, S], that `FixedCapacity` computes where RoPE is not scaled."""


def scales_rope(graph: ir.Graph) -> bool:
    """Return whether the RoPE frequencies of a graph depend on the length of the sequence."""
    return any(_frequencies(node) is None for node in _angles(graph))


class RopeTables(GraphPass):
    """cos(position * frequency) -> Gather(table [capacity, D / 2], position), after types are given.

    The tables are computed in float64 from the float32 angles that the model was trained with. Needs a computed value
    `positions` and stored frequencies: a graph for which `scales_rope` is true cannot have tables.

    Args:
        capacity: rows of a table.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity

    def requires(self, model: ir.Model) -> None:
        """Require the value `positions` and stored frequencies."""
        super().requires(model)
        _positions(model.graph)
        for node in _angles(model.graph):
            _stored_frequencies(node)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace every Cos and Sin."""
        graph = model.graph
        positions = _positions(graph)
        for node in _angles(graph):
            tape = Tape()
            table = self._table(graph, node.op_type, _stored_frequencies(node))
            result = tape.op("Gather", [table, positions], {"axis": 0})
            old = node.outputs[0]
            result.name, result.type, result.shape = old.name, old.type, old.shape
            ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, [old], [result])
        return ir.passes.PassResult(model, modified=True)

    def _table(self, graph: ir.Graph, function: str, frequencies: np.ndarray) -> ir.Value:
        places = np.arange(self._capacity, dtype=np.float32)
        angles = (places[:, None] * frequencies.astype(np.float32)).astype(np.float64)
        name = f"rope.{function.lower()}"
        tensor = ir.tensor({"Cos": np.cos, "Sin": np.sin}[function](angles).astype(np.float32), name=name)
        value = ir.val(name, const_value=tensor)
        graph.register_initializer(value)
        return value


def _angles(graph: ir.Graph) -> list[ir.Node]:
    """Return the nodes whose inputs are RoPE angles."""
    return [node for node in graph if node.op_type in ("Cos", "Sin")]


def _positions(graph: ir.Graph) -> ir.Value:
    for node in graph:
        for value in node.outputs:
            if value.name == POSITIONS:
                return value
    raise ContractError(f"value {POSITIONS}", "missing; FixedCapacity computes it where RoPE is not scaled")


def _frequencies(node: ir.Node) -> np.ndarray | None:
    """Return the stored frequencies [D / 2] that positions are multiplied by; None where they are computed."""
    product = computed_by(node.inputs[0], "Mul")
    for value in product.inputs if product is not None else ():
        if value is not None and value.const_value is not None:
            return value.const_value.numpy()
    return None


def _stored_frequencies(node: ir.Node) -> np.ndarray:
    frequencies = _frequencies(node)
    if frequencies is None:
        raise ContractError(node, "expected angles of stored frequencies, found frequencies that depend on the length")
    return frequencies

"""Cosines and sines of rotary embedding as float32 tables: a GPU's own are fast rather than right at large angles."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.passes.patterns import made_by


def scales_rope(graph: ir.Graph) -> bool:
    """Whether frequencies depend on how long the sequence is."""
    return any(_frequencies(node) is None for node in _angles(graph))


class RopeTables(ir.passes.InPlacePass):
    """cos(position * frequency) -> Gather(table [capacity, D / 2], position), after types were given.

    Computed in float64 from the angles as float32 has them, since those are what the model was trained with.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Where frequencies are stored; the graph has a value `positions`, int32 [B, S]."""
        graph = model.graph
        positions = next((value for node in graph for value in node.outputs if value.name == "positions"), None)
        if positions is None:
            return ir.passes.PassResult(model, modified=False)
        for node in _angles(graph):
            frequencies = _frequencies(node)
            assert frequencies is not None
            tape = Tape()
            result = tape.op("Gather", [self._table(graph, node.op_type, frequencies), positions], {"axis": 0})
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
    return [node for node in graph if node.op_type in ("Cos", "Sin")]


def _frequencies(node: ir.Node) -> np.ndarray | None:
    """The stored factor [D / 2] of the positions, if that is what the angles are made of."""
    product = made_by(node.inputs[0], "Mul")
    stored = (
        [value for value in product.inputs if value is not None and value.const_value is not None] if product else []
    )
    return stored[0].const_value.numpy() if stored and stored[0].const_value is not None else None

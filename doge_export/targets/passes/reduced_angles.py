"""Cosines and sines of RoPE at positions of any size: a GPU's own functions lose accuracy at large angles.

A table by position would have a row for each. An angle is a number, so two tables of one column serve all positions and
frequencies: angle = STEP * i + j + rest, with whole numbers i and j and a rest below 1, all exact in float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.contract import ContractError, GraphPass, node_input
from doge_export.targets.lowering import constant

STEP = 4096
"""Rows of both tables; angles reach STEP * STEP, the last position whose float32 is exact."""


class ReducedAngles(GraphPass):
    """Cos(angle), Sin(angle) -> sums of products of two tables and of the functions of the angle's rest, below 1.

    After types are given. Needs float32 angles that are not negative and below STEP * STEP; the tables are computed in
    float64, so that errors stay near those of a few float32 roundings.
    """

    def requires(self, model: ir.Model) -> None:
        """Require float32 angles."""
        super().requires(model)
        for node in _angles(model.graph):
            angle = node_input(node, 0)
            if angle.dtype != ir.DataType.FLOAT:
                raise ContractError(node, f"expected float32 angles, found {angle.dtype}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace every Cos and Sin; those of the same angle share what they can."""
        graph = self._graph = model.graph
        found: dict[ir.Value, dict[str, ir.Value]] = {}
        nodes = _angles(graph)
        for node in nodes:
            angle = node_input(node, 0)
            if angle not in found:
                tape = Tape()
                found[angle] = self._functions(tape, angle)
                graph.insert_before(node, tape.nodes)
        for node in nodes:
            old, new = node.outputs[0], found[node_input(node, 0)][node.op_type]
            if new.name != old.name:
                new.name, new.type, new.shape = old.name, old.type, old.shape
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            graph.remove(node, safe=True)
        return ir.passes.PassResult(model, modified=bool(nodes))

    def _functions(self, tape: Tape, angle: ir.Value) -> dict[str, ir.Value]:
        """Return cosine and sine of an angle."""
        step = constant(self._graph, np.array(STEP, np.float32))
        steps = tape.op("Floor", [tape.op("Div", [angle, step])])
        within = tape.op("Sub", [angle, tape.op("Mul", [steps, step])])
        whole = tape.op("Floor", [within])
        rest = tape.op("Sub", [within, whole])
        parts = [
            {name: self._looked_up(tape, name, scale, index) for name in ("Cos", "Sin")}
            for scale, index in ((STEP, steps), (1, whole))
        ]
        parts.append({name: tape.op(name, [rest]) for name in ("Cos", "Sin")})
        total, *others = parts
        for part in others:
            total = self._sum(tape, total, part)
        for made in (value for node in tape.nodes for value in node.outputs):
            made.dtype = made.dtype or ir.DataType.FLOAT
        return total

    def _looked_up(self, tape: Tape, function: str, scale: int, index: ir.Value) -> ir.Value:
        """Return cosine or sine of scale * index from a table."""
        name = f"rope.{function.lower()}_of_{scale}"
        if name not in self._graph.initializers:
            angles = scale * np.arange(STEP, dtype=np.float64)
            tensor = ir.tensor({"Cos": np.cos, "Sin": np.sin}[function](angles).astype(np.float32), name=name)
            self._graph.register_initializer(ir.val(name, const_value=tensor))
        place = tape.op("Cast", [index], {"to": ir.DataType.INT32})
        place.dtype = ir.DataType.INT32
        return tape.op("Gather", [self._graph.initializers[name], place], {"axis": 0})

    def _sum(self, tape: Tape, one: dict[str, ir.Value], other: dict[str, ir.Value]) -> dict[str, ir.Value]:
        """Return cosine and sine of the sum of two angles."""

        def product(left: str, right: str) -> ir.Value:
            return tape.op("Mul", [one[left], other[right]])

        return {
            "Cos": tape.op("Sub", [product("Cos", "Cos"), product("Sin", "Sin")]),
            "Sin": tape.op("Add", [product("Sin", "Cos"), product("Cos", "Sin")]),
        }


def _angles(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type in ("Cos", "Sin")]

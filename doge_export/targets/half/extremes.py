"""Which values of a graph 16 bits must hold, and how large each gets: float16 ends at 65504, and infinity spreads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.half.types import half_values, largest
from doge_export.targets.lowering import constant

_UNCHANGED = {"Expand", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
_BOUNDED = {"Cos", "Max", "Sigmoid", "Sin", "Softmax"}
"""What moves values that were looked at before, and what cannot be large; the one Max is a bias of at most 0."""


@dataclasses.dataclass(frozen=True)
class Extreme:
    """The largest magnitude of a value: `operator` made it, `value` is its name in the graph.

    Infinite where any of it is not a number.
    """

    operator: str
    value: str
    magnitude: float

    @property
    def overflows(self) -> bool:
        """Whether float16 cannot hold it."""
        return not self.magnitude <= largest(ir.DataType.FLOAT16)

    @property
    def is_finite(self) -> bool:
        """Whether float32 holds it."""
        return math.isfinite(self.magnitude)

    def __str__(self) -> str:
        if not self.is_finite:
            return f"{self.operator} {self.value} is infinite or not a number, in float32 already"
        return f"{self.operator} {self.value} reaches {self.magnitude:.4g}, and float16 ends at 65504"


def worst(extremes: Sequence[Extreme]) -> list[Extreme]:
    """The largest of each operator, the first among equals; in the order given."""

    def size(extreme: Extreme) -> float:
        return math.inf if math.isnan(extreme.magnitude) else extreme.magnitude

    found: dict[str, Extreme] = {}
    for extreme in extremes:
        found[extreme.operator] = max(found.get(extreme.operator, extreme), extreme, key=size)
    return [extreme for extreme in extremes if extreme is found[extreme.operator]]


def by_operator(extremes: Sequence[Extreme]) -> dict[str, dict[str, Any]]:
    """The largest of each operator, for the manifest: "value", and "magnitude", null where that is not finite."""
    return {
        extreme.operator: {
            "magnitude": extreme.magnitude if extreme.is_finite else None,  # JSON has no infinity
            "value": extreme.value,
        }
        for extreme in sorted(worst(extremes), key=lambda extreme: extreme.operator)
    }


def watch(model: ir.Model) -> Mapping[str, tuple[str, str]]:
    """Outputs max |x|, float32 [], for every value worth a look: operator and name by the output's name.

    It is infinite where any x is not a number: onnxruntime's ReduceMax passes over a NaN among numbers.
    """
    graph, watched = model.graph, {}
    for number, value in enumerate(half_values(model)):
        node = value.producer()
        # A row of a table is no larger than the table, which was looked at when it was stored.
        if node is None or value.name is None or node.op_type in _UNCHANGED | _BOUNDED:
            continue
        tape = Tape()
        infinite = constant(graph, np.array(np.inf, np.float32))
        size = tape.op("Where", [tape.op("IsNaN", [value]), infinite, tape.op("Abs", [value])])
        flat = tape.op("Reshape", [size, constant(graph, np.array([-1]))])
        top = tape.op("ReduceMax", [flat], {"keepdims": 0})
        top.name, top.dtype, top.shape = f"extreme_{number}", ir.DataType.FLOAT, ir.Shape([])
        graph.extend(tape.nodes)
        graph.outputs.append(top)
        watched[top.name] = (node.op_type, value.name)
    return watched

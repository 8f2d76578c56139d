"""The values of a graph that 16 bits must hold, and how large they get: float16 ends at 65504, and infinity spreads."""

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
"""Operators that move values measured before, and operators whose results are small; the one Max is a bias <= 0."""


@dataclasses.dataclass(frozen=True)
class Extreme:
    """The largest magnitude of a value.

    Attributes:
        operator: the operator that computes the value.
        value: its name in the graph.
        magnitude: max |x|; infinite where any element is not a number.
    """

    operator: str
    value: str
    magnitude: float

    @property
    def overflows(self) -> bool:
        """Return whether it is beyond float16."""
        return not self.magnitude <= largest(ir.DataType.FLOAT16)

    @property
    def is_finite(self) -> bool:
        """Return whether float32 holds it."""
        return math.isfinite(self.magnitude)

    def __str__(self) -> str:
        if not self.is_finite:
            return f"{self.operator} {self.value} is infinite or not a number, in float32 already"
        return f"{self.operator} {self.value} reaches {self.magnitude:.4g}, and float16 ends at 65504"


def worst(extremes: Sequence[Extreme]) -> list[Extreme]:
    """Return the largest of each operator, the first among equals, in the order given."""

    def size(extreme: Extreme) -> float:
        return math.inf if math.isnan(extreme.magnitude) else extreme.magnitude

    found: dict[str, Extreme] = {}
    for extreme in extremes:
        found[extreme.operator] = max(found.get(extreme.operator, extreme), extreme, key=size)
    return [extreme for extreme in extremes if extreme is found[extreme.operator]]


def by_operator(extremes: Sequence[Extreme]) -> dict[str, dict[str, Any]]:
    """Return the largest of each operator for the manifest: "value", and "magnitude", None where that is not finite."""
    return {
        extreme.operator: {
            "magnitude": extreme.magnitude if extreme.is_finite else None,  # JSON has no infinity
            "value": extreme.value,
        }
        for extreme in sorted(worst(extremes), key=lambda extreme: extreme.operator)
    }


def watch(model: ir.Model) -> Mapping[str, tuple[str, str]]:
    """Add an output max |x|, float32 [], for every value that `half_values` lists and that may be large.

    It is infinite where any x is not a number: onnxruntime's ReduceMax ignores a NaN among numbers.

    Args:
        model: float32 graph after `prepare`; changed in place.

    Returns:
        For the name of each new output the operator that computes the value, and the value's name.
    """
    graph, watched = model.graph, {}
    for number, value in enumerate(half_values(model)):
        node = value.producer()
        # A row of a table is no larger than the table, which `fits` checks when it is stored.
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

"""Find the target shape of a Reshape, as a constant where its axes allow it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import onnx_ir as ir


def constant_target(source: Sequence[Hashable], result: Sequence[Hashable]) -> list[int] | None:
    """Return the constant target of a Reshape between these axes: sizes, or values that tell dynamic axes apart.

    1. A dynamic axis that both share at the same place becomes 0 ("copy").
    2. One further dynamic axis becomes -1 ("infer"); with more there is no such constant.
    """
    target = []
    for axis, size in enumerate(result):
        if isinstance(size, int):
            target.append(size)
        else:
            target.append(0 if axis < len(source) and source[axis] == size else -1)
    return target if target.count(-1) <= 1 else None


def target_value(graph: ir.Graph, target: Sequence[int]) -> ir.Value:
    """Return the initializer of a constant target, shared by all Reshapes to it."""
    name = "shape_" + "_".join(str(size).replace("-", "m") for size in target)
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(target, dtype=np.int64), name=name)
        graph.register_initializer(ir.val(name, const_value=tensor))
    return graph.initializers[name]

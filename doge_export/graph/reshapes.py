"""The shape that a Reshape is given, as a constant where its axes allow it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import onnx_ir as ir


def constant_target(source: Sequence[Hashable], result: Sequence[Hashable]) -> list[int] | None:
    """What to give a Reshape between these axes, each its size or, where it is dynamic, whatever tells it from others.

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
    """The constant as an initializer, one for all Reshapes to it."""
    name = "shape_" + "_".join(str(size).replace("-", "m") for size in target)
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(target, dtype=np.int64), name=name)
        graph.register_initializer(ir.val(name, const_value=tensor))
    return graph.initializers[name]

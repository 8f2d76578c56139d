"""The weights of a graph that may be stored in fewer bits: of linear layers, of tables to look rows up in, or of both.

A tied head and embedding are one weight, and stay one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from doge_export.targets.contract import initializer

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizableWeight:
    """A weight, and every node that reads it.

    Attributes:
        value: the initializer.
        products: linear layers, MatMul or FusedMatMul.
        lookups: Gather along the first axis.
        by_row: stored [out, in], as tables and tied heads are; else [in, out].
    """

    value: ir.Value
    products: tuple[ir.Node, ...]
    lookups: tuple[ir.Node, ...]
    by_row: bool

    @property
    def name(self) -> str:
        """Name of the initializer; the names of weights that were fused to one are joined by "+"."""
        return initializer(self.value)[0]

    @property
    def dtype(self) -> ir.DataType:
        """FLOAT or FLOAT16."""
        return initializer(self.value)[1].dtype

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K]: N outputs or entries, K inputs or the width of an entry."""
        first, second = initializer(self.value)[1].shape.numpy()
        return (first, second) if self.by_row else (second, first)

    def matrix(self) -> np.ndarray:
        """Return the weight, float32 [N, K]."""
        stored = initializer(self.value)[1].numpy().astype(np.float32, copy=False)
        return stored if self.by_row else np.ascontiguousarray(stored.T)

    def parts(self) -> list[tuple[str, slice]]:
        """Return names and outputs of the linear layers that a fused product is split into; else the whole weight."""
        rows = self.shape[0]
        sizes = _split_sizes(self.products)
        if sizes is None or sum(sizes) != rows:
            return [(self.name, slice(0, rows))]
        ends = np.cumsum(sizes).tolist()
        slices = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        names = self.name.split("+")
        if len(names) != len(sizes):
            names = [f"{self.name}[{part.start}:{part.stop}]" for part in slices]
        return list(zip(names, slices, strict=True))


def quantizable_weights(graph: ir.Graph) -> list[QuantizableWeight]:
    """Return every matrix, float32 or float16, that only linear layers and lookups read."""
    found = (_quantizable(value) for value in graph.initializers.values())
    return [weight for weight in found if weight is not None]


def _quantizable(value: ir.Value) -> QuantizableWeight | None:
    tensor = value.const_value
    if tensor is None or tensor.dtype not in FLOATS or len(tensor.shape) != 2 or value.is_graph_output():
        return None
    products: list[ir.Node] = []
    lookups: list[ir.Node] = []
    by_row = set()
    for node, index in value.uses():
        if node.op_type == "Gather" and index == 0 and _integer(node, "axis", 0) == 0:
            lookups.append(node)
            by_row.add(True)
        elif node.op_type == "Transpose":
            users = node.outputs[0].uses()
            if not all(user.op_type == "MatMul" and place == 1 for user, place in users):
                return None
            products += [user for user, _ in users]
            by_row.add(True)
        elif node.op_type in ("MatMul", "FusedMatMul") and index == 1:
            if _integer(node, "transA", 0) or node.attributes.get_float("alpha", 1.0) != 1.0:
                return None
            products.append(node)
            by_row.add(bool(_integer(node, "transB", 0)))
        else:
            return None
    if len(by_row) != 1:
        return None
    return QuantizableWeight(value, tuple(products), tuple(lookups), by_row.pop())


def _integer(node: ir.Node, name: str, default: int) -> int:
    return int(node.attributes.get_int(name, default))


def _split_sizes(products: Sequence[ir.Node]) -> list[int] | None:
    """Return the sizes by which a Split takes the one product of a fused weight apart; None without such a Split."""
    for user, index in products[0].outputs[0].uses() if len(products) == 1 else ():
        if user.op_type == "Split" and index == 0 and user.inputs[1] is not None:
            sizes = user.inputs[1].const_value
            return None if sizes is None else [int(size) for size in sizes.numpy()]
    return None

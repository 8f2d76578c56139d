"""A product for several linear layers, split where some of them are to be float32: scores of keys and of experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.contract import GraphPass, initializer
from doge_export.targets.half.flow import Flow
from doge_export.targets.lowering import constant, weight
from doge_export.targets.passes.patterns import computed_by

Part = tuple[ir.Value, slice]
"""An output of the Split, and the columns of the weight that compute it."""


@dataclasses.dataclass(frozen=True)
class Fused:
    """A product and the Split of its result, with the parts that only feed sensitive operators and the others."""

    product: ir.Node
    split: ir.Node
    sensitive: Sequence[Part]
    others: Sequence[Part]


class UnfuseSensitive(GraphPass):
    """Split(MatMul(x, [W1 W2 ...])) -> one such pair for the sensitive parts, one for the others.

    Otherwise the small differences of sensitive parts would be rounded to 16 bits with everything else that is
    multiplied by x. A product whose parts are all of one kind stays as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Take apart every product with parts of both kinds."""
        graph, flow = model.graph, Flow(model.graph)
        found = [fused for split in graph if (fused := _fused(split, flow)) is not None]
        for fused in found:
            for parts in (fused.sensitive, fused.others):
                _insert(graph, fused, parts)
            graph.remove([fused.split, fused.product], safe=True)
        return ir.passes.PassResult(model, modified=bool(found))


def _fused(split: ir.Node, flow: Flow) -> Fused | None:
    """Return a Split with parts of both kinds and its product; None for any other node."""
    source = split.inputs[0] if split.op_type == "Split" else None
    product = computed_by(source, "MatMul")
    if source is None or product is None or len(source.uses()) > 1:
        return None
    right, sizes = product.inputs[1], split.inputs[1] if len(split.inputs) > 1 else None
    if right is None or right.const_value is None or len(right.uses()) > 1 or sizes is None:
        return None
    if sizes.const_value is None or right not in flow.reals or len(right.const_value.shape) != 2:
        return None
    ends = np.cumsum(sizes.const_value.numpy()).tolist()
    parts = [(value, slice(start, end)) for value, start, end in zip(split.outputs, [0, *ends], ends, strict=False)]
    sensitive = [part for part in parts if flow.feeds_only_sensitive(part[0])]
    if not 0 < len(sensitive) < len(parts):
        return None
    return Fused(product, split, sensitive, [part for part in parts if part not in sensitive])


def _insert(graph: ir.Graph, fused: Fused, parts: Sequence[Part]) -> None:
    """Insert a product for these parts alone, and a Split where they are several."""
    name, tensor = initializer(fused.product.inputs[1])
    columns = [part for _, part in parts]
    widths = [part.stop - part.start for part in columns]
    joined = weight(
        graph, f"{name}.{'+'.join(f'{part.start}:{part.stop}' for part in columns)}", tensor,
        (tensor.shape.numpy()[0], sum(widths)),
        lambda: np.concatenate([tensor.numpy()[:, part] for part in columns], axis=1),
    )  # fmt: skip
    tape = Tape()
    results: Sequence[ir.Value] = [tape.op("MatMul", [fused.product.inputs[0], joined])]
    if len(parts) > 1:
        results = tape.op_multi_out(
            "Split", [results[0], constant(graph, np.array(widths))], {"axis": -1}, num_outputs=len(parts)
        )
    graph.insert_before(fused.split, tape.nodes)
    for (old, _), new in zip(parts, results, strict=True):
        new.name, new.shape, new.type = old.name, old.shape, old.type
        old.name = None
        old.replace_all_uses_with(new)

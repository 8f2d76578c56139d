"""A product for several linear layers, taken apart where some are to be float32: scores of keys and of experts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.half.flow import Flow
from doge_export.targets.lowering import constant, stored, weight

Part = tuple[ir.Value, slice]
"""An output of the Split, and the columns of the weight that make it."""


class SeparateDeciding(ir.passes.InPlacePass):
    """Split(MatMul(x, [W1 W2 ...])) -> the same of the parts that only decide, and of the others.

    Without it their small differences would be rounded to 16 bits with everything else that is multiplied by x.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Every product that is split into parts of both kinds."""
        graph, flow = model.graph, Flow(model.graph)
        found = []
        for split in graph:
            parts = _parts(split, flow)
            deciding = [part for part in parts if flow.decides(part[0])]
            if 0 < len(deciding) < len(parts):
                found.append((split, deciding, [part for part in parts if part not in deciding]))
        for split, deciding, others in found:
            product = split.inputs[0].producer()  # type: ignore[union-attr]
            assert product is not None
            for parts in (deciding, others):
                _place(graph, split, product, parts)
            graph.remove([split, product], safe=True)
        return ir.passes.PassResult(model, modified=bool(found))


def _parts(split: ir.Node, flow: Flow) -> list[Part]:
    source = split.inputs[0] if split.op_type == "Split" else None
    product = source.producer() if source is not None else None
    if source is None or product is None or product.op_type != "MatMul" or len(source.uses()) > 1:
        return []
    right, sizes = product.inputs[1], split.inputs[1] if len(split.inputs) > 1 else None
    if right is None or right.const_value is None or len(right.uses()) > 1 or sizes is None:
        return []
    if sizes.const_value is None or right not in flow.reals or len(right.const_value.shape) != 2:
        return []
    ends = np.cumsum(sizes.const_value.numpy()).tolist()
    return [(value, slice(start, end)) for value, start, end in zip(split.outputs, [0, *ends], ends, strict=False)]


def _place(graph: ir.Graph, split: ir.Node, product: ir.Node, parts: Sequence[Part]) -> None:
    """A product for these parts alone, and a Split where they are several."""
    name, tensor = stored(product.inputs[1])
    columns = [part for _, part in parts]
    widths = [part.stop - part.start for part in columns]
    joined = weight(
        graph, f"{name}.{'+'.join(f'{part.start}:{part.stop}' for part in columns)}", tensor,
        (tensor.shape.numpy()[0], sum(widths)),
        lambda: np.concatenate([tensor.numpy()[:, part] for part in columns], axis=1),
    )  # fmt: skip
    tape = Tape()
    results: Sequence[ir.Value] = [tape.op("MatMul", [product.inputs[0], joined])]
    if len(parts) > 1:
        results = tape.op_multi_out(
            "Split", [results[0], constant(graph, np.array(widths))], {"axis": -1}, num_outputs=len(parts)
        )
    graph.insert_before(split, tape.nodes)
    for (old, _), new in zip(parts, results, strict=True):
        new.name, new.shape, new.type = old.name, old.shape, old.type
        old.name = None
        old.replace_all_uses_with(new)

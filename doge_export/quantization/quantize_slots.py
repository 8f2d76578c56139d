"""Keys and values of a bounded cache in 8 bits, in standard operators, with a scale for each head and channel.

A new key or value is rounded once, where it is appended to the slots, and its own run reads it rounded too: the pieces
that a text is read in change nothing. A slot that is kept is moved with its codes; its scales are those of its channel,
so none moves with it. Scores stay float32: which keys are kept is decided as without rounding them.

The scales of keys are multiplied into the queries, and those of values into the mixed values, so that reading the slots
costs a Cast and no product more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.quantization.quantize_caches import RangedPass, cache_scale
from doge_export.targets.contract import ContractError, node_input
from doge_export.targets.lowering import constant, named


class Slots(NamedTuple):
    """A cache of one layer, and the node that appends the new keys or values to its slots."""

    cache: ir.Value
    layer: int
    part: str
    append: ir.Node


def slots_of(graph: ir.Graph) -> Iterator[Slots]:
    """Yield every cache of a graph that `BoundedAttention` lowered.

    Raises:
        ContractError: a cache has another name, or other readers than the node that appends to it.
    """
    for cache in [*named(graph.inputs, ".key"), *named(graph.inputs, ".value")]:
        readers = [node for node, _ in cache.uses()]
        if [node.op_type for node in readers] != ["Concat"]:
            raise ContractError(cache, "expected a Concat with the new ones as its only reader")
        match (cache.name or "").split("."):
            case ["past_key_values", layer, part] if layer.isdecimal():
                yield Slots(cache, int(layer), part, readers[0])
            case _:
                raise ContractError(cache, "expected the name past_key_values.{layer}.key or .value")


class QuantizeSlots(RangedPass):
    """Give every bounded cache int8 slots.

    Needs caches as `BoundedAttention` lowers them, read by one MatMul each, and a range for each layer.
    """

    def requires(self, model: ir.Model) -> None:
        """Require caches whose layers have ranges."""
        super().requires(model)
        found = list(slots_of(model.graph))
        if not found:
            raise ContractError(f"graph {model.graph.name}", "expected caches, found none")
        for slots in found:
            _product(slots)
            self.require_range(slots.cache, slots.layer)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Round what is appended, and read the slots as numbers, cache by cache."""
        for slots in list(slots_of(model.graph)):
            self._quantize(model.graph, slots)
        for value in [*named(model.graph.outputs, ".key"), *named(model.graph.outputs, ".value")]:
            value.dtype = ir.DataType.INT8
        return ir.passes.PassResult(model, modified=True)

    def _quantize(self, graph: ir.Graph, slots: Slots) -> None:
        product, joined = _product(slots), slots.append.outputs[0]
        largest = self._ranges[slots.layer][slots.part == "value"]
        scale = cache_scale(graph, f"{slots.cache.name}.scale", largest)
        one, zero = constant(graph, np.array(1, np.float32)), constant(graph, np.array(0, np.int8))
        tape = Tape()
        # The scale is one of two axes, head and channel, and QuantizeLinear knows one.
        codes = tape.op("QuantizeLinear", [tape.op("Div", [node_input(slots.append, 1), scale]), one, zero])
        codes.dtype = ir.DataType.INT8
        graph.insert_before(slots.append, tape.nodes)
        slots.append.replace_input_with(1, codes)
        slots.cache.dtype = joined.dtype = ir.DataType.INT8

        readers = [use for use in joined.uses() if use.node.op_type in ("Transpose", "MatMul")]
        read = Tape()
        numbers = read.op("Cast", [joined], {"to": ir.DataType.FLOAT})
        graph.insert_after(slots.append, read.nodes)
        for node, place in readers:
            node.replace_input_with(place, numbers)
        scaled = Tape()
        if slots.part == "key":
            queries = scaled.op("Mul", [node_input(product, 0), scale])
            graph.insert_before(product, scaled.nodes)
            product.replace_input_with(0, queries)
        else:
            mixed = product.outputs[0]
            uses = list(mixed.uses())
            result = scaled.op("Mul", [mixed, scale])
            graph.insert_after(product, scaled.nodes)
            for node, place in uses:
                node.replace_input_with(place, result)


def _product(slots: Slots) -> ir.Node:
    """Return the MatMul of the queries with the keys, or of the attention weights with the values."""
    joined = slots.append.outputs[0]
    for node, _ in joined.uses():
        readers = [node] if node.op_type == "MatMul" else [each for each, _ in node.outputs[0].uses()]
        for reader in readers if node.op_type in ("MatMul", "Transpose") else []:
            if reader.op_type == "MatMul":
                return reader
    raise ContractError(slots.cache, "expected a MatMul that reads the slots")

"""Translate recorded calls to ONNX nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir
from torch import fx
from torch.fx.node import map_arg

from doge_export.graph.blocks import Block
from doge_export.graph.extents import Type
from doge_export.graph.words import WORDS
from doge_export.graph.writer import Writer


class Translator:
    """Write blocks to a graph that holds their parameters, each named by its path from the module.

    Args:
        graph: with inputs and initializers.
        layers: the block of each layer, by its path.
    """

    def __init__(self, graph: ir.Graph, layers: Mapping[str, Block]) -> None:
        self._graph, self._layers = graph, layers
        self._writer = Writer(graph)

    def write(self, block: Block, arguments: Iterable[Any], path: str = "") -> Any:
        """Append the nodes of a block, named after the module's `path`, and return its results."""
        given = iter(arguments)
        values: dict[fx.Node, Any] = {}
        for node in block.graph.nodes:
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            match node.op:
                case "placeholder":
                    values[node] = next(given)
                case "get_attr":
                    values[node] = self._graph.initializers[path + node.target]
                case "call_module":
                    values[node] = self.write(self._layers[node.target], args, f"{path}{node.target}.")
                case "output":
                    return args[0]
                case _:
                    result = self._word(node, path)(self._writer, block.types[node], *args, **kwargs)
                    values[node] = _described(result, block.types[node], path + node.name)
        raise ValueError("a block without an output")

    @staticmethod
    def _word(node: fx.Node, path: str) -> Any:
        try:
            return WORDS[node.target]
        except KeyError:
            modules = [*node.meta.get("nn_module_stack", {})]
            where = f"{path}{modules[-1] if modules else ''}".rstrip(".") or "the module"
            raise NotImplementedError(f"no ONNX translation of {node.target}, called by {where}") from None


def _described(value: Any, kind: Any, name: str) -> Any:
    """Name and type a result; results of earlier calls keep theirs."""
    if isinstance(value, ir.Value) and value.dtype is None:
        value.name = name
        if isinstance(kind, Type):
            value.dtype, value.shape = kind.dtype, ir.Shape(kind.axes)
        else:
            value.dtype, value.shape = ir.DataType.INT64, ir.Shape([])  # arithmetic of sizes
    elif isinstance(value, tuple) and isinstance(kind, tuple):
        for place, (part, each) in enumerate(zip(value, kind, strict=True)):
            _described(part, each, f"{name}.{place}")
    return value

"""Record modules as lists of PyTorch calls, with the types of their results.

torch.fx runs `forward` once with placeholders for tensors and records every call of a torch function, method or
operator. A layer is one call of what is recorded around it, and each kind of layer is recorded once by itself.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from doge_export.graph.extents import type_of
from doge_export.model import operators

_OUTPUTS: dict[Any, Callable[..., Any]] = {
    torch.ops.doge.rotate.default: lambda x, *_, **__: torch.empty_like(x),
    torch.ops.doge.dynamic_mask_attention.default: operators.attention_outputs,
    torch.ops.doge.ratio_mask_attention.default: operators.attention_outputs,
    torch.ops.doge.cdmoe.default: lambda hidden, *_, **__: torch.empty_like(hidden),
}
"""Shape functions that stand for our operators while a recording runs: only types are asked for, and calling a real
operator imports a compiler."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A recorded module.

    Attributes:
        graph: its calls.
        types: for each call the `extents.type_of` of its result.
    """

    graph: fx.Graph
    types: dict[fx.Node, Any]


class Recorder:
    """Record a module, and each kind of its layers by itself.

    Attributes:
        blocks: the recording of each layer, by its path; layers that are alike share one.
    """

    def __init__(self, module: nn.Module, layers: Iterable[nn.Module]) -> None:
        self._module, self._layers = module, set(layers)
        self._kinds: dict[Hashable, tuple[Block, list[Any]]] = {}
        self.blocks: dict[str, Block] = {}

    def record(self, examples: Sequence[Sequence[Any]], concrete: dict[str, Any] | None = None) -> Block:
        """Record the module around its layers.

        Args:
            examples: arguments for each of `extents.EXAMPLES`, those inside a list one by one.
            concrete: for an argument that is a list, a list of as many fx.PH.
        """
        return self._block(self._module, examples, concrete)[0]

    def _block(
        self, module: nn.Module, examples: Sequence[Sequence[Any]], concrete: dict[str, Any] | None = None
    ) -> tuple[Block, list[Any]]:
        """Record a module, or find the recording of one like it; also return its results for the examples."""
        graph = _Tracer(self._layers - {module}).trace(module, concrete)
        graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        arguments = zip(*examples, strict=True)
        results: dict[fx.Node, list[Any]] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                results[node] = list(next(arguments))
            elif node.op == "get_attr":
                results[node] = [operator.attrgetter(node.target)(module)] * len(examples)
            else:
                calls = [
                    map_arg((node.args, node.kwargs), lambda source, i=i: results[source][i])  # type: ignore[misc]
                    for i in range(len(examples))
                ]
                results[node] = self._call(node, calls)
        return Block(graph, {node: type_of(*found) for node, found in results.items()}), results[node]

    def _call(self, node: fx.Node, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
        """Return the results of a call for each example."""
        target: Any = node.target
        match node.op:
            case "call_function":
                return [_OUTPUTS.get(target, target)(*args, **kwargs) for args, kwargs in calls]
            case "call_method":
                return [getattr(args[0], target)(*args[1:], **kwargs) for args, kwargs in calls]
            case "call_module":
                return self._layer(target, [args for args, _ in calls])
        return [args[0] for args, _ in calls]  # "output"

    def _layer(self, path: str, examples: Sequence[tuple[Any, ...]]) -> list[Any]:
        layer = self._module.get_submodule(path)
        kind = _kind(layer)
        if kind not in self._kinds:
            self._kinds[kind] = self._block(layer, examples)
        self.blocks[path], results = self._kinds[kind]
        return results


class _Tracer(fx.Tracer):
    """Record everything down to torch's functions, except for calls of the given modules."""

    def __init__(self, leaves: set[nn.Module]) -> None:
        super().__init__()
        self._leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is recorded as one call."""
        return m in self._leaves


def _kind(layer: nn.Module) -> Hashable:
    """Return everything that the calls of a layer depend on: attributes of its modules, and types of their tensors."""
    attributes = [
        (path, type(module), sorted((key, repr(value)) for key, value in vars(module).items() if key[0] != "_"))
        for path, module in layer.named_modules()
    ]
    tensors = [(name, tensor.shape, tensor.dtype) for name, tensor in layer.state_dict(keep_vars=True).items()]
    return repr((attributes, tensors))

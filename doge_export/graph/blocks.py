"""What PyTorch does, recorded: modules as lists of calls, with the types of their results.

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
"""What stands for our operators when a graph is run: only types are asked for, and calling one imports a compiler."""


@dataclasses.dataclass(frozen=True)
class Block:
    """The calls of a module; `types` gives for each what `extents.type_of` says of its result."""

    graph: fx.Graph
    types: dict[fx.Node, Any]


class Recorder:
    """Records a module with some of its submodules, the `layers`, apart.

    Attributes:
        blocks: what was recorded of each layer, by its path; of layers that are alike once.
    """

    def __init__(self, module: nn.Module, layers: Iterable[nn.Module]) -> None:
        self._module, self._layers = module, set(layers)
        self._kinds: dict[Hashable, tuple[Block, list[Any]]] = {}
        self.blocks: dict[str, Block] = {}

    def record(self, examples: Sequence[Sequence[Any]], concrete: dict[str, Any] | None = None) -> Block:
        """The module around its layers.

        Args:
            examples: its arguments, once for each of `extents.EXAMPLES`; those in a list one by one.
            concrete: for an argument that is a list as many fx.PH.
        """
        return self._block(self._module, examples, concrete)[0]

    def _block(
        self, module: nn.Module, examples: Sequence[Sequence[Any]], concrete: dict[str, Any] | None = None
    ) -> tuple[Block, list[Any]]:
        """What was recorded of a module, and its results for the examples."""
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
        """Results of a call with the arguments of each example."""
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
    """Records everything down to torch's functions, but for calls of the given modules."""

    def __init__(self, leaves: set[nn.Module]) -> None:
        super().__init__()
        self._leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a call of a module is recorded as such."""
        return m in self._leaves


def _kind(layer: nn.Module) -> Hashable:
    """What the calls of a layer depend on: the attributes of its modules, and their tensors' types."""
    attributes = [
        (path, type(module), sorted((key, repr(value)) for key, value in vars(module).items() if key[0] != "_"))
        for path, module in layer.named_modules()
    ]
    tensors = [(name, tensor.shape, tensor.dtype) for name, tensor in layer.state_dict(keep_vars=True).items()]
    return repr((attributes, tensors))

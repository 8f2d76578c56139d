"""The input and the output of a lint rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from doge_export.plugin.tensorrt_versions import MajorMinor, dotted
from doge_export.trt.creators import Creator


@dataclasses.dataclass(frozen=True)
class LintSubject:
    """A model and the TensorRT that is to read it.

    Attributes:
        model: lowered graph.
        version: of TensorRT.
        creators: in TensorRT's registry.
        sizes: largest sizes of the dynamic axes, by name; empty if unknown.
    """

    model: ir.Model
    version: MajorMinor
    creators: tuple[Creator, ...]
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def nodes(self) -> list[ir.Node]:
        """The nodes of the main graph, without those of subgraphs."""
        return list(self.model.graph)

    @property
    def tensorrt(self) -> str:
        """The TensorRT as messages name it."""
        return f"TensorRT {dotted(self.version)}"

    def custom_nodes(self) -> Iterator[tuple[ir.Node, Creator]]:
        """Return the custom nodes that have a creator of their name, with it."""
        by_name = {creator.name: creator for creator in self.creators}
        return ((node, by_name[node.op_type]) for node in self.nodes if is_custom(node) and node.op_type in by_name)


Message = tuple[str, str]
"""A place in the graph, and what is wrong there."""
Rule = Callable[[LintSubject], Iterator[Message]]


def is_custom(node: ir.Node) -> bool:
    """Return whether a node is meant for a plugin."""
    return node.domain not in ("", "ai.onnx")


def name_of(node: ir.Node) -> str:
    """Return the name of a node for messages."""
    outputs = [value.name for value in node.outputs if value.name]
    return f"{node.op_type} {node.name or (outputs[0] if outputs else '')}".strip()

"""What a rule of the lint looks at, and what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from doge_export.trt.creators import Creator
from doge_export.trt.importers import Version


@dataclasses.dataclass(frozen=True)
class LintSubject:
    """What a rule looks at: a model, the TensorRT that is to read it, and the creators in its registry.

    sizes: the dynamic axes at their largest, by name; empty where they are not known.
    """

    model: ir.Model
    version: Version
    creators: tuple[Creator, ...]
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def nodes(self) -> list[ir.Node]:
        """Of the main graph."""
        return list(self.model.graph)

    @property
    def tensorrt(self) -> str:
        """For messages."""
        return f"TensorRT {self.version[0]}.{self.version[1]}"

    def custom_nodes(self) -> Iterator[tuple[ir.Node, Creator]]:
        """Nodes of ours that have a creator of their name."""
        by_name = {creator.name: creator for creator in self.creators}
        return ((node, by_name[node.op_type]) for node in self.nodes if is_custom(node) and node.op_type in by_name)


Message = tuple[str, str]
"""Where, and what is wrong there."""
Rule = Callable[[LintSubject], Iterator[Message]]


def is_custom(node: ir.Node) -> bool:
    """Whether a node is meant for a plugin."""
    return node.domain not in ("", "ai.onnx")


def name_of(node: ir.Node) -> str:
    """How messages call a node."""
    outputs = [value.name for value in node.outputs if value.name]
    return f"{node.op_type} {node.name or (outputs[0] if outputs else '')}".strip()

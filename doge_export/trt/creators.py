"""The creators of the plugin: attributes, inputs and outputs of its operators, as `doge_plugin_fields` prints them.

The package holds a copy, so that a graph can be checked without a built plugin; a test compares it with the plugin.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from typing import Any


@dataclasses.dataclass(frozen=True)
class PluginField:
    """An attribute of a node; `type` is INT or FLOAT."""

    name: str
    type: str
    required: bool


@dataclasses.dataclass(frozen=True)
class PluginTensor:
    """An input or output of a node.

    Attributes:
        name: in the plugin's interface.
        type: float32, int32 or T, which is one of float32, float16 and bfloat16 for the whole node.
        axes: names of the axes.
        only_with: the attribute that is 1 on nodes that have it; None if all have.
    """

    name: str
    type: str
    axes: tuple[str, ...]
    only_with: str | None


@dataclasses.dataclass(frozen=True)
class Creator:
    """A plugin creator as TensorRT's registry holds it, with the inputs and outputs of its operator."""

    name: str
    version: str
    namespace: str
    fields: tuple[PluginField, ...]
    inputs: tuple[PluginTensor, ...]
    outputs: tuple[PluginTensor, ...]


def packaged() -> tuple[Creator, ...]:
    """Return the creators of the plugin whose sources come with this package."""
    text = importlib.resources.files("doge_export.trt").joinpath("plugin_fields.json").read_text(encoding="utf-8")
    return read_creators(json.loads(text))


def read_creators(printed: dict[str, Any]) -> tuple[Creator, ...]:
    """Return the creators that a plugin printed."""

    def tensors(listed: list[dict[str, Any]]) -> tuple[PluginTensor, ...]:
        return tuple(PluginTensor(x["name"], x["type"], tuple(x["axes"]), x.get("only_with")) for x in listed)

    return tuple(
        Creator(
            name=operator["name"],
            version=printed["version"],
            namespace=printed["namespace"],
            fields=tuple(PluginField(x["name"], x["type"], x["required"]) for x in operator["attributes"]),
            inputs=tensors(operator["inputs"]),
            outputs=tensors(operator["outputs"]),
        )
        for operator in printed["operators"]
    )

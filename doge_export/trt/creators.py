"""What the plugin takes: attributes, inputs and outputs of its two nodes, as `doge_plugin_fields` prints them.

A copy comes with the package, so that a graph can be checked where no plugin is built; a test compares it with the
plugin's own.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.resources
import json
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class PluginField:
    """An attribute: `type` is INT or FLOAT."""

    name: str
    type: str
    required: bool


@dataclasses.dataclass(frozen=True)
class PluginTensor:
    """An input or output: `type` is T (float32, float16 or bfloat16, one for the whole node), float32 or int32."""

    name: str
    type: str
    axes: tuple[str, ...]
    bounded_only: bool


@dataclasses.dataclass(frozen=True)
class Creator:
    """What TensorRT's registry would hold for an operator."""

    name: str
    version: str
    namespace: str
    fields: tuple[PluginField, ...]
    inputs: tuple[PluginTensor, ...]
    outputs: tuple[PluginTensor, ...]


def packaged() -> tuple[Creator, ...]:
    """Of the plugin whose sources come with this package."""
    text = importlib.resources.files("doge_export.trt").joinpath("plugin_fields.json").read_text(encoding="utf-8")
    return _creators(json.loads(text))


def of_library(plugin: Path) -> tuple[Creator, ...]:
    """Of a built libdoge_trt_plugin.so; neither TensorRT nor a GPU is needed."""
    library = ctypes.CDLL(str(plugin.resolve()))
    library.doge_plugin_fields.restype = ctypes.c_char_p
    return _creators(json.loads(library.doge_plugin_fields()))


def of_registry(registry: Any) -> dict[str, dict[str, str]]:
    """What TensorRT (full or lean) itself says of the creators it has loaded: operator -> attribute -> INT or FLOAT."""
    kinds = {"INT32": "INT", "FLOAT32": "FLOAT"}
    return {
        creator.name: {field.name: kinds.get(field.type.name, field.type.name) for field in creator.field_names}
        for creator in registry.all_creators
        if creator.plugin_namespace == "doge"
    }


def _creators(printed: dict[str, Any]) -> tuple[Creator, ...]:
    def tensors(listed: list[dict[str, Any]]) -> tuple[PluginTensor, ...]:
        return tuple(PluginTensor(x["name"], x["type"], tuple(x["axes"]), x["bounded_only"]) for x in listed)

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

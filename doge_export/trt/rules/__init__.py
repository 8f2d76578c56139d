"""The rules of the lint by name. Each is a small function, and the tests have a graph that breaks it."""

from __future__ import annotations

from doge_export.trt.rules import dispatch, files, interface, layers, volumes
from doge_export.trt.rules.lint_subject import Rule

RULES: dict[str, Rule] = {
    "version": files.version,
    "opset": files.opset,
    "ir-version": files.ir_version,
    "zero-length": files.zero_length,
    "taken-name": dispatch.taken_name,
    "function-wins": dispatch.function_wins,
    "nested-plugin": dispatch.nested_plugin,
    "no-creator": dispatch.no_creator,
    "attribute-type": interface.attribute_type,
    "attribute-missing": interface.attribute_missing,
    "attribute-unread": interface.attribute_unread,
    "input-count": interface.input_count,
    "input-empty": interface.input_empty,
    "input-type": interface.input_type,
    "input-zero-length": interface.input_zero_length,
    "output-count": interface.output_count,
    "layer": layers.layer,
    "top-k": layers.top_k,
    "attention": layers.attention,
    "cache-in-place": layers.cache_in_place,
    "volume": volumes.volume,
}

"""Rules on attributes, inputs and outputs of custom nodes, which must be what the plugin's creator declares."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from doge_export.trt.creators import PluginTensor
from doge_export.trt.rules.lint_subject import LintSubject, Message, name_of

_PARSERS_OWN = {"plugin_namespace", "plugin_version", "tensorrt_plugin_shape_input_indices", "aot"}
_INT32 = range(-(2**31), 2**31)
_REAL = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_TYPES = {"float32": {ir.DataType.FLOAT}, "int32": {ir.DataType.INT32}}


def attribute_type(subject: LintSubject) -> Iterator[Message]:
    """An attribute has another type than the plugin's, or does not fit into int32; the parser converts nothing."""
    for node, creator in subject.custom_nodes():
        declared = {field.name: field.type for field in creator.fields}
        declared |= {"plugin_namespace": "STRING", "plugin_version": "STRING"}
        for name, attribute in node.attributes.items():
            expected = declared.get(name)
            if expected is not None and attribute.type.name != expected:
                yield name_of(node), f"attribute {name} is {attribute.type.name}; {expected} expected"
            elif attribute.type == ir.AttributeType.INT and attribute.as_int() not in _INT32:
                yield name_of(node), f"attribute {name} is {attribute.as_int()}; the parser cuts it to 32 bits"


def attribute_missing(subject: LintSubject) -> Iterator[Message]:
    """A required attribute is missing: the parser only warns, and the plugin then refuses."""
    for node, creator in subject.custom_nodes():
        for field in creator.fields:
            if field.required and field.name not in node.attributes:
                yield name_of(node), f"attribute {field.name} is missing"


def attribute_unread(subject: LintSubject) -> Iterator[Message]:
    """An attribute is none of the creator's: the parser would silently drop it."""
    for node, creator in subject.custom_nodes():
        known = _PARSERS_OWN | {field.name for field in creator.fields}
        for name in node.attributes:
            if name not in known:
                yield name_of(node), f"attribute {name} is not one of the plugin's; it would not be read"


def _used(node: ir.Node, tensors: tuple[PluginTensor, ...]) -> list[PluginTensor]:
    """Return those of the plugin's tensors that this node has."""

    def is_on(name: str) -> bool:
        flag = node.attributes.get(name)
        return flag is not None and flag.type == ir.AttributeType.INT and flag.as_int() == 1

    return [tensor for tensor in tensors if tensor.only_with is None or is_on(tensor.only_with)]


def input_count(subject: LintSubject) -> Iterator[Message]:
    """The number of inputs is not the plugin's."""
    for node, creator in subject.custom_nodes():
        expected = len(_used(node, creator.inputs))
        if len(node.inputs) != expected:
            yield name_of(node), f"{len(node.inputs)} inputs; {expected} expected"


def output_count(subject: LintSubject) -> Iterator[Message]:
    """The number of named outputs, which the parser counts, is not the plugin's."""
    for node, creator in subject.custom_nodes():
        found, expected = sum(bool(value.name) for value in node.outputs), len(_used(node, creator.outputs))
        if found != expected:
            yield name_of(node), f"{found} outputs; {expected} expected"


def _inputs(subject: LintSubject) -> Iterator[tuple[ir.Node, PluginTensor, ir.Value | None]]:
    for node, creator in subject.custom_nodes():
        for tensor, value in zip(_used(node, creator.inputs), node.inputs, strict=False):
            yield node, tensor, value


def input_empty(subject: LintSubject) -> Iterator[Message]:
    """An input is absent: it would arrive as a null pointer, which the plugin does not take."""
    for node, tensor, value in _inputs(subject):
        if value is None:
            yield name_of(node), f"input {tensor.name} is empty"


def input_type(subject: LintSubject) -> Iterator[Message]:
    """An input has another type than the plugin's; the parser casts none."""
    for node, tensor, value in _inputs(subject):
        if value is None:
            continue
        dtype = value.dtype if value.const_value is None else value.const_value.dtype
        allowed = _TYPES.get(tensor.type) or _of_node(node)
        if dtype not in allowed:
            seen = "of unknown type" if dtype is None else dtype.name
            yield (
                name_of(node),
                f"input {tensor.name} is {seen}; {' or '.join(sorted(x.name for x in allowed))} expected",
            )


def _of_node(node: ir.Node) -> set[ir.DataType]:
    """Return the types that T may be: the type of the first input, any real type if that is not real."""
    first = node.inputs[0] if node.inputs else None
    dtype = None if first is None else first.dtype if first.const_value is None else first.const_value.dtype
    return {dtype} if dtype in _REAL else _REAL


def input_zero_length(subject: LintSubject) -> Iterator[Message]:
    """An input has no elements, on which TensorRT's compiler breaks (NVIDIA/TensorRT-Edge-LLM#192)."""
    for node, tensor, value in _inputs(subject):
        if value is not None and value.shape is not None and 0 in value.shape:
            yield name_of(node), f"input {tensor.name} has shape {value.shape}, no elements"

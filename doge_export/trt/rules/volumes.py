"""The rule on the number of elements of a tensor, which TensorRT counts in 31 bits."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from doge_export.runtime.context import PREFILL_CHUNK
from doge_export.trt.limits import MAX_ELEMENTS
from doge_export.trt.rules.lint_subject import LintSubject, Message, is_custom, name_of

_Shape = tuple[int | str, ...]
"""Sizes, and names of dynamic axes."""


def volume(subject: LintSubject) -> Iterator[Message]:
    """A tensor has more elements than TensorRT counts.

    Yields the largest tensor for each set of options that the user could lower, so that one option gives one message.
    """
    largest: dict[tuple[str, ...], tuple[int, str, str]] = {}
    for where, shape in _tensors(subject):
        if not all(isinstance(size, int) or size in subject.sizes for size in shape):
            continue
        sizes = [size if isinstance(size, int) else subject.sizes[size] for size in shape]
        options = _options(where, shape, subject)
        if math.prod(sizes) > largest.get(options, (MAX_ELEMENTS,))[0]:
            largest[options] = math.prod(sizes), where, " x ".join(map(str, sizes))
    for options, (elements, where, sizes) in largest.items():  # type: ignore[assignment]
        lower = f": lower {' or '.join(options)}" if options else ""
        yield where, f"{sizes} is {elements} elements; {subject.tensorrt} takes up to {MAX_ELEMENTS}{lower}"


def _options(where: str, shape: _Shape, subject: LintSubject) -> tuple[str, ...]:
    """Return the options that determine the size of the tensor."""
    lengthened = _is_cache(where) or ("sequence" in shape and subject.sizes["sequence"] > PREFILL_CHUNK)
    options = {
        "--max-batch": "batch" in shape,
        "--max-length": lengthened,
        "--max-logits": "num_logits" in shape,
    }
    return tuple(option for option, is_meant in options.items() if is_meant)


def _is_cache(name: str) -> bool:
    return name.startswith(("past_key_values.", "present."))


def _tensors(subject: LintSubject) -> Iterator[tuple[str, _Shape]]:
    """Return name and shape of inputs, outputs and the widest values in between: products, weights of attention."""
    graph = subject.model.graph
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None:
            yield value.name or "", _shape(value)
    for node in subject.nodes:
        if is_custom(node):
            continue
        if node.op_type == "MatMul" and (weight := _stored(node.inputs[1])) is not None:
            known = _shape(node.outputs[0])
            is_known = known and all(isinstance(size, int) or size in subject.sizes for size in known)
            yield name_of(node), known if is_known else ("batch", "sequence", weight.shape.numpy()[-1])
        if node.op_type == "Attention" and (heads := _heads(node.inputs[0])) and (keys := _shape(node.inputs[1])):
            yield name_of(node), ("batch", heads, "sequence", keys[2])


def _shape(value: ir.Value | None) -> _Shape:
    """Return the shape of a value; () if it is unknown."""
    if value is None or value.shape is None:
        return ()
    return tuple(size if isinstance(size, int) else str(size) for size in value.shape)


def _stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None else ir.convenience.get_const_tensor(value)


def _heads(query: ir.Value | None) -> int | None:
    """Return Hq of queries [B, Hq, S, D], from their shape or from the Reshape to [B, S, Hq, D] that they come from."""
    while query is not None:
        shape, node = _shape(query), query.producer()
        if len(shape) == 4 and isinstance(shape[1], int):
            return shape[1]
        if node is None:
            return None
        if node.op_type == "Reshape":
            split = _stored(node.inputs[1])
            return None if split is None or split.size != 4 else int(split.numpy()[2])
        query = node.inputs[0]
    return None

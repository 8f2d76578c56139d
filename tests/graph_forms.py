"""What a graph says, whoever wrote it: two graphs of one form differ in names and in how they spell constants."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx.defs
import onnx_ir as ir


class Known(NamedTuple):
    """Numbers that need no computing, some of which may be extents: axes of the inputs, by name."""

    dtype: ir.DataType | None
    shape: tuple[int, ...]
    numbers: tuple[Any, ...]


class Result(NamedTuple):
    """The output `place` of the step `number` of a form."""

    number: int
    place: int


class Step(NamedTuple):
    """One node: operator, attributes (those of the standard with its defaults), inputs, and its outputs' types."""

    operator: tuple[str, str]
    attributes: dict[str, Any]
    inputs: list[Any]
    outputs: list[Any]


END = 2**63 - 1


def form_of(model: ir.Model) -> dict[str, Any]:
    """Inputs, outputs, weights and steps of a canonical graph."""
    return _Form(model).to_dict()


class _Form:
    def __init__(self, model: ir.Model) -> None:
        self._model, self._opset = model, model.opset_imports[""]
        self._values: dict[ir.Value | None, Any] = {None: None}
        self._steps: list[Step] = []
        for value in model.graph.inputs:
            self._values[value] = value.name
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            self._values[value] = _known(tensor) if tensor.dtype == ir.DataType.INT64 else name
        for node in model.graph:
            if (same := self._without_computing(node)) is not None:
                self._values[node.outputs[0]] = same
            else:
                self._append(node)

    def to_dict(self) -> dict[str, Any]:
        graph = self._model.graph
        weights = {name: value.const_value for name, value in graph.initializers.items()}
        return {
            "versions": (self._model.ir_version, dict(self._model.opset_imports), self._model.producer_name),
            "functions": sorted(self._model.functions),
            "inputs": [(value.name, value.dtype, _axes(value)) for value in graph.inputs],
            "outputs": [(value.name, value.dtype, _axes(value), self._values[value]) for value in graph.outputs],
            "weights": {
                name: (tensor.dtype, tuple(tensor.shape), tensor.tobytes())
                for name, tensor in weights.items()
                if tensor.dtype != ir.DataType.INT64
            },
            "steps": self._steps,
        }

    def _append(self, node: ir.Node) -> None:
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        if not node.domain:
            schema = onnx.defs.get_schema(node.op_type, self._opset, "")
            for name, attribute in schema.attributes.items():
                if attribute.default_value.type:
                    attributes.setdefault(name, onnx.helper.get_attribute_value(attribute.default_value))
        attributes = {
            name: value.decode() if isinstance(value, bytes) else list(value) if isinstance(value, tuple) else value
            for name, value in attributes.items()
        }
        inputs = [self._values[value] for value in node.inputs]
        if node.op_type == "Slice" and len(inputs) == 5 and inputs[4].numbers == (1,):
            del inputs[4]  # the step it has by default
        for place, value in enumerate(node.outputs):
            self._values[value] = Result(len(self._steps), place)
        outputs = [_kind(value) for value in node.outputs]
        self._steps.append(Step((node.domain, node.op_type), attributes, inputs, outputs))

    def _without_computing(self, node: ir.Node) -> Any:
        """What a node's result is, where it is known or is the node's input; None where it must be computed."""
        source = self._values[node.inputs[0]] if node.inputs else None
        if node.op_type == "Constant":
            return _known(ir.convenience.get_const_tensor(node.outputs[0]))
        if node.op_type in ("Cast", "CastLike"):
            to = self._cast_to(node)
            if isinstance(source, Known):
                numbers = source.numbers if to != ir.DataType.INT64 else tuple(map(int, source.numbers))
                return Known(to, source.shape, numbers)
            return source if node.inputs[0].dtype == to else None
        if node.op_type == "Shape":
            start, end = (node.attributes[name].value if name in node.attributes else None for name in ("start", "end"))
            axes = _axes(node.inputs[0])[start:end]
            return Known(ir.DataType.INT64, (len(axes),), tuple(axes))
        others = [self._values[value] for value in node.inputs[1:]]
        if node.op_type == "Slice" and [x.numbers for x in others[:2]] == [(0,), (END,)]:
            return source
        if node.op_type == "ConstantOfShape" or (node.op_type == "Expand" and isinstance(source, Known)):
            # Only caches without tokens are made so, in which no number is.
            sizes = source if node.op_type == "ConstantOfShape" else others[0]
            assert 0 in sizes.numbers
            return Known(ir.DataType.FLOAT, sizes.numbers, ())
        if not all(isinstance(x, Known) and x.dtype == ir.DataType.INT64 for x in [source, *others]):
            return None
        match node.op_type:
            case "Gather":
                return Known(source.dtype, (), (source.numbers[others[0].numbers[0]],))
            case "Squeeze":
                return Known(source.dtype, (), source.numbers)
            case "Reshape":
                return Known(source.dtype, (len(source.numbers),), source.numbers)
            case "Concat":
                numbers = tuple(n for x in [source, *others] for n in x.numbers)
                return Known(source.dtype, (len(numbers),), numbers)
        return None

    def _cast_to(self, node: ir.Node) -> ir.DataType:
        if node.op_type == "Cast":
            return ir.DataType(node.attributes["to"].value)
        like = node.inputs[1]
        return like.dtype if like.const_value is None else like.const_value.dtype


def _known(tensor: ir.TensorProtocol) -> Known:
    array = tensor.numpy()
    return Known(tensor.dtype, array.shape, tuple(np.ravel(array).tolist()))


def _axes(value: ir.Value) -> list[int | str]:
    return [axis if isinstance(axis, int) else axis.value for axis in value.shape]


class _Any:
    def __eq__(self, other: object) -> bool:
        return True

    def __repr__(self) -> str:
        return "any"


def _kind(value: ir.Value) -> Any:
    """Type and static axes, where they are written."""
    if value.dtype is None or value.shape is None:
        return _Any()
    return value.dtype, [axis if isinstance(axis, int) else "dynamic" for axis in value.shape]

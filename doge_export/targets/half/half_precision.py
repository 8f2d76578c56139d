"""The pass that gives every real value of a float32 graph its type, with a Cast wherever the type changes."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
from onnx_ir.passes import common

from doge_export.targets.contract import ContractError, GraphPass, initializer
from doge_export.targets.half.flow import FLOAT
from doge_export.targets.half.types import Types, largest


class HalfPrecision(GraphPass):
    """Turn a float32 graph into one of 16 bits.

    Needs a graph that `prepare` has rewritten, so without Constant nodes, whose type nothing tells.

    Args:
        dtype: FLOAT16 or BFLOAT16.
    """

    def __init__(self, dtype: ir.DataType = ir.DataType.FLOAT16) -> None:
        super().__init__()
        self._dtype = dtype

    def requires(self, model: ir.Model) -> None:
        """Require constants as initializers."""
        super().requires(model)
        for node in model.graph:
            if node.op_type == "Constant":
                raise ContractError(node, "expected an initializer: `prepare` lifts constants")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Decide all types first, then rewrite node by node."""
        graph = self._graph = model.graph
        self._types = Types(graph, largest(self._dtype))
        self._versions: dict[tuple[ir.Value, bool], ir.Value] = {}
        initializers = list(graph.initializers.values())
        outputs = [(value, self._types.is_float32_output(value)) for value in graph.outputs]
        for node in list(graph):
            for place, value in self._types.flow.real_inputs(node):
                node.replace_input_with(place, self._version(value, self._types.reads_float32(node, place)))
        for value in self._types.flow.reals:
            if value.const_value is None:
                value.dtype = FLOAT if self._types.is_float32(value) else self._dtype
        for place, (value, in_float32) in enumerate(outputs):
            self._rename_output(place, value, in_float32)
        for value in initializers:
            if value in self._types.flow.reals and not value.uses() and not value.is_graph_output():
                del graph.initializers[value.name]  # type: ignore[arg-type]
        self._drop_old_casts()
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)

    def _suffix(self, in_float32: bool) -> str:
        return "float32" if in_float32 else self._dtype.name.lower()

    def _version(self, value: ir.Value, in_float32: bool) -> ir.Value:
        """Return the value in float32 or in 16 bits; it is cast once, right after its producer."""
        if value.const_value is None and self._types.is_float32(value) == in_float32:
            return value
        if (value, in_float32) not in self._versions:
            self._versions[value, in_float32] = (
                self._tensor(value, in_float32) if value.const_value else self._cast(value, in_float32)
            )
        return self._versions[value, in_float32]

    def _tensor(self, value: ir.Value, in_float32: bool) -> ir.Value:
        if in_float32:
            return value
        (old_name, tensor), dtype = initializer(value), self._dtype
        both = any(self._types.reads_float32(*use) for use in value.uses())
        name = f"{old_name}.{self._suffix(in_float32)}" if both else old_name
        rounded = ir.LazyTensor(
            lambda: ir.tensor(tensor.numpy().astype(dtype.numpy()), dtype=dtype, name=name),
            dtype=dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            cache=False,
        )
        if not both:
            value.name = f"{name}.float32"  # frees the name; nothing reads it, and `call` deletes it
        version = ir.val(name, const_value=rounded)
        self._graph.register_initializer(version)
        return version

    def _cast(self, value: ir.Value, in_float32: bool) -> ir.Value:
        to = FLOAT if in_float32 else self._dtype
        cast = ir.node("Cast", [value], {"to": to}, name=f"cast_{value.name}_to_{self._suffix(in_float32)}")
        result = cast.outputs[0]
        result.name, result.dtype, result.shape = f"{value.name}.{self._suffix(in_float32)}", to, value.shape
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], cast)
        else:
            self._graph.insert_after(producer, cast)
        return result

    def _rename_output(self, place: int, value: ir.Value, in_float32: bool) -> None:
        """Make an output of another type than its value a Cast of it, under the output's name."""
        if self._types.is_float32(value) == in_float32:
            return
        result, name, dtype, shape = (
            self._version(value, in_float32),
            value.name,
            FLOAT if in_float32 else self._dtype,
            value.shape,
        )
        value.name = f"{name}.{self._suffix(not in_float32)}"
        result.name, result.dtype, result.shape = name, dtype, shape
        self._graph.outputs[place] = result

    def _drop_old_casts(self) -> None:
        """Remove the casts of the float32 graph, whose inputs now have the type that they cast to."""
        for node in list(self._graph):
            if node.op_type == "CastLike" and node.outputs[0] in self._types.flow.reals:
                source = node.inputs[0]
            elif node.op_type == "Cast" and node.inputs[0] in self._types.flow.reals | {*self._versions.values()}:
                source = node.inputs[0] if node.outputs[0] in self._types.flow.reals else None
            else:
                continue
            if source is not None and not node.outputs[0].is_graph_output():
                node.outputs[0].replace_all_uses_with(source)
                self._graph.remove(node, safe=True)


def operators_by_type(model: ir.Model) -> dict[str, dict[str, int]]:
    """Count the nodes of each operator by the type of their first output: "float32", "float16" or "bfloat16"."""
    found: dict[str, Counter[str]] = {}
    for node in model.graph:
        dtype = node.outputs[0].dtype
        if dtype in (FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            found.setdefault("float32" if dtype == FLOAT else dtype.name.lower(), Counter())[node.op_type] += 1
    return {name: dict(sorted(counts.items())) for name, counts in sorted(found.items())}

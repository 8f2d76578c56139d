"""A graph in 16 bits executed in float32, with every value that it stores rounded as it says: what a GPU gives.

onnxruntime's CPU knows no bfloat16, and keeps float32 between nodes of float16, which flatters a graph.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

FLOAT = ir.DataType.FLOAT
SIXTEEN_BITS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def emulated(model: ir.Model) -> ir.Model:
    """Changes a typed model without subgraphs, in place; its inputs and outputs of 16 bits are float32 then.

    Types are replaced, not changed: those of a model's values are shared with the model that it was cloned from.
    """
    graph = model.graph
    for value in [*graph.inputs, *graph.initializers.values()]:
        if value.dtype in SIXTEEN_BITS:
            value.type = ir.TensorType(FLOAT)
            if value.const_value is not None:
                value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    for node in [*graph]:
        for value in node.outputs:
            # What has no type is an integer: it is made of integers alone, or of a comparison.
            assert value.dtype is not None or not any(x is not None and x.dtype in SIXTEEN_BITS for x in node.inputs)
            if value.dtype in SIXTEEN_BITS:
                _round(graph, node, value)
    return model


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Whatever reads a value reads it rounded."""
    assert value.dtype is not None
    down = ir.node("Cast", [value], {"to": value.dtype})
    up = ir.node("Cast", [down.outputs[0]], {"to": FLOAT})
    result = up.outputs[0]
    value.replace_all_uses_with(result, replace_graph_outputs=True)
    down.replace_input_with(0, value)
    graph.insert_after(node, [down, up])
    result.name, result.type, result.shape = value.name, ir.TensorType(FLOAT), value.shape
    down.outputs[0].type = ir.TensorType(value.dtype)
    value.name, value.type = f"{value.name}.exact", ir.TensorType(FLOAT)
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", FLOAT)

"""A graph of one weight, read in the ways that exported graphs read theirs."""

import numpy as np
import onnx_ir as ir


def model_of(weight, *, product=None, lookup=False):
    """A graph that reads `weight` [N, K] by MatMul, FusedMatMul or Transpose, and in a Gather."""
    rows, width = weight.shape
    tape = ir.tape.Tape()
    x = ir.val("x", ir.DataType.FLOAT, ["batch_size", "sequence_length", width])
    ids = ir.val("ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
    stored = weight.T if product == "MatMul" else weight
    value = ir.val("weight", const_value=ir.tensor(np.ascontiguousarray(stored), name="weight"))
    inputs, outputs = [], []
    if product is not None:
        right = tape.op("Transpose", [value], {"perm": [1, 0]}) if product == "Transpose" else value
        attributes = {"transB": 1} if product == "FusedMatMul" else {}
        domain = "com.microsoft" if product == "FusedMatMul" else ""
        op_type = "FusedMatMul" if domain else "MatMul"
        outputs.append(tape.op(op_type, [x, right], attributes, domain=domain))
        outputs[-1].name = "product"
        inputs.append(x)
    if lookup:
        outputs.append(tape.op("Gather", [value, ids]))
        outputs[-1].name = "rows"
        inputs.append(ids)
    for output in outputs:
        last = width if output.name == "rows" else rows
        output.dtype, output.shape = ir.DataType.FLOAT, ir.Shape(["batch_size", "sequence_length", last])
    graph = ir.Graph(
        inputs, outputs, nodes=tape.nodes, initializers=[value], opset_imports={"": 21, "com.microsoft": 1}
    )
    return ir.Model(graph, ir_version=10)

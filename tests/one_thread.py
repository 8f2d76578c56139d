"""A graph in onnxruntime on one thread: sums are taken in one order, and tests side by side do not crowd each other."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime


def open_session(graph: ir.Model | onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    """graph: in memory, or a file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if isinstance(graph, ir.Model):
        graph = ir.to_proto(graph)
    content = graph if isinstance(graph, Path) else graph.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

"""What an engine of a real plan computes, by onnxruntime: the graph as built, with bodies for the plugin's nodes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from fake_tensorrt import Execute

from doge_export.trt.on_cpu import runnable


def make_execute(graph: bytes) -> Execute:
    """graph: the ONNX file that the engine was built from."""
    model = runnable(ir.serde.deserialize_model(onnx.load_model_from_string(graph)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]

    def execute(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, feeds), strict=True))

    return execute

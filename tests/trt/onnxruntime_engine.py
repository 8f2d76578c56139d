"""What an engine of a real plan computes, by onnxruntime: the graph as built, with bodies for the plugin's nodes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from fake_tensorrt import Execute
from one_thread import open_session

from doge_export.trt.on_cpu import runnable


def make_execute(graph: bytes) -> Execute:
    """graph: the ONNX file that the engine was built from."""
    model = runnable(ir.serde.deserialize_model(onnx.load_model_from_string(graph)))
    session = open_session(model)
    names = [value.name for value in session.get_outputs()]

    def execute(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, feeds), strict=True))

    return execute

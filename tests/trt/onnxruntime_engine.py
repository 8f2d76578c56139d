"""What an engine of a real plan computes, by onnxruntime: the graph as built, with bodies for the plugin's nodes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from fake_tensorrt import Execute
from one_thread import open_session
from sixteen_bits import emulated

from doge_export.trt.on_cpu import runnable

BFLOAT16 = ir.DataType.BFLOAT16


def make_execute(graph: bytes) -> Execute:
    """graph: the ONNX file that the engine was built from. Arrays of bfloat16 are given and taken as their 16 bits."""
    model = runnable(ir.serde.deserialize_model(onnx.load_model_from_string(graph)))
    ports = [*model.graph.inputs, *model.graph.outputs]
    brain = {value.name for value in ports if value.dtype == BFLOAT16}
    session = open_session(emulated(model) if brain else model)
    names = [value.name for value in session.get_outputs()]

    def execute(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        wide = {name: _wide(array) if name in brain else array for name, array in feeds.items()}
        outputs = dict(zip(names, session.run(names, wide), strict=True))
        return {name: _narrow(array) if name in brain else array for name, array in outputs.items()}

    return execute


def _wide(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _narrow(array: np.ndarray) -> np.ndarray:
    """Of values that are rounded to bfloat16 already."""
    return (array.view(np.uint32) >> 16).astype(np.uint16)

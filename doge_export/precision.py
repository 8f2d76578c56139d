"""Names of precisions, the same in options, in manifests and in Python."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4", "q4f16"]
"""Precision of a graph. The type of a single tensor keeps its name of NumPy and ONNX: float32, float16, bfloat16.

fp32, fp16 and bf16 name the type of weights, activations and caches; int8 and int4 the bits of a weight, with float32
activations; q4f16, as transformers.js calls it, weights of 4 bits with activations and caches in float16.
"""

ADDABLE: tuple[Precision, ...] = ("int8", "int4", "fp16", "q4f16")
"""Precisions of the graphs that can be added beside the fp32 one."""

RENAMED = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""Spellings that earlier versions accepted, and today's name of each."""

"""The one vocabulary for how many bits a graph's numbers have: in options, in manifests and in Python."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
"""fp32, fp16 and bf16: type of weights, activations and caches. int8 and int4: bits of a weight, float32 activations.

The type of a single tensor keeps its name of NumPy and ONNX: float32, float16, bfloat16."""

RENAMED = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""Spellings that were taken before."""

"""Canonical ONNX: what the module computes, before any runtime is thought of."""

from doge_export.graph.trace import trace

__all__ = ["trace"]

"""Canonical ONNX: what the module computes, before any runtime is thought of.

`trace` is imported when first asked for, so that lowering and quantizing need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from doge_export.graph.tracing import trace

__all__ = ["trace"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("doge_export.graph.tracing"), name)

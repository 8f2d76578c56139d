"""Manifests for tests that look at a part of one."""

from __future__ import annotations

from typing import Any

from doge_export.package import GraphEntry, Manifest, SourceEntry

GRAPH = GraphEntry(precision="fp32", interface="growing", opset={"": 21}, ir_version=10, nodes=1)


def minimal_manifest(model: str = "owner/doge", **changes: Any) -> Manifest:
    """Every field that a reader relies on; `files` is what `write_manifest` adds."""
    return Manifest(
        **{
            "doge_export": "0.1.0",
            "source": SourceEntry(model, None),
            "architecture": {},
            "target": "portable",
            "max_length": 64,
            "chunkable_length": 0,
            "cdmoe_routing": None,
            "graphs": {"onnx/model.onnx": GRAPH},
            "validation": {"skipped": "--no-validate"},
            **changes,
        }
    )

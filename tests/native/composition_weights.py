"""A random decoder of a composition, lowered for onnxruntime and written down, as the native decoder finds it."""

from __future__ import annotations

from pathlib import Path

from composition_runs import traits
from compositions import traced
from manifests import minimal_manifest

from doge_export.model import DogeForExport
from doge_export.package.fingerprint import fingerprint
from doge_export.package.manifest import MODEL, GraphEntry, Manifest
from doge_export.package.onnx_file import write_onnx
from doge_export.targets import TARGETS, lower

GRAPH = GraphEntry(precision="fp32", interface="in-place", opset={"": 23}, ir_version=10, nodes=1)


def written_composition(name: str, folder: Path) -> tuple[DogeForExport, Manifest]:
    """Write the graph of a composition to `folder`; return its module and a manifest."""
    module, model = traced(name)
    lower(model, TARGETS["onnxruntime"], traits(name))
    file = folder / MODEL
    file.parent.mkdir(parents=True)
    write_onnx(model, file)
    manifest = minimal_manifest(
        target="onnxruntime",
        architecture=module.architecture.to_dict(),
        max_length=32,
        chunkable_length=32,
        cdmoe_routing="reference" if module.architecture.moe and module.architecture.moe.mixes_tokens else None,
        graphs={MODEL: GRAPH},
        files={MODEL: fingerprint(file)},
    )
    return module, manifest

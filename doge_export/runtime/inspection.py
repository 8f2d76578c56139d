"""Description of an exported folder, read from its manifest and its graphs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from doge_export.errors import DogeExportError, RunFailed
from doge_export.memory import is_out_of_memory, out_of_memory
from doge_export.package.manifest import Manifest, read_manifest


@dataclasses.dataclass(frozen=True)
class Inspection:
    """An exported folder, looked into.

    Attributes:
        folder: where it is.
        manifest: of the folder.
        ports: for each graph "inputs" and "outputs", lists of {"name", "type", "shape"} with dynamic axes by name, as
            onnxruntime sees them; an input that need not be fed has "optional": True. An engine has "engine" too.
    """

    folder: Path
    manifest: Manifest
    ports: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: the manifest, with the ports among the facts of each graph."""
        facts = self.manifest.to_dict()
        graphs = {name: {**graph, **self.ports[name]} for name, graph in facts["graphs"].items()}
        return {**facts, "folder": str(self.folder), "graphs": graphs}


def inspect_folder(folder: Path | str) -> Inspection:
    """Look into an exported folder: its manifest, and the inputs and outputs of each graph.

    Raises:
        DogeExportError: `folder` is not an exported folder, or a graph does not load.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    ports = {
        name: (
            _engine_ports(folder / name)
            if graph.interface == "engine"
            else _graph_ports(folder / name, is_native=graph.interface == "native")
        )
        for name, graph in manifest.graphs.items()
    }
    return Inspection(folder, manifest, ports)


def _graph_ports(file: Path, *, is_native: bool = False) -> dict[str, Any]:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import NoSuchFile

    from doge_export.regular_file import check_files
    from doge_export.runtime.graph import DAMAGED

    check_files(file.parent)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # its errors are raised too
    if is_native:
        from doge_export.runtime.native.backend import native_library
        from doge_export.runtime.native.support import NotNative

        try:
            options.register_custom_ops_library(str(native_library().path))
        except NotNative as why:
            raise DogeExportError(f"{file} is read by the native decoder alone: {why}") from why
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        optional = [{**_described(value), "optional": True} for value in session.get_overridable_initializers()]
        return {
            "inputs": [*map(_described, session.get_inputs()), *optional],
            "outputs": [*map(_described, session.get_outputs())],
        }
    except (*DAMAGED, NoSuchFile) as error:
        if is_out_of_memory(error):
            raise RunFailed(out_of_memory(error)) from error
        reason = " ".join(str(error).split())
        raise DogeExportError(f"onnxruntime cannot load {file}: {reason}; export or download it again") from error


def _engine_ports(file: Path) -> dict[str, Any]:
    """Describe an engine by its sidecar file, without a GPU; "engine" tells how it was built and where it runs."""
    from doge_export.runtime.engine.sidecar import read_sidecar

    facts = read_sidecar(file.parents[1]).to_dict()
    ports = {
        side: [{"name": name, "type": port["dtype"], "shape": port["shape"]} for name, port in facts.pop(side).items()]
        for side in ("inputs", "outputs")
    }
    return {**ports, "engine": facts}


def _described(value: Any) -> dict[str, Any]:
    dtype = value.type.removeprefix("tensor(").removesuffix(")")
    return {"name": value.name, "type": "float32" if dtype == "float" else dtype, "shape": value.shape}

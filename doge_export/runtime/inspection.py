"""Description of an exported folder, read from its manifest and its graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from doge_export.errors import DogeExportError
from doge_export.package.manifest import read_manifest


def inspect_folder(folder: Path | str) -> dict[str, Any]:
    """Describe a folder in JSON values: the manifest, and the "inputs" and "outputs" of each graph.

    Inputs and outputs are lists of {"name", "type", "shape"}, dynamic axes by name, as onnxruntime sees them; an input
    that need not be fed has "optional": True.

    Raises:
        DogeExportError: `folder` is not an exported folder, or a graph does not load.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    facts = manifest.to_dict()
    for name, graph in manifest.graphs.items():
        ports = _engine_ports if graph.interface == "engine" else _graph_ports
        facts["graphs"][name] |= ports(folder / name)
    return {**facts, "folder": str(folder)}


def _graph_ports(file: Path) -> dict[str, Any]:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import NoSuchFile

    from doge_export.runtime.graph import DAMAGED

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # its errors are raised too
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except (*DAMAGED, NoSuchFile) as error:
        reason = " ".join(str(error).split())
        raise DogeExportError(f"onnxruntime cannot load {file}: {reason}; export or download it again") from error
    optional = [{**_described(value), "optional": True} for value in session.get_overridable_initializers()]
    return {
        "inputs": [*map(_described, session.get_inputs()), *optional],
        "outputs": [*map(_described, session.get_outputs())],
    }


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

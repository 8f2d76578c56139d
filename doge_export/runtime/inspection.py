"""What is in an exported folder, read from its manifest and its graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from doge_export.errors import DogeExportError
from doge_export.package.manifest import read_manifest


def inspect_folder(folder: Path | str) -> dict[str, Any]:
    """A folder in JSON values: the manifest, and with each graph its "inputs" and "outputs".

    Those are lists of {"name", "type", "shape"}, dynamic axes by name, as onnxruntime sees them; an input that need not
    be fed has "optional": True.

    Raises DogeExportError when `folder` is not an exported folder or a graph does not load.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    interface = _engine_interface if manifest["target"] == "tensorrt" else _interface
    graphs = {name: {**recorded, **interface(folder / name)} for name, recorded in manifest["graphs"].items()}
    return {**manifest, "folder": str(folder), "graphs": graphs}


def _interface(file: Path) -> dict[str, Any]:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import NoSuchFile

    from doge_export.runtime.graph import DAMAGED

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what it warns of is raised as well
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


def _engine_interface(file: Path) -> dict[str, Any]:
    """As the file beside an engine has it, which needs no GPU; and under "engine" where it came from and runs."""
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

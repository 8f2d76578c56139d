"""Writes a model repository for NVIDIA Triton from an exported folder.

python model_repository.py out repository --precision int8                       # python backend: text in, text out
python model_repository.py features repository --backend onnxruntime --name features   # the graph itself

The python backend opens the folder where it is, engines too, with doge-export installed beside Triton. The onnxruntime
backend gets the graph and its weights, and clients speak token ids; of models that write text it takes the portable
graph, whose caches clients send back. Not run in Triton: config.pbtxt is checked by model_config.py.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from model_config import DATA_TYPES, Word, check, read, written

from doge_export import DogeExportError
from doge_export.package import read_manifest
from doge_export.runtime.graph import graph_file, open_graph

PYTHON_MODEL = Path(__file__).with_name("python_model.py")


def group(on_gpu: bool, count: int) -> dict[str, Any]:
    """Return where instances run."""
    return {"count": count, "kind": Word("KIND_GPU" if on_gpu else "KIND_CPU")}


def python_config(name: str, folder: Path, precision: str | None, on_gpu: bool, count: int) -> dict[str, Any]:
    """Return the configuration of the python backend, with the names that Triton's generate endpoint has."""
    optional = {"max_tokens": "TYPE_INT32", "temperature": "TYPE_FP32", "seed": "TYPE_INT64"}
    inputs: list[dict[str, Any]] = [{"name": "text_input", "data_type": Word("TYPE_STRING"), "dims": [1]}]
    for each, kind in optional.items():
        inputs.append({"name": each, "data_type": Word(kind), "dims": [1], "optional": Word("true")})
    parameters = {"folder": str(folder.resolve()), "precision": precision or ""}
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": 0,
        "input": inputs,
        "output": [{"name": "text_output", "data_type": Word("TYPE_STRING"), "dims": [1]}],
        "instance_group": [group(on_gpu, count)],
        "model_transaction_policy": {"decoupled": Word("true")},
        "parameters": [{"key": key, "value": {"string_value": value}} for key, value in parameters.items()],
    }


def tensor(value: Any) -> dict[str, Any]:
    """Return an input or an output of a graph; Triton has no scalar, so one is reshaped to one."""
    extents = [extent if isinstance(extent, int) else -1 for extent in value.shape]
    described: dict[str, Any] = {"name": value.name, "data_type": Word(DATA_TYPES[value.type]), "dims": extents or [1]}
    return described if extents else {**described, "reshape": {"shape": []}}


def graph_config(name: str, folder: Path, graph: str, on_gpu: bool, count: int) -> dict[str, Any]:
    """Return the configuration of the onnxruntime backend; every extent is told, batch included."""
    session = open_graph(folder, graph)
    inputs = [tensor(value) for value in session.get_inputs()]
    for value in session.get_overridable_initializers():
        inputs.append({**tensor(value), "optional": Word("true")})
    return {
        "name": name,
        "backend": "onnxruntime",
        "max_batch_size": 0,
        "default_model_filename": Path(graph).name,
        "input": inputs,
        "output": [tensor(value) for value in session.get_outputs()],
        "instance_group": [group(on_gpu, count)],
    }


def write(
    folder: Path, repository: Path, name: str, backend: str, precision: str | None, on_gpu: bool, count: int
) -> Path:
    """Write a model into a repository, and return its folder.

    Raises:
        DogeExportError: the backend cannot run this folder, or the repository has such a model.
    """
    manifest, out = read_manifest(folder), repository / name
    graph = graph_file(folder, manifest, precision)
    interface = manifest.graphs[graph].interface
    if backend == "onnxruntime" and interface not in ("growing", "one-call"):
        raise DogeExportError(
            f"the onnxruntime backend cannot run a graph of interface {interface}, whose caches are bound in place: "
            "export with --target portable, or take the python backend"
        )
    if backend == "python" and manifest.task != "text-generation":
        raise DogeExportError(f"the python backend of this sample writes text, not {manifest.task}: take onnxruntime")
    if out.exists():
        raise DogeExportError(f"{out} is there already: remove it, or give another --name")
    repository.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=repository))
    try:
        version = staged / "1"
        version.mkdir()
        if backend == "python":
            config = python_config(name, folder, precision, on_gpu, count)
            shutil.copy(PYTHON_MODEL, version / "model.py")
        else:
            config = graph_config(name, folder, graph, on_gpu, count)
            for each in manifest.files:
                if each in (graph, f"{graph}_data"):
                    shutil.copy(folder / each, version)
        text = written(config)
        check(read(text))
        (staged / "config.pbtxt").write_text(text, encoding="utf-8")
        staged.chmod(0o755)
        staged.rename(out)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return out


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an exported folder")
    parser.add_argument("repository", type=Path, help="the model repository; made if it is missing")
    parser.add_argument("--name", help="the model's name; by default that of the folder")
    parser.add_argument("--backend", choices=["python", "onnxruntime"], default="python")
    parser.add_argument("--precision")
    parser.add_argument("--gpu", action="store_true", help="instances of kind KIND_GPU")
    parser.add_argument("--count", type=int, default=1, help="instances")
    a = parser.parse_args()
    name = a.name or a.folder.resolve().name
    try:
        out = write(a.folder, a.repository, name, a.backend, a.precision, a.gpu, a.count)
    except DogeExportError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{out}: try tritonserver --model-repository {a.repository}")


if __name__ == "__main__":
    main()

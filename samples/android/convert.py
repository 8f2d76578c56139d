"""Convert a portable graph to what onnxruntime-android's small builds read: `python convert.py FOLDER OUT [PRECISION]`.

OUT gets `model.ort`, and `required_operators_and_types.config`, the operators and types that a build with
`--include_ops_by_config` needs to hold.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path


def convert(folder: Path, out: Path, precision: str = "int8") -> Path:
    """Write the graph of a precision as an .ort file, with the list of its operators; return the file."""
    manifest = json.loads((folder / "doge_export.json").read_text(encoding="utf-8"))
    found = [name for name, graph in manifest["graphs"].items() if graph["precision"] == precision]
    if manifest["target"] != "portable" or not found:
        sys.exit(f"error: {folder} has no portable {precision} graph: doge-export onnx MODEL OUT --target portable")
    out.mkdir(parents=True, exist_ok=True)
    graph = out / "model.onnx"
    shutil.copyfile(folder / found[0], graph)
    tool = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", str(graph)]
    options = ["--optimization_style", "Fixed", "--target_platform", "arm", "--enable_type_reduction"]
    done = subprocess.run([*tool, *options], capture_output=True, text=True, check=False)
    graph.unlink()
    if done.returncode:
        sys.exit(f"error: onnxruntime does not convert it: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return out / "model.ort"


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("error: give a folder and where to write: python convert.py FOLDER OUT [PRECISION]")
    sys.stdout.write(f"{convert(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4])}\n")

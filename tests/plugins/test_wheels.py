"""From an empty environment: the extra `plugin` is enough to compile the kernels and the plugin."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from doge_export.plugin.architectures import held_by
from doge_export.processors import allowed_processors

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_extra_plugin_compiles_where_there_is_no_cuda_toolkit(tmp_path):
    """nvcc is hidden from PATH; wheels come from the index that pip is set up for.

    In less than ten minutes of all processors, whatever else they do; the minutes that it took are printed.
    """
    if sys.platform != "linux" or shutil.which("c++") is None:
        pytest.skip("needs Linux and a C++ compiler")
    started = time.monotonic()
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    without_nvcc = [each for each in os.environ["PATH"].split(os.pathsep) if not (Path(each) / "nvcc").exists()]
    path = os.pathsep.join([str(folder / "bin"), *without_nvcc])
    hidden = ("PYTHONPATH", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "DOGE_TRT_INCLUDE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"PATH": path, "DOGE_EXPORT_CACHE": str(tmp_path / "cache")}
    assert shutil.which("nvcc", path=path) is None

    def run(*command: object) -> str:
        done = subprocess.run(
            [str(part) for part in command], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", f"{ROOT}[plugin]")
    installed = time.monotonic()
    command = folder / "bin" / "doge-export"
    tools = json.loads(run(command, "plugin", "info", "--json"))["tools"]
    assert Path(tools["nvcc"]["path"]).is_relative_to(folder)
    assert tools["TensorRT headers"]["path"] is None
    built = json.loads(run(command, "plugin", "build", "--compute-capability", "89", "--json"))
    assert built["missing"] == []
    assert {held_by(library) for name, library in built["libraries"].items() if "autoload" not in name} == {("89",)}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = used.ru_utime + used.ru_stime
    sys.stdout.write(
        f"installed in {installed - started:.0f} s, compiled in {time.monotonic() - installed:.0f} s; "
        f"{busy:.0f} s of processors\n"
    )
    assert busy / allowed_processors() < 600

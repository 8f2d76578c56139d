"""The C++ sample compiles without a warning where TensorRT's headers are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from doge_export.plugin.toolchain import find_toolchain

SAMPLE = Path(__file__).parents[2] / "samples" / "trt_cpp"


def test_it_compiles(tmp_path):
    if not os.environ.get("DOGE_TRT_INCLUDE_DIR"):
        pytest.skip("no TensorRT headers: DOGE_TRT_INCLUDE_DIR does not name the folder of NvInfer.h")
    tools = find_toolchain()
    for tool in (tools.cmake, tools.cxx, tools.cuda_headers):
        if tool.missing:
            pytest.skip(tool.missing)
    include = os.environ["DOGE_TRT_INCLUDE_DIR"]
    configure = [str(tools.cmake.path), "-S", str(SAMPLE), "-B", str(tmp_path), f"-DDOGE_TRT_INCLUDE_DIR={include}"]
    for command in (configure, [str(tools.cmake.path), "--build", str(tmp_path)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    assert [*tmp_path.rglob("decoder.cpp.o")] and [*tmp_path.rglob("main.cpp.o")]

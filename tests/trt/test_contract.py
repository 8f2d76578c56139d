"""Nothing of TensorRT, CUDA or polygraphy is named that is not there, and the recorder lets nothing else pass.

Builder and runtime run over the recorder in the tests beside this one, which looks up each method, property and
signature; here every name in the source is looked up too, also on lines that no test reaches.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_cuda import FakeCuda, real_cuda
from fake_tensorrt import Fake, FakeTensorRT
from pages import lines_of
from real_builds import rtx as import_rtx
from signatures import check_call, overloads
from tensorrt_on_cpu import import_tensorrt

import doge_export
from doge_export.runtime.engine.just_in_time import PROFILE_STRATEGIES
from doge_export.trt.builder import _HARDWARE

PACKAGE = Path(doge_export.__file__).parent
SOURCES = sorted(file for folder in ("trt", "runtime/engine") for file in (PACKAGE / folder).glob("*.py"))


def chains(name: str) -> set[tuple[str, ...]]:
    """Every trt.A.B of the package as ("A", "B"), for `name` "trt"."""
    found = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            parts: list[str] = []
            while isinstance(node, ast.Attribute):
                parts.insert(0, node.attr)
                node = node.value
            is_it = isinstance(node, ast.Name) and node.id == name
            if parts and is_it:
                found.add(tuple(parts))
    return found


def test_every_name_of_tensorrt_exists():
    real = import_tensorrt()
    named = chains("trt")
    assert {("Builder",), ("OnnxParser",), ("Runtime",), ("BuilderFlag", "TF32"), ("LayerType", "PLUGIN_V3")} <= named
    assert len(named) > 15
    for parts in named:
        known = real
        for part in parts:
            assert hasattr(known, part), f"tensorrt has no {'.'.join(parts)}"
            known = getattr(known, part)


def test_every_name_of_tensorrt_for_rtx_exists():
    """What is asked of either TensorRT, and what of this one alone: in the code, such a module is called rtx."""
    real = import_rtx()
    of_rtx = chains("rtx")
    assert {("ComputeCapability", "__members__"), ("BuilderFlag", "REQUIRE_USER_ALLOCATION")} <= of_rtx
    for parts in of_rtx | chains("trt"):
        known = real
        for part in parts:
            assert hasattr(known, part), f"{real.__name__} has no {'.'.join(parts)}"
            known = getattr(known, part)
    for strategy in PROFILE_STRATEGIES.values():
        assert hasattr(real.DynamicShapesKernelSpecializationStrategy, strategy)
    assert [name for name in ("SM75", "SM86", "SM89", "SM120") if name not in real.ComputeCapability.__members__] == []


def test_names_that_some_versions_lack_exist_in_this_one():
    real = import_tensorrt()
    assert hasattr(real.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    assert hasattr(real.OnnxParserFlag, "ENABLE_PLUGIN_OVERRIDE")
    for level in _HARDWARE.values():
        assert hasattr(real.HardwareCompatibilityLevel, level)


def test_every_name_of_cuda_exists():
    real = real_cuda()
    if real is None:
        pytest.skip("no cuda-python: pip install cuda-bindings")
    source = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    functions = {*re.findall(r'"(cuda[A-Z]\w+)"', source)} - {"cudaErrorMemoryAllocation"}
    assert len(functions) > 10
    for name in functions:
        assert callable(getattr(real, name))
    for parts in {*re.findall(r"(?:runtime|_cuda|attribute)\.(cuda\w+(?:\.cuda\w+)?)", source)}:
        known = real.cudaDeviceAttr if parts.startswith("cudaDevAttr") else real
        for part in parts.split("."):
            assert hasattr(known, part), parts
            known = getattr(known, part)


def test_the_recorder_refuses_what_tensorrt_has_not():
    real = import_tensorrt()
    trt = FakeTensorRT(real, FakeCuda())
    with pytest.raises(AssertionError, match="has no BuilderFlags"):
        _ = trt.BuilderFlags
    config = Fake(trt, "IBuilderConfig")
    with pytest.raises(AssertionError, match="has no max_workspace_size"):
        config.max_workspace_size = 1
    with pytest.raises(AssertionError, match="cannot be set"):
        config.num_optimization_profiles = 2
    with pytest.raises(AssertionError, match="is none of"):
        config.set_flag("TF32")
    with pytest.raises(AssertionError, match="is none of"):
        config.set_memory_pool_limit(real.MemoryPoolType.WORKSPACE)
    with pytest.raises(AssertionError, match="is none of"):
        trt.Builder()


def test_signatures_are_read_from_the_bindings():
    real = import_tensorrt()
    (one,) = overloads(real.IExecutionContext.set_tensor_address)
    assert [name for name, _, _ in one] == ["name", "memory"]
    assert len(overloads(real.IExecutionContext.set_input_shape)) == 3
    check_call(real, "x", real.IExecutionContext.set_input_shape, ("x", (1, 2)))
    with pytest.raises(AssertionError):
        check_call(real, "x", real.IExecutionContext.set_input_shape, (1, (1, 2)))


def test_polygraphy_has_the_options_that_the_readme_uses():
    program = shutil.which("polygraphy", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("polygraphy is not installed")
    lines = lines_of("polygraphy run")
    assert lines
    done = subprocess.run([program, "run", "--help"], capture_output=True, text=True, check=True, timeout=60)
    for option in re.findall(r"(?<= )--[\w-]+", " ".join(lines)):
        assert option in done.stdout, option

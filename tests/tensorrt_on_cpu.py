"""TensorRT's Python bindings on a machine without TensorRT's libraries, and programs that need a process of their own.

Never call `tensorrt.Runtime` where there is no GPU driver: it ends the process.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

LEAN_ADVICE = "pip install --no-deps tensorrt-lean-cu13-libs tensorrt-lean-cu13-bindings"
BINDINGS_ADVICE = "pip install --no-deps tensorrt-cu13-bindings"
_STUB = Path(__file__).parents[1] / "plugins" / "tests" / "trt_stub" / "stub_nvinfer.c"
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


def require_lean_runtime(major: int | None = None) -> None:
    """Skips the test where the lean runtime, of this major version, is not installed; does not load it."""
    spec = importlib.util.find_spec("tensorrt_lean_bindings")
    if spec is None or spec.origin is None:
        pytest.skip(f"no lean runtime of TensorRT: {LEAN_ADVICE}")
    version = re.search(r'^__version__ = "(\d+)', Path(spec.origin).read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    if major not in (None, int(version[1])):
        pytest.skip(f"the plugin was built for TensorRT {major}, and the lean runtime is one of TensorRT {version[1]}")


def tensorrt_major(plugin: Path) -> int | None:
    """The major version of NVIDIA's headers that the plugin was compiled with; None: with our own, for all."""
    return int(ctypes.CDLL(str(plugin)).doge_plugin_tensorrt_version() // 10000) or None


def require_bindings() -> None:
    """Skips the test where TensorRT's bindings are not installed; does not load them."""
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip(f"no bindings of TensorRT: {BINDINGS_ADVICE}")


@functools.cache
def import_tensorrt() -> ModuleType:
    """The module `tensorrt`, real in every name, enum and signature; also what `import tensorrt` gives from then on.

    Where TensorRT's libraries are not installed, stubs stand in for them: factories such as `Builder` raise TypeError.
    The registry of plugins is the lean runtime's, where that is installed; otherwise leave it alone. Skips the test
    without bindings or without a C compiler for the stubs.
    """
    require_bindings()
    if importlib.util.find_spec("tensorrt_lean_bindings") is not None:
        importlib.import_module("tensorrt_lean_bindings")
    try:
        module = importlib.import_module("tensorrt_bindings")
    except ImportError:
        _load_stubs()
        module = importlib.import_module("tensorrt_bindings")
    sys.modules.setdefault("tensorrt", module)
    return module


def _load_stubs() -> None:
    """The stub under the sonames that the bindings ask for: what the process has of that soname is taken."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make stubs of TensorRT's libraries with: install gcc")
    spec = importlib.util.find_spec("tensorrt_bindings")
    assert spec is not None and spec.origin is not None
    extension = (Path(spec.origin).parent / "tensorrt.so").read_bytes()
    asked = re.search(rb"libnvinfer\.so\.(\d+)", extension)
    assert asked is not None, f"{spec.origin} does not say which libnvinfer it needs"
    major = asked[1].decode()
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f'-DDOGE_TENSORRT_MAJOR="{major}"']
    with tempfile.TemporaryDirectory(prefix="stub-nvinfer-") as folder:
        for name in _LIBRARIES:
            library = Path(folder) / f"lib{name}.so.{major}"
            command = [compiler, *flags, f"-Wl,-soname,{library.name}", str(_STUB), "-o", str(library), "-ldl"]
            subprocess.run(command, check=True)
            ctypes.CDLL(str(library))


def in_a_process(function: Callable[..., Any], *arguments: Any) -> tuple[Any, list[str]]:
    """What a module's function gives in a fresh Python, and the lines it wrote to stderr.

    A registry belongs to its process, and what ends that process must not end the tests. Arguments and result are those
    that JSON can carry.
    """
    file = Path(function.__code__.co_filename)
    program = (
        f"import json, sys; sys.path[:0] = [{str(file.parent)!r}, {str(Path(__file__).parent)!r}]; "
        f"from {file.stem} import {function.__name__}; "
        f"print('\\n' + json.dumps({function.__name__}(*json.loads(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", program, json.dumps([str(a) if isinstance(a, Path) else a for a in arguments])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{function.__name__} ended with {done.returncode}: {done.stderr}"
    return json.loads(done.stdout.splitlines()[-1]), done.stderr.splitlines()

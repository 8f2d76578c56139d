"""The plugin, compiled once for all tests and all test processes; again only what has changed since."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from doge_export.plugin.build import KERNELS, TENSORRT_PLUGIN
from doge_export.plugin.compiling import CompileSettings, compile_plugin
from doge_export.plugin.library import KernelLibrary
from doge_export.plugin.sources import plugin_sources
from doge_export.plugin.toolchain import Toolchain, find_toolchain

sys.path.insert(0, str(plugin_sources() / "tests"))  # operator_cases: shared with the check on a GPU

BUILDS = Path(__file__).parents[2] / "build" / "plugins"
"""Ignored by git. A build folder holds absolute paths, so each checkout has its own."""


@pytest.fixture(scope="session")
def toolchain() -> Toolchain:
    """What compiles here; TensorRT's headers only where DOGE_TRT_INCLUDE_DIR names them."""
    found = find_toolchain()
    if found.cmake.missing or found.cxx.missing:
        pytest.skip(found.cmake.missing or found.cxx.missing or "")
    return found


@pytest.fixture(scope="session")
def compiled(toolchain: Toolchain) -> Callable[..., Path]:
    """Compiles all there is (or one target), tests included; the build folder. With `architectures`, kernels too."""
    done: dict[tuple[tuple[str, ...], str], Path] = {}

    def compile_once(*architectures: str, target: str = "all") -> Path:
        if architectures and toolchain.nvcc.missing:
            pytest.skip(toolchain.nvcc.missing)
        if (architectures, target) not in done:
            tensorrt = bool(os.environ.get("DOGE_TRT_INCLUDE_DIR")) and toolchain.cuda_headers.path is not None
            settings = CompileSettings(architectures, tensorrt=tensorrt, tests=True)
            tree = BUILDS / "-".join(["cpu", *architectures, *(["tensorrt"] if tensorrt else [])])
            tree.mkdir(parents=True, exist_ok=True)
            with (tree / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                log = tree / f"{target}.log"
                compile_plugin(plugin_sources(), tree, settings, toolchain, log=log, targets=[target])
            done[architectures, target] = tree
        return done[architectures, target]

    return compile_once


@pytest.fixture(scope="session")
def cpu_tree(compiled: Callable[..., Path]) -> Path:
    """The build folder without kernels: bin/ holds the test programs, lib/ the libraries."""
    return compiled()


@pytest.fixture(scope="session")
def library(compiled: Callable[..., Path]) -> KernelLibrary:
    """The two operators of the CPU reference; nothing else need compile for it."""
    return KernelLibrary(compiled(target="doge_kernels_c") / "lib" / KERNELS)


@pytest.fixture(scope="session")
def trt_library(cpu_tree: Path, toolchain: Toolchain) -> Path:
    """The TensorRT plugin without kernels; libdoge_trt_autoload.so lies beside it."""
    if not os.environ.get("DOGE_TRT_INCLUDE_DIR"):
        pytest.skip("no TensorRT headers: DOGE_TRT_INCLUDE_DIR does not name the folder of NvInfer.h")
    if toolchain.cuda_headers.missing:
        pytest.skip(toolchain.cuda_headers.missing)
    return cpu_tree / "lib" / TENSORRT_PLUGIN

"""The plugin, compiled once for all tests and all test processes; again only what has changed since."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plugin_tree import FP16_HEAD_SIZES, HEAD_SIZES, compiled_tree

from doge_export.plugin.build import KERNELS, TENSORRT_PLUGIN
from doge_export.plugin.library import KernelLibrary
from doge_export.plugin.sources import plugin_sources
from doge_export.plugin.toolchain import Toolchain, find_toolchain

sys.path.insert(0, str(plugin_sources() / "tests"))  # modules that are shared with the check on a GPU

from emulated_library import EMULATED, EmulatedLibrary
from gpu_correctness import Libraries


@pytest.fixture(scope="session")
def toolchain() -> Toolchain:
    """What compiles here; NVIDIA's headers of TensorRT where DOGE_TRT_INCLUDE_DIR names them."""
    found = find_toolchain()
    if found.cmake.missing or found.cxx.missing:
        pytest.skip(found.cmake.missing or found.cxx.missing or "")
    return found


@pytest.fixture(scope="session")
def compiled(toolchain: Toolchain) -> Callable[..., Path]:
    """`plugin_tree.compiled_tree` with the tools that are here; skips where kernels are wanted and there is no nvcc."""

    def compile_once(*architectures: str, **options: Any) -> Path:
        if architectures and toolchain.nvcc.missing:
            pytest.skip(toolchain.nvcc.missing)
        return compiled_tree(toolchain, *architectures, **options)

    return compile_once


@pytest.fixture(scope="session")
def gpu_architecture() -> str | None:
    """The compute capability of this machine's GPU, such as "89"; None: there is none that PyTorch can use."""
    import torch

    return "{}{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else None


@pytest.fixture(scope="session")
def compiled_with_kernels(compiled: Callable[..., Path], gpu_architecture: str | None) -> Callable[[str], Path]:
    """Compiles one target with kernels for this machine's GPU; the build folder.

    Without a GPU they are compiled for the RTX 4090 and some head sizes: nvcc takes 10 seconds for each.
    `pytest -m slow` compiles the other sizes and GPUs.
    """
    if gpu_architecture is None:
        sizes = {"head_sizes": HEAD_SIZES, "fp16_head_sizes": FP16_HEAD_SIZES}
        return lambda target: compiled("89", target=target, **sizes)
    return lambda target: compiled(gpu_architecture, target=target)


@pytest.fixture(scope="session")
def cpu_tree(compiled: Callable[..., Path]) -> Path:
    """The build folder without kernels: bin/ holds the test programs, lib/ the libraries."""
    return compiled()


@pytest.fixture(scope="session")
def library(compiled: Callable[..., Path]) -> KernelLibrary:
    """The two operators of the CPU reference; nothing else need compile for it."""
    return KernelLibrary(compiled(target="doge_kernels_c") / "lib" / KERNELS)


@pytest.fixture(scope="session")
def emulated_libraries(compiled_with_kernels: Callable[[str], Path], library: KernelLibrary) -> Libraries:
    """The kernels as tests/emulated runs them on the CPU, and the reference."""
    return Libraries(EmulatedLibrary(compiled_with_kernels("doge_emulated_c") / "lib" / EMULATED), library)


@pytest.fixture(scope="session")
def emulated_libraries_of_every_size(compiled: Callable[..., Path], library: KernelLibrary) -> Libraries:
    """The same with kernels for every head size: minutes of nvcc."""
    return Libraries(EmulatedLibrary(compiled("89", target="doge_emulated_c") / "lib" / EMULATED), library)


@pytest.fixture(scope="session")
def trt_library(compiled: Callable[..., Path]) -> Path:
    """The TensorRT plugin without kernels; libdoge_trt_autoload.so lies beside it."""
    return compiled() / "lib" / TENSORRT_PLUGIN

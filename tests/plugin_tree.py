"""Build folders of the plugin that all tests and test processes share: compiled once, again only what has changed."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from doge_export.plugin.compiling import CompileSettings, compile_plugin
from doge_export.plugin.sources import plugin_sources
from doge_export.plugin.toolchain import Toolchain

BUILDS = Path(__file__).parents[1] / "build" / "plugins"
"""Ignored by git. A build folder holds absolute paths, so each checkout has its own."""

HEAD_SIZES, FP16_HEAD_SIZES = (64,), (64, 80, 128)
"""Attention's kernels that are compiled by default: those of published models and, of one type, a size that is no power
of two. `pytest -m slow` compiles all."""


@contextlib.contextmanager
def shared_objects(toolchain: Toolchain) -> Iterator[None]:
    """Let CMake take from one build folder what another has compiled already (compile_once.sh)."""
    state = hashlib.sha256(repr((toolchain.cxx.path, toolchain.cxx.version)).encode())
    for file in sorted(path for path in plugin_sources().rglob("*") if path.suffix in (".h", ".cpp")):
        state.update(file.read_bytes())
    objects = BUILDS / "objects" / state.hexdigest()[:16]
    objects.mkdir(parents=True, exist_ok=True)
    launcher = Path(__file__).with_name("compile_once.sh")
    environment = {"DOGE_TEST_OBJECTS": str(objects), "CMAKE_CXX_COMPILER_LAUNCHER": f"sh;{launcher}"}
    with mock.patch.dict(os.environ, environment):
        yield


@functools.cache
def compiled_tree(
    toolchain: Toolchain,
    *architectures: str,
    target: str = "all",
    head_sizes: tuple[int, ...] = (),
    fp16_head_sizes: tuple[int, ...] = (),
) -> Path:
    """Compile all there is (or one target), tests included, and return the build folder.

    Args:
        toolchain: what compiles.
        architectures: GPUs to compile kernels for; none: the libraries have no kernels.
        target: of CMake.
        head_sizes: of attention's kernels; none: all.
        fp16_head_sizes: the same for float16; none: `head_sizes`.
    """
    headers = toolchain.headers
    settings = CompileSettings(architectures, headers.path is not None, True, head_sizes, fp16_head_sizes)
    parts = ["cpu", *architectures, *(f"d{size}" for size in fp16_head_sizes or head_sizes)]
    parts += [f"tensorrt{headers.version}"] if headers.path else []
    tree = BUILDS / "-".join(parts)
    tree.mkdir(parents=True, exist_ok=True)
    with (tree / "lock").open("w") as lock, shared_objects(toolchain):
        fcntl.flock(lock, fcntl.LOCK_EX)
        log = tree / f"{target}.log"
        compile_plugin(plugin_sources(), tree, settings, toolchain, jobs=os.cpu_count(), log=log, targets=[target])
    return tree

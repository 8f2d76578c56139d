"""Build folders of the plugin that all tests and test processes share: compiled once, again only what has changed."""

from __future__ import annotations

import fcntl
import functools
import os
from pathlib import Path

from doge_export.plugin.compiling import CompileSettings, compile_plugin
from doge_export.plugin.sources import plugin_sources
from doge_export.plugin.toolchain import Toolchain

BUILDS = Path(__file__).parents[1] / "build" / "plugins"
"""Ignored by git. A build folder holds absolute paths, so each checkout has its own."""


@functools.cache
def compiled_tree(
    toolchain: Toolchain, *architectures: str, target: str = "all", head_sizes: tuple[int, ...] = ()
) -> Path:
    """Compile all there is (or one target), tests included, and return the build folder.

    Args:
        toolchain: what compiles.
        architectures: GPUs to compile kernels for; none: the libraries have no kernels.
        target: of CMake.
        head_sizes: of attention's kernels; none: all.
    """
    headers = toolchain.headers
    settings = CompileSettings(architectures, headers.path is not None, tests=True, head_sizes=head_sizes)
    parts = ["cpu", *architectures, *(f"d{size}" for size in head_sizes)]
    parts += [f"tensorrt{headers.version}"] if headers.path else []
    tree = BUILDS / "-".join(parts)
    tree.mkdir(parents=True, exist_ok=True)
    with (tree / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        log = tree / f"{target}.log"
        compile_plugin(plugin_sources(), tree, settings, toolchain, jobs=os.cpu_count(), log=log, targets=[target])
    return tree

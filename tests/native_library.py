"""The library of the native decoder, compiled once for all tests and test processes."""

from __future__ import annotations

import fcntl
import functools
from pathlib import Path

import pytest

from doge_export.errors import DogeExportError
from doge_export.plugin.compile_cpu import compile_cpu
from doge_export.plugin.cpp_compiler import find_cpp_compiler
from doge_export.plugin.cpu_library import cpu_sources, find_cpu_library
from doge_export.plugin.cpu_targets import library_name
from doge_export.plugin.sources import native_hash

BUILDS = Path(__file__).parents[1] / "build" / "cpu"
"""Ignored by git; only the newest build is kept."""


@functools.cache
def native_file() -> Path:
    """The library of the present sources: the installed one, else one that is compiled into the checkout."""
    try:
        return find_cpu_library().path
    except DogeExportError:
        pass
    sources = cpu_sources()
    library = BUILDS / native_hash(sources)[:16] / library_name()
    BUILDS.mkdir(parents=True, exist_ok=True)
    with (BUILDS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            try:
                compiler = find_cpp_compiler()
            except DogeExportError as error:
                pytest.skip(str(error))
            library.parent.mkdir(exist_ok=True)
            staged = library.with_suffix(".new")
            compile_cpu(sources, staged, compiler)
            staged.replace(library)
    return library

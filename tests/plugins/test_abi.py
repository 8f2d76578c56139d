"""Our declarations of TensorRT's interface (plugins/trt/abi) are NVIDIA's: sizes, names, and who is called by a call.

DOGE_TRT_HEADERS names folders of NvInfer.h, one for each release, with colons between; else DOGE_TRT_INCLUDE_DIR does.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from pathlib import Path

import pytest

from doge_export.plugin.sources import plugin_sources

FOLDERS = [
    folder
    for folder in (os.environ.get("DOGE_TRT_HEADERS") or os.environ.get("DOGE_TRT_INCLUDE_DIR") or "").split(":")
    if folder
]


class Library:
    """layout.cpp over one set of declarations."""

    def __init__(self, file: Path) -> None:
        self.c = ctypes.CDLL(str(file))
        for name in ("facts", "called", "seen"):
            getattr(self.c, f"layout_{name}").restype = ctypes.c_char_p
        self.c.layout_registry.restype = ctypes.c_void_p

    def facts(self) -> list[str]:
        return self.c.layout_facts().decode().splitlines()

    def calls(self, other: Library, registry: Library) -> tuple[list[str], list[str]]:
        """What `other` noted of being called by this library, and what this library saw."""
        objects = (ctypes.c_void_p * 6)()
        other.c.layout_objects(objects)
        self.c.layout_call(objects, ctypes.c_void_p(registry.c.layout_registry()))
        called = other.c.layout_called().decode().splitlines()
        called += registry.c.layout_called().decode().splitlines() if registry is not other else []
        return called, self.c.layout_seen().decode().splitlines()


@pytest.fixture
def compiled_layout(toolchain, tmp_path):
    """Compiles layout.cpp over our own declarations, or over NVIDIA's in a folder."""
    sources = plugin_sources()

    def compile_layout(name: str, *options: str) -> Library:
        file = tmp_path / f"{name}.so"
        command = [toolchain.cxx.path, "-std=c++17", "-O0", "-shared", "-fPIC", "-fvisibility=hidden", "-w", *options]
        command += [f"-I{sources / 'trt' / 'abi'}", sources / "tests" / "trt_abi" / "layout.cpp", "-o", file]
        subprocess.run(command, check=True)
        return Library(file)

    return compile_layout


def major(folder: str) -> int:
    found = re.search(r"_MAJOR(?:_ENTERPRISE)? (\d+)", (Path(folder) / "NvInferVersion.h").read_text())
    assert found is not None
    return int(found[1])


def ours(compiled_layout, generation: int) -> Library:
    return compiled_layout(f"ours{generation}", *(["-DDOGE_TEN"] if generation == 10 else []))


@pytest.mark.parametrize("folder", FOLDERS or [None], ids=lambda folder: Path(folder).name if folder else "none")
def test_our_declarations_are_nvidias(folder, compiled_layout, toolchain):
    if folder is None:
        pytest.skip("no TensorRT headers: DOGE_TRT_HEADERS does not name folders of NvInfer.h")
    if toolchain.cuda_headers.missing:
        pytest.skip(toolchain.cuda_headers.missing)
    includes = [f"-isystem{folder}", f"-isystem{toolchain.cuda_headers.path}", "-DDOGE_NVIDIA_HEADERS"]
    nvidias, own = compiled_layout("nvidias", *includes), ours(compiled_layout, major(folder))
    assert own.facts() == nvidias.facts()
    assert len(own.facts()) > 80
    expected = own.calls(own, own)
    assert len(expected[0]) >= 50 and len(expected[1]) >= 50
    for caller, callee in ((own, nvidias), (nvidias, own), (nvidias, nvidias)):
        called, seen = caller.calls(callee, own)
        assert sorted(called) == sorted(expected[0]) if callee is nvidias else called == expected[0]
        assert seen == expected[1]

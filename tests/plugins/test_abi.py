"""Our declarations of TensorRT's interface (plugins/trt/abi) are NVIDIA's: sizes, names, and who is called by a call.

DOGE_TRT_HEADERS names folders of NvInfer.h, one for each release, with colons between; else DOGE_TRT_INCLUDE_DIR does.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import re
import shutil
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

    def compile_layout(name: str, *options: str, abi: Path | None = None) -> Library:
        file = tmp_path / f"{name}.so"
        command = [toolchain.cxx.path, "-std=c++17", "-O0", "-shared", "-fPIC", "-fvisibility=hidden", "-w", *options]
        command += [f"-I{abi or sources / 'trt' / 'abi'}", sources / "tests" / "trt_abi" / "layout.cpp", "-o", file]
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
    assert agree(own, nvidias)


def agree(own: Library, other: Library) -> bool:
    """Whether each calls the objects of the other as its own; only ours have a registry."""
    called, seen = own.calls(own, own)
    assert len(called) >= 50 and len(seen) >= 50
    pairs = [caller.calls(callee, own) for caller, callee in ((own, other), (other, own), (other, other))]
    return all((sorted(each), told) == (sorted(called), seen) for each, told in pairs) and pairs[1][0] == called


SWAPPED = {
    "order": (
        "int32_t getNbTactics() noexcept { return 0; }",
        "int32_t getFormatCombinationLimit() noexcept { return 100; }",
    ),
    "destructor": (
        "virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;",
        "virtual ~IVersionedInterface() noexcept = default;",
    ),
    "members": ("    DataType type;\n", "    float scale;"),
    "value": ("kFP8", "kFP4"),
    "kind": ('{"PLUGIN_V3ONE_CORE", 1, 0}', '{"PLUGIN_V3ONE_RUNTIME", 1, 0}'),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", SWAPPED)
def test_a_wrong_declaration_would_be_seen(what, compiled_layout, tmp_path):
    """Two declarations change places: sizes, offsets, values or names differ, or another function is called."""
    abi = tmp_path / "abi"
    shutil.copytree(plugin_sources() / "trt" / "abi", abi)
    one, other = SWAPPED[what]
    changed = 0
    for file in abi.glob("*.h"):
        text = file.read_text()
        if one in text and other in text:
            file.write_text(text.replace(one, "\0").replace(other, one).replace("\0", other))
            changed += 1
    assert changed == 1
    right, wrong = ours(compiled_layout, 11), compiled_layout("wrong", abi=abi)
    assert right.facts() != wrong.facts() or not agree_in_a_process(right, wrong)


def agree_in_a_process(own: Library, other: Library) -> bool:
    """`agree`, where a call that goes wrong may end the process."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        with contextlib.suppress(BaseException):
            os._exit(0 if agree(own, other) else 1)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

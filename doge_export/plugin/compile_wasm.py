"""Compile plugins/cpu to WebAssembly, as its sources.json says: one module for every engine, one with relaxed SIMD."""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from doge_export.errors import RunFailed
from doge_export.plugin.compile_cpu import SOURCES, first_error, run_compiler
from doge_export.plugin.cpp_compiler import CppCompiler
from doge_export.processors import allowed_processors

WASM = "wasm"
"""Name of this system on the command line."""
MODULES = ("doge_cpu.wasm", "doge_cpu_relaxed.wasm")
_MACHINE = "wasm32"
_RELAXED = "isa_wasmrelaxed"


def compile_wasm(sources: Path, folder: Path, compiler: CppCompiler, *, jobs: int | None = None) -> None:
    """Compile both modules.

    Args:
        sources: the folder plugins, whose folder cpu has a sources.json.
        folder: where they go; it exists.
        compiler: zig.
        jobs: number of compilers at a time. None: one for each processor that this process may use.

    Raises:
        RunFailed: the compiler fails; the first of its errors is in the message.
    """
    root = sources / "cpu"
    recipe = json.loads((root / SOURCES).read_text(encoding="utf-8"))
    own = recipe[WASM]
    command = [*compiler.command, "-target", own["target"]]
    common = [f"-std={recipe['standard']}", *(f"-I{name}" for name in recipe["include"]), *own["flags"]]
    files = [*recipe["files"], *own["files"]]
    # The table of relaxed SIMD is compiled a second time, as one that holds nothing.
    empty = {"path": f"src/{_RELAXED}.cpp"}

    with tempfile.TemporaryDirectory(prefix="doge-wasm-") as scratch:

        def compiled(entry: tuple[int, dict[str, Any]]) -> Path:
            number, file = entry
            item = Path(scratch) / f"{number}.o"
            speed = own["fast"] if _MACHINE in file else own["small"]
            line = [*command, *common, *speed, *file.get(_MACHINE, []), "-c", file["path"], "-o", str(item)]
            done = run_compiler(compiler, line, None, root)  # relative paths: none of this machine's gets into a module
            if done.returncode:
                raise RunFailed(f"{file['path']} does not compile by {compiler.version}: {first_error(done.stdout)}")
            return item

        with ThreadPoolExecutor(jobs or allowed_processors()) as pool:
            objects = list(pool.map(compiled, enumerate([*files, empty])))
        named = dict(zip([file["path"] for file in files], objects[:-1], strict=True))
        named[empty["path"]] = named.pop(empty["path"])  # linked last, as CMake does
        plain = {**named, empty["path"]: objects[-1]}
        exports = [f"-Wl,--export=doge_cpu_{name}" for name in own["exports"]]
        for name, is_relaxed in own["modules"].items():
            parts = [str(item) for item in (named if is_relaxed else plain).values()]
            done = run_compiler(
                compiler, [*command, *parts, *own["link_flags"], *exports, "-o", str(folder / name)], None
            )
            if done.returncode:
                raise RunFailed(f"{name} does not link by {compiler.version}: {first_error(done.stdout)}")

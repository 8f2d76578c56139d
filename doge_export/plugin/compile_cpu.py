"""Compile plugins/cpu to a library, as its sources.json says; needs a C++ compiler and nothing else.

Of the standard library alone, since the build hook of an install runs it where nothing else is installed yet.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from doge_export.errors import RunFailed
from doge_export.plugin.cpp_compiler import CppCompiler
from doge_export.plugin.cpu_targets import CPU_TARGETS, CpuTarget, machine, universal
from doge_export.plugin.sources import NATIVE
from doge_export.processors import allowed_processors
from doge_export.version import __version__

SOURCES = "sources.json"
LONGEST = 600
"""Seconds after which a compiler of one file is taken to hang, so that no install does; 10 are usual.

There is no limit for other systems, which no install compiles for: zig makes a system's own libraries at the first
link, for minutes.
"""


def compile_cpu(
    sources: Path, library: Path, compiler: CppCompiler, target: str | None = None, *, jobs: int | None = None
) -> None:
    """Compile the native decoder.

    Args:
        sources: the folder plugins, whose folders cpu and ort have a sources.json each.
        library: file to write; its folder exists.
        compiler: zig for another system.
        target: a name of `CPU_TARGETS`. None: this system.
        jobs: number of compilers at a time. None: one for each processor that this process may use.

    Raises:
        RunFailed: the compiler fails, or does not end; the first of its errors is in the message.
    """
    recipe = _recipe(sources)
    where: CpuTarget | None = CPU_TARGETS[target] if target else None
    triples: Iterable[tuple[str, str | None]] = where.triples if where else [(machine(), None)]
    binaries: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="doge-cpu-") as scratch:
        for processor, triple in triples:
            tree = Path(scratch) / processor
            tree.mkdir()
            built = _compile(recipe, tree, compiler, processor, triple, jobs or allowed_processors())
            binaries[processor] = built.read_bytes()
    library.write_bytes(universal(binaries) if len(binaries) > 1 else next(iter(binaries.values())))
    library.chmod(0o755)


def _recipe(sources: Path) -> dict[str, Any]:
    """Return the recipe of both parts as one, with whole paths; flags are those of the first."""
    parts = [(sources / name, json.loads((sources / name / SOURCES).read_text(encoding="utf-8"))) for name in NATIVE]
    return parts[0][1] | {
        "include": [folder / name for folder, part in parts for name in part["include"]],
        "files": [file | {"path": folder / file["path"]} for folder, part in parts for file in part["files"]],
    }


def describe_build(present: str, target: str | None, compiler: str) -> dict[str, Any]:
    """Return what is written beside a library about it."""
    return {
        "version": __version__,
        "source_hash": present,
        "target": target or machine(),
        "compiler": compiler,
    }


def _compile(
    recipe: dict[str, Any],
    tree: Path,
    compiler: CppCompiler,
    processor: str,
    triple: str | None,
    jobs: int,
) -> Path:
    longest = None if triple else LONGEST
    command = [*compiler.command, *(["-target", triple] if triple else [])]
    is_windows = triple is not None and "windows" in triple
    common = [f"-std={recipe['standard']}", *(f"-I{folder}" for folder in recipe["include"])]
    common += recipe["flags"]
    if is_windows:  # code is always movable there, and the option unknown
        common.remove("-fPIC")

    def compiled(entry: tuple[int, dict[str, Any]]) -> Path:
        number, file = entry
        item = tree / f"{number}.o"
        line = [*command, *common, *file.get("flags", []), "-c", str(file["path"]), "-o", str(item)]
        own = file.get(processor, [])
        done = run_compiler(compiler, [*line, *own], longest)
        if done.returncode and own:  # the compiler may be older than the instructions
            done = run_compiler(compiler, line, longest)
            sys.stderr.write(
                f"{compiler.version} refuses {' '.join(own)}: the library has no kernels of {file['path'].stem}\n"
            )
        if done.returncode:
            raise RunFailed(f"{file['path'].name} does not compile by {compiler.version}: {first_error(done.stdout)}")
        return item

    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(compiled, enumerate(recipe["files"])))
    library = tree / "library"
    # zig's own libraries always come along; another compiler's are those that onnxruntime needs, too.
    links = [*recipe["link_flags"], *(["-Wl,-s"] if compiler.is_zig else [])]
    done = run_compiler(compiler, [*command, *map(str, objects), *links, "-o", str(library)], longest)
    if done.returncode:
        raise RunFailed(f"the native decoder does not link by {compiler.version}: {first_error(done.stdout)}")
    return library


def run_compiler(
    compiler: CppCompiler, command: list[str], longest: float | None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a compiler in a folder, None for the present one; it may take `longest` seconds.

    Raises:
        RunFailed: it has not ended then.
    """
    try:
        return subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=longest,
        )
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"{compiler.version} has not ended after {longest} s") from error


def first_error(output: str) -> str:
    """Return the first line of a compiler's output that tells of an error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    found = next((line for line in lines if "error" in line.lower() or "undefined" in line), lines[-1] if lines else "")
    return found[:300] or "it says nothing"

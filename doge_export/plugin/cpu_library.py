"""The compiled library of the native decoder: where it is looked for, and building it into the user's cache folder."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from doge_export import console
from doge_export.errors import DogeExportError
from doge_export.package.atomic import staged_folder
from doge_export.package.fingerprint import names_in
from doge_export.paths import is_own, user_cache
from doge_export.plugin.compile_cpu import compile_cpu, describe_build
from doge_export.plugin.compile_wasm import MODULES, WASM, compile_wasm
from doge_export.plugin.cpp_compiler import find_cpp_compiler
from doge_export.plugin.cpu_targets import CPU_TARGETS, library_name, machine
from doge_export.plugin.sources import NATIVE, native_hash, plugin_sources
from doge_export.version import __version__

FACTS = "build.json"
LIBRARY_VARIABLE = "DOGE_EXPORT_CPU_LIBRARY"
INSTALLED = Path(__file__).resolve().parents[1] / "_native"
"""Where an install puts the library that its build hook compiled."""


@dataclasses.dataclass(frozen=True)
class CpuLibrary:
    """A compiled library.

    Attributes:
        path: its file; of WebAssembly the first of two modules, beside which the other lies.
        facts: version, source_hash, target and compiler that it was made by.
        cached: nothing had to be compiled.
        seconds: that compiling took.
    """

    path: Path
    facts: dict[str, Any]
    cached: bool = True
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"library": str(self.path), **self.facts, "cached": self.cached, "seconds": round(self.seconds, 2)}


def cpu_sources() -> Path:
    """Return the folder of the native decoder's sources.

    Raises:
        DogeExportError: there is none.
    """
    folder = plugin_sources()
    if not all((folder / part / "sources.json").is_file() for part in NATIVE):
        raise DogeExportError(f"{folder} has not all sources; install doge-export again from its wheel")
    return folder


def cache_folder() -> Path:
    """Return the folder of all builds: cpu in $DOGE_EXPORT_CACHE, else below the user's cache folder."""
    return user_cache() / "cpu"


def find_cpu_library() -> CpuLibrary:
    """Return the library that is to be used.

    It is the one that $DOGE_EXPORT_CPU_LIBRARY names, else one that was built from the present sources, else the
    installed one.

    Raises:
        DogeExportError: there is none; the message says how to get one.
    """
    if named := os.environ.get(LIBRARY_VARIABLE):
        path = Path(named).expanduser().resolve()
        if not path.is_file():
            raise DogeExportError(f"the environment variable {LIBRARY_VARIABLE} is {named}: there is no such file")
        return CpuLibrary(path, {"version": "unknown", "compiler": f"named by {LIBRARY_VARIABLE}"})
    present = _present_hash()
    for folder in _built():
        facts = read_facts(folder)
        if facts is not None and facts["source_hash"] == present and facts["target"] == machine():
            return CpuLibrary(folder / library_name(), facts)
    facts = read_facts(INSTALLED)
    if facts is None:
        raise DogeExportError("the native decoder is not compiled: `doge-export plugin build --cpu` does it once")
    if facts["version"] != __version__ or present not in ("", facts["source_hash"]):
        raise DogeExportError(
            f"the native decoder in {INSTALLED} is of other sources than this doge-export {__version__}: "
            "`doge-export plugin build --cpu` compiles these"
        )
    return CpuLibrary(INSTALLED / library_name(), facts)


def _present_hash() -> str:
    """Return the hash of the sources that are there; nothing if there are none."""
    try:
        return _hash_once(cpu_sources())
    except DogeExportError:
        return ""


_hash_once = functools.cache(native_hash)
"""Every opening of a folder asks for it, and reading all sources takes a third of that."""


def _built() -> list[Path]:
    """Return the builds in the user's cache folder, newest first; what another user put there is not run."""
    try:
        folders = [path for path in cache_folder().iterdir() if path.is_dir() and not path.name.startswith(".")]
        folders = [path for path in folders if is_own(path.stat())]
        return sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)
    except (OSError, RuntimeError):
        return []


def build_cpu(
    output: Path | None = None,
    *,
    target: str | None = None,
    cxx: str | None = None,
    jobs: int | None = None,
    force: bool = False,
) -> CpuLibrary:
    """Return the library for this system or another, from the cache or compiled into it.

    Modules for pages that the install brought are taken where they are of the present sources: that needs no compiler.

    Args:
        output: folder to copy it to. None leaves it in the cache.
        target: a name of `CPU_TARGETS`, or "wasm". None: this system.
        cxx: command of the C++ compiler. None: see `find_cpp_compiler`.
        jobs: number of compilers at a time.
        force: replace `output` if it is not empty.

    Raises:
        DogeExportError: there is no compiler, or no sources.
        RunFailed: the sources do not compile.
    """
    started = time.monotonic()
    sources = cpu_sources()
    present = native_hash(sources)
    is_wasm = target == WASM
    name = MODULES[0] if is_wasm else CPU_TARGETS[target].file if target else library_name()
    entry = INSTALLED / WASM
    facts = read_facts(entry, name) if is_wasm and cxx is None else None
    if facts is None or facts["source_hash"] != present:
        compiler = find_cpp_compiler(cxx, zig=target is not None)
        parts = [present, target, compiler.command, compiler.version, machine()]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        entry = cache_folder() / (f"{target}-{key}" if target else key)
        facts = read_facts(entry, name)
    cached = facts is not None
    if facts is None:
        console.log(f"compiling the native decoder by {compiler.version}, once (kept in {entry})")
        facts = describe_build(present, target, compiler.version)
        with staged_folder(entry, force=True, recorded=names_in) as staging:
            if is_wasm:
                compile_wasm(sources, staging, compiler, jobs=jobs)
            else:
                compile_cpu(sources, staging / name, compiler, target, jobs=jobs)
            (staging / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    folder = entry
    if output is not None:
        folder = output.expanduser().resolve()
        with staged_folder(folder, force=force, protected=[sources, entry], recorded=_recorded) as staging:
            shutil.copytree(entry, staging, dirs_exist_ok=True)
    return CpuLibrary(folder / name, facts, cached, time.monotonic() - started)


def read_facts(folder: Path, name: str | None = None) -> dict[str, Any] | None:
    """Return what is written beside a library; None if there is no library, or nothing about it."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_whole = isinstance(facts, dict) and all(
        isinstance(facts.get(key), str) for key in ("version", "source_hash", "target", "compiler")
    )
    return facts if is_whole and (folder / (name or library_name())).is_file() else None


def _recorded(folder: Path) -> set[str] | None:
    """Return the names of the files of a build that was copied to a folder; None if the folder is no build."""
    names = {FACTS, *MODULES, *(target.file for target in CPU_TARGETS.values())}
    return {name for name in names if (folder / name).is_file()} if (folder / FACTS).is_file() else None

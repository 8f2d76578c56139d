"""The C++ compiler of the native decoder: the machine's own, or zig's from pip, which also compiles for other systems.

Of the standard library alone, since the build hook of an install runs it where nothing else is installed yet.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator

from doge_export.errors import DogeExportError

_USUAL = ("c++", "g++", "clang++")
_HINT = "install g++ or clang++ (Debian and Ubuntu: apt install g++), or a compiler from pip: pip install ziglang"


@dataclasses.dataclass(frozen=True)
class CppCompiler:
    """A C++ compiler.

    Attributes:
        command: program and first arguments.
        version: first line that it says of itself.
        is_zig: it compiles for any system, told by -target.
    """

    command: tuple[str, ...]
    version: str
    is_zig: bool = False


def find_cpp_compiler(named: str | None = None, *, zig: bool = False) -> CppCompiler:
    """Return the compiler that is named, else the first of $CXX, c++, g++, clang++ and pip's ziglang that works.

    Args:
        named: a command, as --cxx gives it.
        zig: take only zig, as other systems need.

    Raises:
        DogeExportError: there is none, or the one that an option or $CXX names does not work.
    """
    command, by = (named, "--cxx") if named else (os.environ.get("CXX", ""), "the environment variable CXX")
    if command.strip() and (named or not zig):
        found = _working(_words(command))
        if found is None:
            raise DogeExportError(f"{by} is {command}: no C++ compiler there; correct it or leave it out")
        return found
    found = next(filter(None, map(_working, _commands(zig))), None)
    if found is not None:
        return found
    if zig:
        raise DogeExportError("zig compiles for other systems, and is not installed: pip install ziglang")
    raise DogeExportError(f"no C++ compiler: {_HINT}")


def find_zig() -> CppCompiler | None:
    """Return pip's zig or that of the machine; None if there is none."""
    return next(filter(None, map(_working, _commands(zig=True))), None)


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a quotation mark that is never closed
        return [command]


def _commands(zig: bool) -> Iterator[list[str]]:
    if not zig:
        yield from ([path] for path in map(shutil.which, _USUAL) if path)
    if importlib.util.find_spec("ziglang") is not None:
        yield [sys.executable, "-m", "ziglang", "c++"]
    elif path := shutil.which("zig"):
        yield [path, "c++"]


def _working(command: list[str]) -> CppCompiler | None:
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    lines = done.stdout.splitlines()
    is_zig = any("zig" in part for part in command[-3:]) and command[-1] == "c++"
    return CppCompiler(tuple(command), lines[0].strip() if lines else "", is_zig)

"""Configure and compile the plugin's sources by CMake, with a progress bar, and the first errors on failure."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from doge_export import console
from doge_export.errors import RunFailed
from doge_export.plugin.toolchain import Toolchain
from doge_export.processors import allowed_processors

_STEP = re.compile(r"^\[\s*(?:(\d+)/(\d+)|(\d+)%)\]")
"""Start of a step's line: [3/18] by ninja, [ 16%] by make."""
_ERROR = re.compile(r"(?:error|Error)\b.*:|: undefined reference|CMake Error|multiple definition")
_ERRORS_SHOWN = 5
_TOLD = 25
"""Percent between two lines of progress."""


@dataclasses.dataclass(frozen=True)
class CompileSettings:
    """The parts of the plugin to compile.

    Attributes:
        architectures: of the kernels, as CMake names them ("89", "80-real"); empty: no kernels.
        nvidia_headers: compile the TensorRT plugin with NVIDIA's headers, not with our own declarations.
        tests: compile the tests.
        head_sizes: compile attention's kernels for these only; empty: for every size there is.
        fp16_head_sizes: those of float16; empty: `head_sizes`.
    """

    architectures: tuple[str, ...]
    nvidia_headers: bool = False
    tests: bool = False
    head_sizes: tuple[int, ...] = ()
    fp16_head_sizes: tuple[int, ...] = ()


def compile_plugin(
    sources: Path,
    tree: Path,
    settings: CompileSettings,
    toolchain: Toolchain,
    *,
    jobs: int | None = None,
    log: Path,
    targets: Sequence[str] = (),
) -> None:
    """Configure and compile `sources` in the build folder `tree`; files that are up to date there are kept.

    Args:
        sources: the folder of the plugin's CMakeLists.txt.
        tree: the build folder; made if it is missing.
        settings: the parts to compile.
        toolchain: must have cmake and a C++ compiler.
        jobs: number of compilers at a time. None: one for each processor that this process may use.
        log: file for the output of the compilers.
        targets: CMake targets to compile. Empty: all.

    Raises:
        RunFailed: a compiler fails.
    """
    for folder in (log.parent, tree):
        folder.mkdir(parents=True, exist_ok=True)
    building = [str(toolchain.cmake.path), "--build", str(tree), "--parallel", str(jobs or allowed_processors())]
    building += ["--target", *targets] if targets else []
    with log.open("w", encoding="utf-8") as out, console.progress("compiling the plugin", total=100) as advance:
        done = 0
        for command in (_configure_command(sources, tree, settings, toolchain), building):
            lines = []
            with _running(command, tree) as process:
                for line in process.stdout or ():
                    out.write(line)
                    lines.append(line)
                    percent = _percent(line)
                    if percent > done:
                        advance(percent - done)
                        if not sys.stderr.isatty() and percent // _TOLD > done // _TOLD:  # where there is no bar
                            console.log(f"compiling the plugin: {percent} %")
                        done = percent
            if process.returncode != 0:
                raise _failure(lines, log)


def install_libraries(tree: Path, folder: Path, toolchain: Toolchain) -> list[Path]:
    """Copy the libraries of a build folder into `folder`; return their paths there."""
    command = [toolchain.cmake.path or "cmake", "--install", tree, "--prefix", folder, "--strip"]
    subprocess.run(command, check=True, capture_output=True)
    return sorted(folder.glob("*.so"))


def _configure_command(sources: Path, tree: Path, settings: CompileSettings, toolchain: Toolchain) -> list[str]:
    use_ninja = toolchain.ninja.path is not None
    definitions = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CXX_COMPILER": toolchain.cxx.path,
        "DOGE_WITH_CUDA": "ON" if settings.architectures else "OFF",
        "DOGE_TRT_INCLUDE_DIR": toolchain.headers.path if settings.nvidia_headers else "",
        "DOGE_BUILD_TESTS": "ON" if settings.tests else "OFF",
        "DOGE_HEAD_SIZES": ",".join(map(str, settings.head_sizes)),
        "DOGE_FP16_HEAD_SIZES": ",".join(map(str, settings.fp16_head_sizes or settings.head_sizes)),
    }
    if settings.architectures:
        definitions["CMAKE_CUDA_COMPILER"] = toolchain.nvcc.path
        definitions["CMAKE_CUDA_HOST_COMPILER"] = toolchain.cxx.path
        definitions["CMAKE_CUDA_ARCHITECTURES"] = ";".join(settings.architectures)
    if settings.nvidia_headers:
        definitions["DOGE_CUDA_INCLUDE_DIR"] = toolchain.cuda_headers.path
    if use_ninja:
        definitions["CMAKE_MAKE_PROGRAM"] = toolchain.ninja.path
    return [
        str(toolchain.cmake.path),
        *("-S", str(sources), "-B", str(tree), "-G", "Ninja" if use_ninja else "Unix Makefiles"),
        *(f"-D{name}={value}" for name, value in definitions.items()),
    ]


@contextlib.contextmanager
def _running(command: Sequence[str], temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a command with both outputs in `stdout`; end it and its children if the body raises.

    They get a process group of their own: cmake passes no signal on, and waits for its compilers when it gets one.
    Temporary files, which nvcc leaves if it is ended, are in the folder `temporary`.
    """
    console.detail(" ".join(command))
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    try:
        yield process
        process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
        if process.stdout:
            process.stdout.close()


def _percent(line: str) -> int:
    match = _STEP.match(line)
    if match is None:
        return 0
    return int(match[3]) if match[3] else 100 * int(match[1]) // int(match[2])


def _failure(lines: Sequence[str], log: Path) -> RunFailed:
    errors = [line.rstrip() for line in lines if _ERROR.search(line)] or [line.rstrip() for line in lines[-3:]]
    for line in errors[:_ERRORS_SHOWN]:
        console.log(line)
    more = f" and {len(errors) - _ERRORS_SHOWN} more" if len(errors) > _ERRORS_SHOWN else ""
    return RunFailed(
        f"the plugin does not compile: {len(errors[:_ERRORS_SHOWN])} errors are shown above{more}; see {log}"
    )

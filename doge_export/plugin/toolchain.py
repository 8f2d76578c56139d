"""The tools that compile the plugin: cmake, a C++ compiler, nvcc; and NVIDIA's headers of TensorRT for who wants them.

Each is taken from an option, else from an environment variable, else from its usual places. A tool that is named and is
not there is an error; a tool that is merely not found is reported with how to get it, and the build does without it
if it can.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from packaging.version import Version

from doge_export.errors import DogeExportError
from doge_export.installing import install_command
from doge_export.plugin.tensorrt_versions import OLDEST, dotted

_OLDEST_CMAKE = Version("3.22")
_OLDEST_NVCC = Version("11.8")
"""The first that compiles for sm_89 and sm_90."""
_OLDEST_TENSORRT = Version(dotted(OLDEST))

PathLike = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Tool:
    """A program or a folder of headers: its path and version, or how to get it (`advice`) if `path` is None."""

    name: str
    path: Path | None
    version: str
    advice: str

    @property
    def missing(self) -> str | None:
        """One line that says what is missing and how to get it; None if nothing is."""
        return None if self.path else f"no {self.name}: {self.advice}"


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """All tools that a build may use. `cmake` and `cxx` are required, the others optional."""

    cmake: Tool
    cxx: Tool
    ninja: Tool
    nvcc: Tool
    cuda_headers: Tool
    headers: Tool

    def require_compiler(self) -> None:
        """Check that the required tools are there.

        Raises:
            DogeExportError: cmake or a C++ compiler is missing.
        """
        for tool in (self.cmake, self.cxx):
            if tool.missing:
                raise DogeExportError(tool.missing)


def find_toolchain(
    *,
    cmake: PathLike | None = None,
    cxx: PathLike | None = None,
    nvcc: PathLike | None = None,
    headers: PathLike | None = None,
) -> Toolchain:
    """Find the tools on this machine.

    Args:
        cmake: a program. None: environment variable CMAKE, PATH, beside this Python.
        cxx: a program. None: CXX, then c++, g++ or clang++ on PATH.
        nvcc: a program. None: CUDACXX, PATH, CUDA_HOME or CUDA_PATH, pip's wheels, /usr/local/cuda.
        headers: the folder of NVIDIA's NvInfer.h. None: DOGE_TRT_INCLUDE_DIR, else none: the plugin has declarations of
            its own.

    Returns:
        the tools; those that were not found carry advice.

    Raises:
        DogeExportError: a tool that an option or an environment variable names is not there or too old.
    """
    beside_python = Path(sys.executable).parent
    nvcc_tool = _find(
        "nvcc",
        _asked(nvcc, "--nvcc", "CUDACXX"),
        [*_on_path("nvcc"), *(home / "bin" / "nvcc" for home in _cuda_homes())],
        _program_version(r"release (\d+\.\d+)"),
        "the CUDA kernels are left out; install the CUDA toolkit or its wheels "
        f"({install_command('plugin')}), or name its nvcc with --nvcc or CUDACXX",
        oldest=_OLDEST_NVCC,
    )
    return Toolchain(
        cmake=_find(
            "cmake",
            _asked(cmake, "--cmake", "CMAKE"),
            [*_on_path("cmake"), beside_python / "cmake"],
            _program_version(r"cmake version (\d+(?:\.\d+)+)"),
            f"install CMake {_OLDEST_CMAKE} or newer (pip install cmake), or name it with --cmake or CMAKE",
            oldest=_OLDEST_CMAKE,
        ),
        cxx=_find(
            "C++ compiler",
            _asked(cxx, "--cxx", "CXX"),
            _on_path("c++", "g++", "clang++"),
            _program_version(r"(.+)"),
            "install g++ or clang++ (Debian and Ubuntu: apt install g++), or name one with --cxx or CXX",
        ),
        ninja=_find(
            "ninja",
            None,
            [*_on_path("ninja"), beside_python / "ninja"],
            _program_version(r"(\d.*)"),
            "make is used instead",
        ),
        nvcc=nvcc_tool,
        cuda_headers=_find(
            "CUDA headers",
            None,
            _cuda_header_folders(nvcc_tool),
            # CUDART_VERSION is 1000 times the major plus 10 times the minor number.
            _header_version(
                "cuda_runtime_api.h", *(rf"define CUDART_VERSION +{p}\b" for p in (r"(\d+)0\d0", r"\d+0(\d)0"))
            ),
            "TensorRT's headers need them; install the CUDA toolkit, or the headers alone "
            "(pip install nvidia-cuda-runtime)",
        ),
        headers=_find(
            "TensorRT headers",
            _asked(headers, "--headers", "DOGE_TRT_INCLUDE_DIR"),
            (),
            _header_version(
                "NvInferVersion.h", *(rf"define \w*_{part}(?:_ENTERPRISE)? (\d+)" for part in ("MAJOR", "MINOR"))
            ),
            "none are needed; --headers DIR takes NVIDIA's in place of our own declarations",
            oldest=_OLDEST_TENSORRT,
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A path that the user named, and the option or variable that names it."""

    path: str
    by: str


def _asked(option: PathLike | None, option_name: str, variable: str) -> _Asked | None:
    if option is not None:
        return _Asked(os.fspath(option), option_name)
    if os.environ.get(variable):
        return _Asked(os.environ[variable], f"the environment variable {variable}")
    return None


def _find(
    name: str,
    asked: _Asked | None,
    usual: Iterable[Path],
    version_of: Callable[[Path], str | None],
    advice: str,
    *,
    oldest: Version | None = None,
) -> Tool:
    """Return the tool in the first place that has it in a version that is not too old.

    Args:
        name: for messages.
        asked: the place that the user named; None: `usual` are searched.
        usual: where to look, in this order.
        version_of: returns the version in a place, None if the tool is not there.
        advice: how to get the tool.
        oldest: the oldest version that will do; None: any, also one that is no PEP 440 version.

    Raises:
        DogeExportError: the tool is not in the place that the user named, or too old.
    """
    if asked is None:
        for place in usual:
            version = version_of(place)
            if version is not None and not _is_older(version, oldest):
                return Tool(name, place, version, advice)
        return Tool(name, None, "", advice)
    path = Path(shutil.which(asked.path) or Path(asked.path).expanduser().resolve())
    version = version_of(path)
    if version is None:
        raise DogeExportError(f"{asked.by} is {asked.path}: no {name} there; correct it or leave it out")
    if _is_older(version, oldest):
        raise DogeExportError(f"{asked.by} is {asked.path}: {name} {version}; {oldest} or newer is needed")
    return Tool(name, path, version, advice)


def _is_older(version: str, oldest: Version | None) -> bool:
    return oldest is not None and Version(version) < oldest


def _program_version(pattern: str) -> Callable[[Path], str | None]:
    def version_of(path: Path) -> str | None:
        try:
            done = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return None
        match = re.search(pattern, done.stdout)
        return match[1].strip() if match else None

    return version_of


def _header_version(file: str, *patterns: str) -> Callable[[Path], str | None]:
    def version_of(folder: Path) -> str | None:
        try:
            text = (folder / file).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        matches = [re.search(pattern, text) for pattern in patterns]
        return ".".join(match[1] for match in matches if match) or None

    return version_of


def _on_path(*names: str) -> list[Path]:
    return [Path(found) for found in map(shutil.which, names) if found]


def _cuda_homes() -> list[Path]:
    """Return the folders of the CUDA toolkit: what the user named, what this environment has, what the machine has."""
    named = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return [*named, *_wheels(), Path("/usr/local/cuda")]


def _wheels() -> list[Path]:
    """Return the folders of pip's wheels of the CUDA toolkit, the newest CUDA first."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else ()
    homes = [home for folder in folders for home in Path(folder).glob("cu*") if home.is_dir()]
    return sorted(homes, key=lambda home: home.name, reverse=True)


def _cuda_header_folders(nvcc: Tool) -> list[Path]:
    homes = [nvcc.path.resolve().parents[1]] if nvcc.path else []
    return [home / "include" for home in (*homes, *_cuda_homes(), Path("/usr"))]

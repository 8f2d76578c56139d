"""What compiles the plugin: cmake, a C++ compiler, nvcc, CUDA's and TensorRT's headers.

Each is taken from an option, else from an environment variable, else from where it usually is. What is asked for by
name and is not there is a mistake; what is merely not found is reported with how to get it, and the build does without
it where it can.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

from doge_export.errors import DogeExportError

_OLDEST_CMAKE = (3, 22)
_OLDEST_NVCC = (11, 8)
"""The first that knows sm_89 and sm_90."""
_OLDEST_TENSORRT = (10, 9)

PathLike = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Tool:
    """Something that a build needs: where it is and which version, or else how to get it."""

    name: str
    path: Path | None
    version: str
    advice: str

    @property
    def missing(self) -> str | None:
        """One line where it is not there."""
        return None if self.path else f"no {self.name}: {self.advice}"


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """Everything a build may use. Without `cmake` and `cxx` there is none."""

    cmake: Tool
    cxx: Tool
    ninja: Tool
    nvcc: Tool
    cuda_headers: Tool
    tensorrt: Tool

    def require_compiler(self) -> None:
        """Raises DogeExportError without cmake or a C++ compiler."""
        for tool in (self.cmake, self.cxx):
            if tool.missing:
                raise DogeExportError(tool.missing)


def find_toolchain(
    *,
    cmake: PathLike | None = None,
    cxx: PathLike | None = None,
    nvcc: PathLike | None = None,
    trt_include: PathLike | None = None,
) -> Toolchain:
    """What is on this machine.

    Args:
        cmake: a program; else environment variable CMAKE, PATH, beside this Python.
        cxx: a program; else CXX, then c++, g++ or clang++ on PATH.
        nvcc: a program; else CUDACXX, PATH, CUDA_HOME or CUDA_PATH, /usr/local/cuda.
        trt_include: the folder of NvInfer.h; else DOGE_TRT_INCLUDE_DIR, TENSORRT_ROOT or TRT_ROOT, usual folders.

    Raises DogeExportError for what an option or its environment variable names and is not there, or is too old.
    """
    beside_python = Path(sys.executable).parent
    nvcc_tool = _find(
        "nvcc",
        _asked(nvcc, "--nvcc", "CUDACXX"),
        [*_on_path("nvcc"), *(home / "bin" / "nvcc" for home in _cuda_homes())],
        _program_version(r"release (\d+\.\d+)"),
        "the CUDA kernels are left out; install the CUDA toolkit, or name its nvcc with --nvcc or CUDACXX",
        oldest=_OLDEST_NVCC,
    )
    return Toolchain(
        cmake=_find(
            "cmake",
            _asked(cmake, "--cmake", "CMAKE"),
            [*_on_path("cmake"), beside_python / "cmake"],
            _program_version(r"cmake version (\d+\.\d+[.\d]*)"),
            f"install CMake {_dotted(_OLDEST_CMAKE)} or newer (pip install cmake), or name it with --cmake or CMAKE",
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
            # 1000 times the major and 10 times the minor number
            _header_version(
                "cuda_runtime_api.h", *(rf"define CUDART_VERSION +{p}\b" for p in (r"(\d+)0\d0", r"\d+0(\d)0"))
            ),
            "TensorRT's headers need them, so its plugin is left out; install the CUDA toolkit, or the headers alone "
            "(pip install nvidia-cuda-runtime)",
        ),
        tensorrt=_find(
            "TensorRT headers",
            _asked(trt_include, "--trt-include", "DOGE_TRT_INCLUDE_DIR"),
            _tensorrt_folders(),
            _header_version(
                "NvInferVersion.h", *(rf"define \w*_{part}(?:_ENTERPRISE)? (\d+)" for part in ("MAJOR", "MINOR"))
            ),
            "the TensorRT plugin is left out; they come with TensorRT's tar file and Debian packages, and are the "
            "include folder of NVIDIA's TensorRT sources: name the folder of NvInfer.h with --trt-include or "
            "DOGE_TRT_INCLUDE_DIR",
            oldest=_OLDEST_TENSORRT,
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A path that the user named, and how."""

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
    oldest: tuple[int, ...] = (),
) -> Tool:
    """The first place that has a version, and one that is not too old. `version_of` is None where it is not."""
    if asked is None:
        for place in usual:
            version = version_of(place)
            if version is not None and _numbers(version)[: len(oldest)] >= oldest:
                return Tool(name, place, version, advice)
        return Tool(name, None, "", advice)
    path = Path(shutil.which(asked.path) or Path(asked.path).expanduser().resolve())
    version = version_of(path)
    if version is None:
        raise DogeExportError(f"{asked.by} is {asked.path}: no {name} there; correct it or leave it out")
    if _numbers(version)[: len(oldest)] < oldest:
        raise DogeExportError(f"{asked.by} is {asked.path}: {name} {version}; {_dotted(oldest)} or newer is needed")
    return Tool(name, path, version, advice)


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
    named = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return [*named, Path("/usr/local/cuda")]


def _cuda_header_folders(nvcc: Tool) -> list[Path]:
    homes = [nvcc.path.resolve().parents[1]] if nvcc.path else []
    wheels = Path(sysconfig.get_path("purelib")) / "nvidia"
    return [
        *(home / "include" for home in (*homes, *_cuda_homes())),
        Path("/usr/include"),
        *sorted(wheels.glob("cu*/include")),
        wheels / "cuda_runtime" / "include",
    ]


def _tensorrt_folders() -> list[Path]:
    roots = [Path(os.environ[name]) for name in ("TENSORRT_ROOT", "TRT_ROOT") if os.environ.get(name)]
    roots += [Path("/usr/local/tensorrt"), Path("/opt/tensorrt"), Path("/usr")]
    return [*(root / "include" for root in roots), *sorted(Path("/usr/include").glob("*-linux-gnu"))]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))

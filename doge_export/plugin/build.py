"""`doge-export plugin build`: compile the plugin's libraries once and keep them in the user's cache folder.

A build is found there by a hash of the sources, the settings and the compilers' versions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from doge_export import console
from doge_export.errors import DogeExportError
from doge_export.package.atomic import staged_folder
from doge_export.package.fingerprint import fingerprint, names_in
from doge_export.paths import user_cache
from doge_export.plugin import architectures as gpus
from doge_export.plugin.compiling import CompileSettings, compile_plugin, install_libraries
from doge_export.plugin.sources import plugin_sources, source_hash
from doge_export.plugin.toolchain import PathLike, Toolchain, find_toolchain

KERNELS = "libdoge_kernels_c.so"
TENSORRT_PLUGIN = "libdoge_trt_plugin.so"
_FACTS = "build.json"


@dataclasses.dataclass(frozen=True)
class Build:
    """A folder with built libraries.

    Attributes:
        folder: that holds them.
        libraries: file name -> path.
        architectures: of the kernels, as CMake names them; empty: there are no kernels.
        missing: a line for each thing that the build did without, with how to get it.
        cached: nothing had to be compiled.
        seconds: that the build took.
    """

    folder: Path
    libraries: dict[str, Path]
    architectures: tuple[str, ...]
    missing: tuple[str, ...]
    cached: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "folder": str(self.folder),
            "libraries": {name: str(path) for name, path in self.libraries.items()},
            "architectures": list(self.architectures),
            "missing": list(self.missing),
            "cached": self.cached,
            "seconds": round(self.seconds, 2),
        }


def build(
    output: PathLike | None = None,
    *,
    architectures: Sequence[str] | None = None,
    cuda: bool = True,
    jobs: int | None = None,
    force: bool = False,
    **tools: PathLike | None,
) -> Build:
    """Return the libraries for this machine, from the cache or compiled into it.

    Args:
        output: folder to copy them to. None leaves them in the cache.
        architectures: GPUs to compile for, as CMake names them. None: the RTX 4090 and the GPUs of this machine.
        cuda: False leaves the kernels out.
        jobs: number of compilers at a time.
        force: replace `output` if it is not empty.
        tools: keywords of `find_toolchain`.

    Returns:
        the libraries and what the build did without.

    Raises:
        DogeExportError: this machine cannot build what was asked for.
        RunFailed: the sources do not compile.
    """
    if sys.platform != "linux":
        raise DogeExportError(f"the plugin is built on Linux only, and this is {sys.platform}; use WSL or a container")
    started = time.monotonic()
    sources, toolchain = plugin_sources(), find_toolchain(**tools)
    toolchain.require_compiler()
    settings = _settings(toolchain, architectures, cuda)
    entry = cache_folder() / _key(sources, settings, toolchain)
    facts = _facts(entry)
    cached = facts is not None
    if facts is None:
        facts = _compile_into(entry, sources, settings, toolchain, jobs)
    folder = entry
    if output is not None:
        folder = Path(output).expanduser().resolve()
        with staged_folder(folder, force=force, protected=[sources, entry], recorded=_recorded) as staging:
            shutil.copytree(entry, staging, dirs_exist_ok=True)
    return Build(
        folder,
        {name: folder / name for name in facts["libraries"]},
        settings.architectures,
        tuple(_missing(toolchain, settings, cuda)),
        cached,
        time.monotonic() - started,
    )


def check_tools(architectures: Sequence[str]) -> None:
    """Check that this machine has what `build` needs, which takes minutes.

    Args:
        architectures: GPUs to compile for, as CMake names them.

    Raises:
        DogeExportError: it lacks something.
    """
    toolchain = find_toolchain()
    toolchain.require_compiler()
    _settings(toolchain, architectures, cuda=True)


def cache_folder() -> Path:
    """Return the folder of all builds: plugins in $DOGE_EXPORT_CACHE, else below the user's cache folder."""
    return user_cache() / "plugins"


def cached_builds() -> list[dict[str, Any]]:
    """Return the facts of all builds in the cache that were made from the present sources, newest first."""
    present, folder = source_hash(plugin_sources()), cache_folder()
    entries = [path for path in (folder.iterdir() if folder.is_dir() else ()) if not path.name.startswith(".")]
    newest_first = sorted(entries, key=lambda path: path.stat().st_mtime, reverse=True)
    found = [{"folder": str(entry), **facts} for entry in newest_first if (facts := _facts(entry))]
    return [facts for facts in found if facts["source_hash"] == present]


def _settings(toolchain: Toolchain, architectures: Sequence[str] | None, cuda: bool) -> CompileSettings:
    if architectures is not None:
        if not cuda:
            raise DogeExportError("GPUs to compile for were given, and CUDA was left out; drop one of the two")
        gpus.check(architectures)
        if toolchain.nvcc.missing:
            raise DogeExportError(
                f"architecture {' '.join(architectures)} cannot be compiled for: {toolchain.nvcc.missing}"
            )
    if toolchain.headers.path and toolchain.cuda_headers.missing:
        raise DogeExportError(toolchain.cuda_headers.missing)
    chosen = tuple(architectures or gpus.default()) if cuda and toolchain.nvcc.path else ()
    return CompileSettings(chosen, nvidia_headers=toolchain.headers.path is not None)


def _missing(toolchain: Toolchain, settings: CompileSettings, cuda: bool) -> Iterator[str]:
    if cuda and toolchain.nvcc.missing:
        yield toolchain.nvcc.missing
    if not settings.architectures:
        yield "no kernels in the TensorRT plugin: it can be looked at, and refuses to run"


def _key(sources: Path, settings: CompileSettings, toolchain: Toolchain) -> str:
    compilers = {tool.name: tool.version for tool in (toolchain.cxx, toolchain.nvcc, toolchain.headers)}
    parts = [source_hash(sources), dataclasses.asdict(settings), compilers, platform.machine()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _compile_into(
    entry: Path, sources: Path, settings: CompileSettings, toolchain: Toolchain, jobs: int | None
) -> dict[str, Any]:
    for line in _announcement(settings, toolchain, entry):
        console.log(line)
    with staged_folder(entry, force=True, recorded=names_in) as staging:
        tree = staging / "tree"
        compile_plugin(sources, tree, settings, toolchain, jobs=jobs, log=entry.with_suffix(".log"))
        libraries = install_libraries(tree, staging, toolchain)
        facts = {
            "libraries": [path.name for path in libraries],
            "sha256": {path.name: fingerprint(path).sha256 for path in libraries},
            "source_hash": source_hash(sources),
            "architectures": list(settings.architectures),
            "compilers": {tool.name: tool.version for tool in (toolchain.cxx, toolchain.nvcc) if tool.path},
            "headers": toolchain.headers.version if settings.nvidia_headers else None,
        }
        shutil.rmtree(tree)
        (staging / _FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


def _announcement(settings: CompileSettings, toolchain: Toolchain, entry: Path) -> Iterator[str]:
    """Say what is compiled, for which GPUs and why those, before the minutes that it takes."""
    names = ", ".join(settings.architectures) or "the CPU only"
    yield f"compiling the plugin for {names}, once (kept in {entry})"
    parts = ["the CPU reference"] + ["CUDA kernels"] * bool(settings.architectures)
    parts += ["the TensorRT plugin" + f" (TensorRT {toolchain.headers.version}'s headers)" * settings.nvidia_headers]
    yield f"parts: {', '.join(parts)}"
    if settings.architectures == (gpus.TUNED,) and not gpus.here():
        yield "no GPU was found here: 89 is the RTX 4090; --gpu or --compute-capability chooses others"


def _recorded(folder: Path) -> set[str] | None:
    """Return the names of the files of a build that was copied to a folder; None if the folder is no build."""
    facts = _written(folder)
    return None if facts is None else {_FACTS, *facts["libraries"]}


def _facts(entry: Path) -> dict[str, Any] | None:
    """Return the facts of a finished build; None if there is none, or if one of its libraries is gone or damaged."""
    facts = _written(entry)
    if facts is None:
        return None
    try:
        is_whole = all(fingerprint(entry / name).sha256 == facts["sha256"][name] for name in facts["libraries"])
    except (OSError, KeyError):
        return None
    return facts if is_whole else None


def _written(folder: Path) -> dict[str, Any] | None:
    """Return the facts that a build wrote; None if there are none."""
    try:
        facts: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if "libraries" in facts else None

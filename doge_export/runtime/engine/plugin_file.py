"""The plugin's library: find it, read its facts, register it with TensorRT."""

from __future__ import annotations

import ctypes
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from doge_export.errors import DogeExportError
from doge_export.plugin.architectures import covers, held_by
from doge_export.plugin.build import TENSORRT_PLUGIN, cached_builds
from doge_export.plugin.tensorrt_versions import MajorMinor, dotted
from doge_export.runtime.engine.kinds import TENSORRT, kind_of, title_of

VARIABLE = "DOGE_TRT_PLUGIN"
NAMESPACE, VERSION = "doge", "1"
"""Namespace and version of the plugin's operators in TensorRT's registry.

They equal DOMAIN and VERSION of graph.schemas, which cannot be imported here: it needs onnx. A test compares them.
"""

_OPERATOR = "DynamicMaskAttention"
_BUILD = "doge-export plugin build"


@dataclasses.dataclass(frozen=True)
class PluginFile:
    """A built plugin.

    Attributes:
        path: of the library.
        sha256: of the library.
        schema: version of the data that the plugin stores in engines; an engine needs the schema it was built with.
        tensorrt: version of NVIDIA's headers, if it was compiled with them: (11, 1, 0). (0, 0, 0): with our own
            declarations, for every TensorRT.
        architectures: GPUs that its kernels are compiled for, as CMake names them. Empty: it has no kernels; None: it
            does not tell.
    """

    path: Path
    sha256: str
    schema: int
    tensorrt: tuple[int, int, int]
    architectures: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for the sidecar, which omits the path on this machine."""
        facts = {"name": self.path.name, "sha256": self.sha256, "schema": self.schema, "tensorrt": list(self.tensorrt)}
        return facts | {"architectures": None if self.architectures is None else list(self.architectures)}

    def runs_on(self, capability: MajorMinor) -> bool:
        """Return whether a kernel of it runs on GPUs of a compute capability; True if it does not tell."""
        return self.architectures is None or any(covers(name, capability) for name in self.architectures)


def find_plugin(path: str | os.PathLike[str] | None = None, capabilities: Sequence[MajorMinor] = ()) -> PluginFile:
    """Return the plugin at `path`, else at $DOGE_TRT_PLUGIN, else the newest that `doge-export plugin build` keeps.

    Of those that are kept, one with kernels for all `capabilities` comes first.

    Raises:
        DogeExportError: there is none, or it is no such library.
    """
    named = os.fspath(path) if path is not None else os.environ.get(VARIABLE)
    if named:
        return read_plugin(Path(named).expanduser().resolve())
    kept = [Path(build["folder"]) for build in cached_builds() if TENSORRT_PLUGIN in build["libraries"]]
    found = [read_plugin(folder / TENSORRT_PLUGIN) for folder in (kept if capabilities else kept[:1])]
    if found and not capabilities:
        return found[0]
    if found:
        return next((plugin for plugin in found if all(map(plugin.runs_on, capabilities))), found[0])
    raise DogeExportError(
        f"no {TENSORRT_PLUGIN} is built here: run `{_BUILD}`, name one with --plugin or {VARIABLE}, or take "
        "--attention native"
    )


def is_named(path: str | os.PathLike[str] | None) -> bool:
    """Return whether the user names a plugin, by an option or by the environment variable."""
    return path is not None or bool(os.environ.get(VARIABLE))


def read_plugin(path: Path) -> PluginFile:
    """Read the facts of a library.

    Raises:
        DogeExportError: the file is not there, or is no library of our plugin.
    """
    from doge_export.package.fingerprint import fingerprint

    if not path.is_file():
        raise DogeExportError(f"there is no plugin {path}; build one with `{_BUILD}`")
    try:
        library = ctypes.CDLL(str(path))
        schema, compiled_with = int(library.doge_plugin_abi_version()), int(library.doge_plugin_tensorrt_version())
    except (OSError, AttributeError) as error:
        raise DogeExportError(f"{path} is not a {TENSORRT_PLUGIN} ({error}); build one with `{_BUILD}`") from error
    version = compiled_with // 10000, compiled_with // 100 % 100, compiled_with % 100
    return PluginFile(path, fingerprint(path).sha256, schema, version, held_by(path))


AMPERE_AND_LATER: tuple[MajorMinor, ...] = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
"""Compute capabilities that `--hw-compat ampere+` promises."""
AMPERE_ARCHITECTURES = ("80-real", "86-real", "89-real", "90")
"""What holds kernels for all of these: PTX of the last is compiled for later GPUs."""


def check_architectures(plugin: PluginFile, capabilities: Sequence[MajorMinor]) -> None:
    """Check that a plugin has kernels for all GPUs of an engine.

    Raises:
        DogeExportError: it lacks some.
    """
    lacking = [capability for capability in capabilities if not plugin.runs_on(capability)]
    if lacking:
        holds = f"kernels for {' '.join(plugin.architectures)}" if plugin.architectures else "no kernels"
        asked = ",".join(f"{major}{minor}" for major, minor in capabilities)
        raise DogeExportError(
            f"{plugin.path} has {holds}, and none for compute capability {', '.join(map(dotted, lacking))}, for which "
            f"the engine is: `{_BUILD} --cuda-archs {asked}`, or --attention native"
        )


def register(trt: ModuleType, plugin: PluginFile) -> None:
    """Register the plugin's operators with TensorRT, once in a process.

    Raises:
        DogeExportError: TensorRT does not load the plugin, or has one of another library already.
    """
    from doge_export.runtime.engine.installation import version

    here = version(trt)
    # TensorRT for RTX counts versions of its own, and takes plugins of every TensorRT that has their interface.
    if kind_of(trt) == TENSORRT and plugin.tensorrt[0] not in (0, here[0]):
        raise DogeExportError(
            f"{plugin.path} is compiled for TensorRT {plugin.tensorrt[0]}, and TensorRT {trt.__version__} is here; "
            f"build it anew with `{_BUILD}`, which needs no headers"
        )
    registry = trt.get_plugin_registry()
    if in_use(trt) == plugin:
        return
    # get_creator would log an error where there is none.
    if any((known.name, known.plugin_namespace) == (_OPERATOR, NAMESPACE) for known in registry.all_creators):
        raise DogeExportError(f"this process has another {_OPERATOR} plugin registered; start a new one")
    # The path must be absolute: the registry silently refuses a bare name.
    if registry.load_library(str(plugin.path)) is None:
        raise DogeExportError(f"{title_of(trt)} does not load {plugin.path}; build it anew with `{_BUILD}`")
    _registered[trt.__name__] = plugin


def in_use(trt: ModuleType) -> PluginFile | None:
    """Return the plugin that this process has registered, which cannot be replaced; None if there is none."""
    return _registered.get(trt.__name__)


_registered: dict[str, PluginFile] = {}
"""The plugin in the registry of each TensorRT, by the name of its module."""


def check_same(engine: Mapping[str, Any], plugin: PluginFile) -> None:
    """Check that the plugin reads what an engine stores.

    Raises:
        DogeExportError: their schemas differ.
    """
    if engine["schema"] != plugin.schema:
        raise DogeExportError(
            f"the engine was built with a plugin of schema {engine['schema']}, and {plugin.path} has schema "
            f"{plugin.schema}; build the engine again, or name its plugin with --plugin or {VARIABLE}"
        )

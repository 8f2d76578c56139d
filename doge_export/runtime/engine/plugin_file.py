"""The plugin's library: find it, read its facts, register it with TensorRT."""

from __future__ import annotations

import ctypes
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from doge_export.errors import DogeExportError
from doge_export.plugin.build import TENSORRT_PLUGIN, cached_builds

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
    """

    path: Path
    sha256: str
    schema: int
    tensorrt: tuple[int, int, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for the sidecar, which omits the path on this machine."""
        return {"name": self.path.name, "sha256": self.sha256, "schema": self.schema, "tensorrt": list(self.tensorrt)}


def find_plugin(path: str | os.PathLike[str] | None = None) -> PluginFile:
    """Return the plugin at `path`, else at $DOGE_TRT_PLUGIN, else the newest that `doge-export plugin build` keeps.

    Raises:
        DogeExportError: there is none, or it is no such library.
    """
    named = os.fspath(path) if path is not None else os.environ.get(VARIABLE)
    if named:
        return read_plugin(Path(named).expanduser().resolve())
    for build in cached_builds():
        if TENSORRT_PLUGIN in build["libraries"]:
            return read_plugin(Path(build["folder"]) / TENSORRT_PLUGIN)
    raise DogeExportError(
        f"no {TENSORRT_PLUGIN} is built here: run `{_BUILD}`, name one with --plugin or {VARIABLE}, or take "
        "--attention native"
    )


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
    return PluginFile(path, fingerprint(path).sha256, schema, version)


def register(trt: ModuleType, plugin: PluginFile) -> None:
    """Register the plugin's operators with TensorRT, once in a process.

    Raises:
        DogeExportError: TensorRT does not load the plugin, or has one of another library already.
    """
    from doge_export.runtime.engine.installation import version

    here = version(trt)
    if plugin.tensorrt[0] not in (0, here[0]):
        raise DogeExportError(
            f"{plugin.path} is compiled for TensorRT {plugin.tensorrt[0]}, and TensorRT {trt.__version__} is here; "
            f"build it anew with `{_BUILD}`, which needs no headers"
        )
    registry = trt.get_plugin_registry()
    if in_use() == plugin:
        return
    if registry.get_creator(_OPERATOR, VERSION, NAMESPACE) is not None:
        raise DogeExportError(f"this process has another {_OPERATOR} plugin registered; start a new one")
    # The path must be absolute: the registry silently refuses a bare name.
    if registry.load_library(str(plugin.path)) is None:
        raise DogeExportError(f"TensorRT {trt.__version__} does not load {plugin.path}; build it anew with `{_BUILD}`")
    _registered.append(plugin)


def in_use() -> PluginFile | None:
    """Return the plugin that this process has registered, which cannot be replaced; None if there is none."""
    return _registered[-1] if _registered else None


_registered: list[PluginFile] = []


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

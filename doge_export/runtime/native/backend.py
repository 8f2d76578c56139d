"""Opening a folder's graph by the native decoder, or telling in one line why not."""

from __future__ import annotations

import functools
from pathlib import Path

from doge_export.errors import DogeExportError
from doge_export.package.manifest import Manifest
from doge_export.plugin.cpu_library import find_cpu_library
from doge_export.regular_file import is_there
from doge_export.runtime.native.cache import Opened, Source, mapped, open_weights
from doge_export.runtime.native.interface import NativeError, NativeLibrary, NativeModel
from doge_export.runtime.native.support import NotNative, check_graph, check_manifest, config_of
from doge_export.runtime.threads import native_threads


@functools.cache
def _loaded(path: Path) -> NativeLibrary:
    return NativeLibrary(path)


def native_library() -> NativeLibrary:
    """Return the library that is there.

    Raises:
        NotNative: there is none of this version.
    """
    try:
        return _loaded(find_cpu_library().path)
    except DogeExportError as error:
        raise NotNative(str(error)) from error


def described_backend(manifest: Manifest, name: str) -> str:
    """Return in words what `load` runs a graph by where nothing is asked for, without opening it."""
    if manifest.graphs[name].interface == "engine":
        return "TensorRT"
    try:
        chosen = native_library().usable_instruction_sets[-1]
        if manifest.graphs[name].interface == "native":
            return f"native decoder, {chosen}"
        check_graph(manifest, manifest.graphs[name])
        if chosen == "plain":
            raise NotNative("the native decoder has no kernels for this processor")
    except NotNative as why:
        return f"onnxruntime, since {why}"
    return f"native decoder, {chosen}"


def open_weight_file(file: Path, manifest: Manifest, threads: int | None) -> NativeModel:
    """Open a weight file that a folder of target native holds.

    Raises:
        NotNative: there is no library, or it is of another layout.
        DogeExportError: the file is not there, damaged, or of another model than the manifest says.
        RunFailed: there is not enough memory.
    """
    library = native_library()
    if not is_there(file):
        raise DogeExportError(f"{file.parent} has no {file.name}; export it again")
    try:
        model = library.open(mapped(file), threads or native_threads(file))
    except (OSError, ValueError) as error:
        raise DogeExportError(f"{file} cannot be read ({error}); export it again") from error
    except NativeError as error:
        raise DogeExportError(
            f"{file} is damaged, or of another version ({error}); `doge-export verify` tells more, or export it again"
        ) from error
    expected = config_of(check_manifest(manifest), manifest)
    if bytes(model.config) != bytes(expected):
        raise DogeExportError(f"{file} is of another model than the manifest says; `doge-export verify` tells more")
    return model


def open_native(folder: Path, manifest: Manifest, name: str, threads: int | None) -> Opened:
    """Open the native form of a graph's weights.

    Args:
        folder: an exported folder.
        manifest: its manifest.
        name: of the graph.
        threads: of the model; None: as many as suit its size.

    Raises:
        NotNative: the graph has no native form, or there is no library.
        DogeExportError: the graph cannot be read.
        RunFailed: there is not enough memory.
    """
    library = native_library()
    source = Source(folder, manifest, name)
    return open_weights(library, source, threads or native_threads(folder / name))

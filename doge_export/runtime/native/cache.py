"""Native forms of weights, kept in the user's cache folder: made once from a folder's graph, mapped ever after.

    native/SHA256-LAYOUT.doge         a weight file, by the sha256 of graph, external data and architecture
    native/SHA256-LAYOUT.doge.json    its sha256, and the size, times and number that it had when it was written
    native/graphs/HASH.json           by the path of a graph: its sha256, and size, times and number when it was hashed

Files are written aside and renamed. A file of another size or time than the one that was written is hashed, and made
anew where the hash differs; so is one that the library refuses, and one that another user owns. What a file says
is checked by the library before it is used, whoever wrote it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.package.atomic_file import written_file
from doge_export.package.disk import reason
from doge_export.package.fingerprint import fingerprint
from doge_export.package.manifest import Manifest
from doge_export.package.onnx_weights import OnnxWeights
from doge_export.paths import is_own, user_cache
from doge_export.regular_file import is_there, read_regular
from doge_export.runtime.native.graph_weights import GraphWeights, Unexpected
from doge_export.runtime.native.interface import NativeError, NativeLibrary, NativeModel, Status
from doge_export.runtime.native.support import NotNative, check_graph, config_of
from doge_export.runtime.native.weight_file import PACKING, WeightFile

MOST_FILES, MOST_BYTES = 16, 8 * 2**30
"""Native forms that are kept; beyond, those that were not used for longest are deleted."""

_ALIGNMENT = 64
_DAY = 24 * 60 * 60


class Source:
    """What a native form is made from: a graph, and what its folder's manifest says of the model.

    Args:
        folder: an exported folder.
        manifest: its manifest.
        name: of the graph.

    Raises:
        NotNative: the graph has no native form.
    """

    def __init__(self, folder: Path, manifest: Manifest, name: str) -> None:
        self.file = folder / name
        self.architecture = check_graph(manifest, manifest.graphs[name])
        self.config = config_of(self.architecture, manifest)
        self._expected = [manifest.files.get(part) for part in (name, f"{name}_data")]
        self._parts = [part for part in (self.file, self.file.with_name(f"{self.file.name}_data")) if is_there(part)]
        self._looks: list[dict[str, int]] = []

    def digest(self, folder: Path | None) -> str:
        """Return the sha256 that the native form is found by.

        Args:
            folder: cache of the hashes of files; None without.

        Raises:
            NotNative: the graph is not the one that the manifest records: its nodes may compute something else.
            OSError: it cannot be read.
        """
        self._looks = _all_looks(self._parts)
        found = _hashes(self._parts, self._looks, folder)
        if found != [entry.sha256 for entry in self._expected if entry is not None]:
            raise NotNative("the graph is not the one that the manifest records; `doge-export verify` tells more")
        # Everything that decides which weights there are, and the order that they come in.
        made_from = [PACKING, *found, self.architecture.to_dict(), bytes(self.config).hex()]
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    def check_unchanged(self) -> None:
        """Check that the files are still those that `digest` told of, so that nothing is kept under another's name.

        Raises:
            NotNative: they are not.
        """
        if _all_looks(self._parts) != self._looks:
            raise NotNative("the graph was changed while it was read; open it again")


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
    """Native weights, opened.

    Attributes:
        model: to make states of.
        file: the cached file; None for one in memory.
        made: it was not there yet.
        note: why it could not be kept; None if it was.
    """

    model: NativeModel
    file: Path | None
    made: bool
    note: str | None = None


def open_weights(
    library: NativeLibrary, source: Source, threads: int, instruction_set: str | None = None, flags: int = 0
) -> Opened:
    """Open the native form of a graph's weights, from the cache, or made from the graph.

    Raises:
        NotNative: the graph has no native form.
        DogeExportError: it cannot be read.
        RunFailed: there is not enough memory.
    """

    def opened(content: np.ndarray) -> NativeModel:
        return library.open(content, threads, instruction_set, flags)

    folder = _folder()
    digest = source.digest(folder)
    if folder is None:
        content = _in_memory(library, source, digest)
        return Opened(
            opened(content), None, True, "the native form of the weights is not kept: there is no home folder"
        )
    file = folder / f"{digest}-{library.layout}.doge"
    found = _kept(file)
    if found is not None:
        try:
            model = opened(found)
            if bytes(model.header.source) == bytes.fromhex(digest):
                return Opened(model, file, False)
        except NativeError as error:
            if error.status not in (Status.BAD_FILE, Status.UNSUPPORTED):
                raise
    try:
        _write(library, source, file, digest)
        _tidy(folder, file)
    except (OSError, DogeExportError) as error:
        if isinstance(error, DogeExportError) and not isinstance(error.__cause__, OSError):
            raise
        content = _in_memory(library, source, digest)
        return Opened(opened(content), None, True, f"native weights are not kept: {_why(error)}")
    written = _kept(file)
    content = written if written is not None else _in_memory(library, source, digest)
    return Opened(opened(content), file, True)


def _folder() -> Path | None:
    try:
        return user_cache() / "native"
    except RuntimeError:  # the user has no home
        return None


def _why(error: OSError | DogeExportError) -> str:
    return str(error) if isinstance(error, DogeExportError) else reason(error)


@contextlib.contextmanager
def planned(library: NativeLibrary, source: Source, digest: str) -> Iterator[WeightFile]:
    """Yield the weight file of a graph, which is read while the body runs.

    Raises:
        NotNative: it has no native form, or was changed meanwhile.
        DogeExportError: it cannot be read.
    """
    with OnnxWeights(source.file) as weights:
        try:
            graph = GraphWeights(weights)
            yield WeightFile(library, graph, source.architecture, source.config, bytes.fromhex(digest))
            source.check_unchanged()
        except Unexpected as error:
            raise NotNative(f"the graph is not as this version writes it: {error}") from error
        except NativeError as error:
            if error.status not in (Status.UNSUPPORTED, Status.BAD_ARGUMENT):
                raise
            raise NotNative(f"the library does not take it: {error}") from error


def _in_memory(library: NativeLibrary, source: Source, digest: str) -> np.ndarray:
    with planned(library, source, digest) as weights:
        raw = np.zeros(weights.bytes + _ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        content = raw[start : start + weights.bytes]
        for offset, part in weights.content():
            content[offset : offset + part.nbytes] = part
    return content


def _write(library: NativeLibrary, source: Source, file: Path, digest: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    _make_way(file)
    hashed = hashlib.sha256()
    with written_file("the native weights", file) as stream, planned(library, source, digest) as weights:
        at = 0
        for offset, part in weights.content():
            for content in (bytes(offset - at), part.data):
                stream.write(content)
                hashed.update(content)
            at = offset + part.nbytes
        tail = bytes(weights.bytes - at)
        stream.write(tail)
        hashed.update(tail)
    _write_record(_record(file), {"sha256": hashed.hexdigest(), **_looks(file.stat())})


def _kept(file: Path) -> np.ndarray | None:
    """Map a file of the cache; None if there is none, or none that was written here."""
    try:
        if not is_there(file):
            return None
        record, status = _read_record(_record(file)), file.stat()
        if record is None or not is_own(status):
            return None
        if _looks(status).items() <= record.items():
            if time.time() - _record(file).stat().st_mtime > _DAY:
                with contextlib.suppress(OSError):  # a cache that cannot be written is as good
                    os.utime(_record(file))  # the time of the last use, by which old ones are told
        elif record.get("sha256") != fingerprint(file).sha256:
            return None
        else:
            with contextlib.suppress(OSError, DogeExportError):
                _write_record(_record(file), {**record, **_looks(status)})
        return mapped(file)
    except (OSError, ValueError, DogeExportError):
        return None


def mapped(file: Path) -> np.ndarray:
    """Map a file, read-only, uint8 [bytes].

    Raises:
        OSError, ValueError: it cannot be read, or is empty.
    """
    with file.open("rb") as stream:
        return np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _hashes(parts: list[Path], looks: list[dict[str, int]], folder: Path | None) -> list[str]:
    """Return the sha256 of files, which are read again only if size, times or number have changed."""
    if folder is None or not parts:
        return [fingerprint(part).sha256 for part in parts]
    record = folder / "graphs" / f"{hashlib.sha256(os.fsencode(parts[0].resolve())).hexdigest()[:32]}.json"
    known = _read_record(record)
    if known is not None and known.get("parts") == looks and _are_digests(known.get("sha256"), len(parts)):
        return list(known["sha256"])
    hashes = [fingerprint(part).sha256 for part in parts]
    with contextlib.suppress(OSError, DogeExportError):
        record.parent.mkdir(parents=True, exist_ok=True)
        _write_record(record, {"sha256": hashes, "parts": looks})
    return hashes


def _are_digests(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(each, str) for each in value)


def _looks(status: os.stat_result) -> dict[str, int]:
    return {"bytes": status.st_size, "mtime": status.st_mtime_ns, "ctime": status.st_ctime_ns, "inode": status.st_ino}


def _all_looks(parts: list[Path]) -> list[dict[str, int]]:
    return [_looks(part.stat()) for part in parts]


def _record(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _read_record(file: Path) -> dict[str, Any] | None:
    try:
        if not is_own(file.stat()):
            return None
        record = json.loads(read_regular(file, 2**16))
    except (OSError, ValueError, DogeExportError):
        return None
    return record if isinstance(record, dict) else None


def _write_record(file: Path, record: dict[str, Any]) -> None:
    _make_way(file)
    with written_file("the cache", file) as stream:
        stream.write(json.dumps(record).encode())


def _make_way(file: Path) -> None:
    """Keep `written_file` from following a link, and from writing over a file that another process has mapped.

    Raises:
        OSError: the folder cannot be written.
    """
    if file.is_symlink():
        file.unlink()
    if not os.access(file.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file.parent))


def _tidy(folder: Path, newest: Path) -> None:
    """Delete native forms of other layouts' libraries and of folders that are gone in time: the least used first."""
    with contextlib.suppress(OSError):
        files = [path for path in folder.iterdir() if path.name.endswith(".doge") and path != newest]
        used = sorted(files, key=_last_use, reverse=True)
        count, size = 1, newest.stat().st_size
        for file in used:
            count, size = count + 1, size + file.stat().st_size
            if count > MOST_FILES or size > MOST_BYTES:
                file.unlink(missing_ok=True)
                _record(file).unlink(missing_ok=True)
        graphs = sorted((folder / "graphs").iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for record in graphs[4 * MOST_FILES :]:
            record.unlink(missing_ok=True)


def _last_use(file: Path) -> float:
    try:
        return _record(file).stat().st_mtime
    except OSError:
        return 0.0

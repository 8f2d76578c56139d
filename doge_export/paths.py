"""Paths that a user gives, and checks before any work that a run can write to them."""

from __future__ import annotations

import codecs
import importlib.util
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from doge_export.errors import DogeExportError

EXPORTED = "doge_export.json"
"""Name of the manifest, the file that marks an exported folder."""


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""Form of a repository's name on the hub: owner/name."""


def check_path_text(path: str | Path) -> None:
    """Check that a path can be written into a manifest and shown.

    Raises:
        DogeExportError: it holds a NUL, or bytes or surrogates that are no Unicode text.
    """
    text = str(path)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DogeExportError(
            f"the path {text!a} is not Unicode text (see character {error.start}): rename the file or folder, or"
            " run in a UTF-8 locale if its name is shown right elsewhere"
        ) from error
    if "\0" in text:
        raise DogeExportError(f"there is no folder or file {text!a}: no name has a NUL character")


def expanded(path: str | Path) -> Path:
    """Return the path with a leading ~ or ~user replaced by the home directory.

    Raises:
        DogeExportError: the path is not Unicode text.
    """
    check_path_text(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no user of that name: ~name is an ordinary file name
        return Path(path)


def user_cache() -> Path:
    """Return the folder of what can be made again: $DOGE_EXPORT_CACHE, else doge-export in the user's cache folder.

    Raises:
        RuntimeError: the user has no home.
    """
    if os.environ.get("DOGE_EXPORT_CACHE"):
        return Path(os.environ["DOGE_EXPORT_CACHE"]).expanduser().resolve()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "doge-export"


def is_own(status: os.stat_result) -> bool:
    """Return whether a file or folder is this user's or the administrator's, and no other one's of a shared cache."""
    return not hasattr(os, "geteuid") or status.st_uid in (0, os.geteuid())


def protected_by(model: str | Path) -> list[Path]:
    """Return the paths that a run which reads `model` must not delete or replace; none for a hub id."""
    path = expanded(model)
    return [path] if exists(path) else []


def exists(path: Path) -> bool:
    """Return whether the path exists; False for a name that the file system does not allow."""
    try:
        return path.exists()
    except OSError:  # the name is too long
        return False


def check_file(option: str, file: Path) -> None:
    """Check that a file can be written: its folder exists and is writable, and its path is not that of a folder.

    Args:
        option: command-line option that gave the path, for the message.
        file: path of the file.

    Raises:
        DogeExportError: the file cannot be written.
    """
    why = _unwritable(file)
    if why is not None:
        raise DogeExportError(f"{option} {file}: {why}")


def _unwritable(file: Path) -> str | None:
    """Return why a file cannot be written; None if it can."""
    try:
        if file.is_dir():
            return "is a folder; name a file"
        if not file.parent.is_dir():
            return "its folder does not exist"
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            return "it is read-only" if file.exists() else "its folder is read-only"
    except OSError as error:  # the name is too long
        return os.strerror(error.errno or 0).lower()
    except ValueError as error:  # a NUL character
        return str(error)
    return None


def check_apart(
    writes: Mapping[str, str | Path | None],
    reads: Mapping[str, str | Path | Iterable[str | Path] | None],
    output: str | Path | None = None,
) -> None:
    """Check that no place that a command writes is one that it reads, lies in it, or is written twice.

    Args:
        writes: files and folders, by the option or argument that names them; None for none.
        reads: files and folders, by the option or argument that names them; names of no file are left out.
        output: folder that the command writes, which may lie in one that it reads.

    Raises:
        DogeExportError: two of them are the same file or folder, or a written one lies in another.
    """
    written = [(name, expanded(path)) for name, path in writes.items() if path is not None]
    others = [*written, *([] if output is None else [("OUT", expanded(output))])]
    for name, given in reads.items():
        several = [given] if given is None or isinstance(given, str | Path) else list(given)
        others += [(name, path) for path in (expanded(one) for one in several if one is not None) if exists(path)]
    for name, path in written:
        for other, place in others:
            if (name, path) == (other, place) and others.count((name, path)) == 1:
                continue
            if _is_same(path, place):
                raise DogeExportError(f"{name} {path} is {other} of the same command; name another place")
            if path.resolve().is_relative_to(place.resolve()):
                raise DogeExportError(f"{name} {path} would lie in {place}, which is {other}; name a place beside it")


def _is_same(one: Path, other: Path) -> bool:
    """Return whether two paths lead to the same file or folder, by links too; devices are never the same."""
    if exists(one) and not (one.is_file() or one.is_dir()):
        return False
    return one.resolve() == other.resolve() or (exists(one) and exists(other) and one.samefile(other))


def check_folder(option: str, folder: Path) -> None:
    """Check that a folder exists or can be created: nothing on its path is a file.

    Args:
        option: command-line option that gave the path, for the message.
        folder: path of the folder.

    Raises:
        DogeExportError: a file is in the way.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        where = "" if nearest == folder else f"{nearest} "
        raise DogeExportError(f"{option} {folder}: {where}is a file; name a folder")


def report_path(path: str | Path, output: str | Path | None = None) -> Path:
    """Check that a report can be drawn and written, and return its path with `~` expanded.

    Args:
        path: path of the report.
        output: folder that the run is about to replace.

    Raises:
        DogeExportError: the report's folder does not exist, the path is a folder, or it is inside `output`.
        ModuleNotFoundError: matplotlib, which draws it, is not installed.
    """
    path = expanded(path)
    if not path.parent.is_dir():
        raise DogeExportError(f"the report cannot be written: there is no folder {path.parent}")
    why = _unwritable(path)
    if why is not None:
        raise DogeExportError(f"the report cannot be written: {path} {why}")
    if output is not None and path.resolve().is_relative_to(expanded(output).resolve()):
        raise DogeExportError(
            f"the report {path} would lie in {output}, which this export writes; name a place beside it"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    return path


def read_text(file: str | Path, most: int | None = None) -> str:
    """Read a UTF-8 text file, without changing its line ends; a byte order mark at its beginning is dropped.

    Args:
        file: path of the file.
        most: bytes from which on it is refused; None for any number.

    Raises:
        DogeExportError: the file cannot be read, is not UTF-8 or too long.
    """
    content = _beginning(file, -1 if most is None else most + 1)
    if most is not None and len(content) > most:
        raise DogeExportError(f"{file} has more than {most} bytes, the most that is read at once: give a part of it")
    return _decoded(file, content, is_whole=True)


def read_beginning(file: str | Path, most: int) -> str:
    """Read at most `most` bytes of a UTF-8 text file as `read_text` does; a character that is cut is left out."""
    content = _beginning(file, most + 1)
    return _decoded(file, content[:most], is_whole=len(content) <= most)


def _beginning(file: str | Path, size: int) -> bytes:
    try:
        with Path(file).open("rb") as stream:
            return stream.read(size)
    except OSError as error:
        raise DogeExportError(f"cannot read {file}: {os.strerror(error.errno or 0).lower()}") from error


def _decoded(file: str | Path, content: bytes, *, is_whole: bool) -> str:
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(content, is_whole)
    except UnicodeDecodeError as error:
        raise DogeExportError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error

"""Paths that a user gives, and checks before any work that a run can write to them."""

from __future__ import annotations

import os
import re
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
    """Check that a file can be written: its folder exists, and its path is not that of a folder.

    Args:
        option: command-line option that gave the path, for the message.
        file: path of the file.

    Raises:
        DogeExportError: the file cannot be written.
    """
    if file.is_dir() or not file.parent.is_dir():
        raise DogeExportError(f"{option} {file}: {'is a folder' if file.is_dir() else 'its folder does not exist'}")


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
    """Check that a report can be written, and return its path with `~` expanded.

    Args:
        path: path of the report.
        output: folder that the run is about to replace.

    Raises:
        DogeExportError: the report's folder does not exist, the path is a folder, or it is inside `output`.
    """
    path = expanded(path)
    if not path.parent.is_dir():
        raise DogeExportError(f"the report cannot be written: there is no folder {path.parent}")
    if path.is_dir():
        raise DogeExportError(f"the report cannot be written: {path} is a folder; name a file")
    if output is not None and path.resolve().is_relative_to(expanded(output).resolve()):
        raise DogeExportError(
            f"the report {path} would lie in {output}, which this export writes; name a place beside it"
        )
    return path


def read_text(file: str | Path) -> str:
    """Read a UTF-8 text file, without changing its line ends; a byte order mark at its beginning is dropped.

    Raises:
        DogeExportError: the file cannot be read or is not UTF-8.
    """
    try:
        return Path(file).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DogeExportError(f"cannot read {file}: {os.strerror(error.errno or 0).lower()}") from error
    except UnicodeDecodeError as error:
        raise DogeExportError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error

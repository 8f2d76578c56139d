"""Files and folders that a user names: where they are, and whether a run may write them, asked before the work."""

from __future__ import annotations

import os
from pathlib import Path

from doge_export.errors import DogeExportError

EXPORTED = "doge_export.json"
"""The file that marks an exported folder: its manifest."""


def expanded(path: str | Path) -> Path:
    """The path with a leading ~ or ~user replaced by the home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~name of a user who is not there: an ordinary name, then
        return Path(path)


def protected_by(model: str | Path) -> list[Path]:
    """What a run that reads `model` must not delete, such as by replacing a folder around it; nothing of a hub id."""
    path = expanded(model)
    return [path] if exists(path) else []


def exists(path: Path) -> bool:
    """Whether there is such a file or folder, for any name."""
    try:
        return path.exists()
    except OSError:  # a name longer than the file system allows
        return False


def check_file(option: str, file: Path) -> None:
    """Raises DogeExportError, naming the option, where a file cannot be written under that name."""
    if file.is_dir() or not file.parent.is_dir():
        raise DogeExportError(f"{option} {file}: {'is a folder' if file.is_dir() else 'its folder does not exist'}")


def check_folder(option: str, folder: Path) -> None:
    """Raises DogeExportError, naming the option, where files cannot be written into that folder; it may be missing."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        where = "" if nearest == folder else f"{nearest} "
        raise DogeExportError(f"{option} {folder}: {where}is a file; name a folder")


def report_path(path: str | Path, output: str | Path | None = None) -> Path:
    """The path of a report, `~` expanded.

    Raises DogeExportError where its folder does not exist, where it is itself a folder, and where it lies inside
    `output`, a folder that is about to be replaced.
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
    """All of a file, byte for byte. Raises DogeExportError where it cannot be read or is not UTF-8."""
    try:
        return Path(file).read_bytes().decode("utf-8")
    except OSError as error:
        raise DogeExportError(f"cannot read {file}: {os.strerror(error.errno or 0).lower()}") from error
    except UnicodeDecodeError as error:
        raise DogeExportError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error

"""Files that a run writes at its end: whether it can is asked before the work."""

from __future__ import annotations

from pathlib import Path

from doge_export.errors import DogeExportError


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

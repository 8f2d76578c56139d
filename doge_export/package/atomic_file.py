"""Atomic writing of one file: the old content stays until the new one is whole."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from doge_export.errors import DogeExportError, RunFailed
from doge_export.package import leftovers
from doge_export.package.disk import is_full, reason
from doge_export.package.lock import lock_path

_IN_PLACE = {errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS}
"""Why a file cannot be replaced although it may be writable: it is mounted, or its folder is not writable."""


@contextlib.contextmanager
def written_file(what: str, file: Path) -> Iterator[IO[bytes]]:
    """Yield a binary stream whose content becomes that of `file` when the body ends; when the body raises, none does.

    Links are followed. A pipe or a device is written as it is.

    Args:
        what: what is written, for the message: an option, or "the report".
        file: path of the file.

    Raises:
        RunFailed: the disk is full.
        DogeExportError: the file cannot be written for another reason.
    """
    try:
        with _stream(file) as stream:
            yield stream
    except OSError as error:
        kind = RunFailed if is_full(error) else DogeExportError
        raise kind(f"{what} cannot be written to {file}: {reason(error)}") from error


@contextlib.contextmanager
def _stream(file: Path) -> Iterator[IO[bytes]]:
    if file.exists() and not file.is_dir() and not stat.S_ISREG(file.stat().st_mode):
        with file.open("wb") as stream:
            yield stream
        return
    file = file.resolve()
    _tidy_after_killed_runs(file)
    temporary = file.with_name(leftovers.beside(file.name, leftovers.STAGED))
    try:
        try:
            stream = temporary.open("wb")
        except OSError as error:
            if error.errno not in _IN_PLACE or not file.is_file():
                raise
            with file.open("r+b") as existing:
                yield existing
                existing.truncate()
            return
        with stream, lock_path(temporary):
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if file.exists():
            shutil.copymode(file, temporary)
        _replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _replace(temporary: Path, file: Path) -> None:
    try:
        temporary.replace(file)
    except OSError as error:
        if error.errno not in _IN_PLACE or not file.is_file():
            raise
        shutil.copyfile(temporary, file)  # a single file that is mounted


def _tidy_after_killed_runs(file: Path) -> None:
    """Delete unfinished files of runs that ended; a file that a live run writes is locked."""
    name = leftovers.pattern_beside(file.name)
    for path in file.parent.iterdir():
        if name.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with lock_path(path) as locked:
                if locked:
                    path.unlink(missing_ok=True)

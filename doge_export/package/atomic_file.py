"""Atomic writing of one file: the old content stays until the new one is whole."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
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
        with file.open("wb") as device:
            yield device
        return
    file = file.resolve()
    _tidy_after_killed_runs(file)
    with contextlib.ExitStack() as held:
        try:
            temporary, stream = held.enter_context(_temporary(file))
        except OSError as error:
            if error.errno not in _IN_PLACE or not file.is_file():
                raise
            with file.open("r+b") as existing:
                yield existing
                existing.truncate()
            return
        with stream:  # Windows renames no open file
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if file.exists():
            shutil.copymode(file, temporary)
        _replace(temporary, file)


@contextlib.contextmanager
def _temporary(file: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Yield a new file beside `file`, locked so that no other run takes it for a leftover, and delete it at the end.

    A run that tidies up meanwhile may find it before it is locked; then there is another one.
    """
    while True:
        # Not longer than a process id, since names have a limit of 255 bytes.
        temporary = file.with_name(leftovers.beside(file.name, leftovers.STAGED, secrets.randbelow(10**7)))
        try:
            stream = temporary.open("xb")
        except FileExistsError:
            continue
        with stream, contextlib.ExitStack() as held:
            held.callback(_delete, temporary)
            if held.enter_context(lock_path(temporary)) is not False:
                yield temporary, stream
                return


def _delete(file: Path) -> None:
    file.unlink(missing_ok=True)


def _replace(temporary: Path, file: Path) -> None:
    try:
        temporary.replace(file)
    except OSError as error:
        if error.errno not in _IN_PLACE or not file.is_file():
            raise
        shutil.copyfile(temporary, file)  # a single file that is mounted


def _tidy_after_killed_runs(file: Path) -> None:
    """Delete unfinished files of runs that ended, as far as this user may; a file that a live run writes is locked."""
    name = leftovers.pattern_beside(file.name)
    found: list[Path] = []
    with contextlib.suppress(OSError):  # a folder that may be written and not listed
        found = [path for path in file.parent.iterdir() if name.fullmatch(path.name)]
    for path in found:
        with contextlib.suppress(OSError):  # another user's, or another run has just deleted it
            if path.is_symlink() or not path.is_file():
                continue
            with lock_path(path) as locked:
                if locked:
                    path.unlink(missing_ok=True)

"""Reading files of folders that nobody vouches for: regular files only, of bounded size.

Opening a named pipe waits for whoever writes it, and a device such as /dev/zero never ends.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from doge_export.errors import DogeExportError

LARGEST = 256 * 2**20
"""Bytes of the largest text file that is read whole; the largest tokenizer.json published so far has some 35 MB."""


def is_there(file: Path) -> bool:
    """Return whether there is a regular file, or a link to one; False if nothing has that name.

    Raises:
        DogeExportError: what has the name is no regular file.
    """
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError):  # not there, a name that is too long, or one with a NUL character
        return False
    if not stat.S_ISREG(mode):
        raise DogeExportError(f"{file} is {_kind(mode)}, expected a regular file: take the folder from who made it")
    return True


def check_files(folder: Path) -> None:
    """Check that whatever lies in a folder is a regular file or a folder, as libraries open some of it by name.

    Raises:
        DogeExportError: something else is there, such as a named pipe.
    """
    for parent, _, names in os.walk(folder):
        for name in names:
            is_there(Path(parent, name))


def read_regular(file: Path, largest: int = LARGEST) -> bytes:
    """Read a whole file.

    Raises:
        OSError: it cannot be opened or read.
        DogeExportError: it is no regular file, or has more than `largest` bytes.
    """
    # Without waiting, and what was opened is judged, as the name may lead elsewhere a moment later.
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)  # opening it as a stream would refuse a folder, and leave it open
        raise DogeExportError(f"{file} is {_kind(status.st_mode)}, expected a regular file")
    with open(descriptor, "rb") as stream:  # noqa: PTH123 - a descriptor
        content = stream.read(largest + 1) if status.st_size <= largest else b""
    if max(status.st_size, len(content)) > largest:
        raise DogeExportError(f"{file} has more than {largest} bytes, which no such file needs: fetch it again")
    return content


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((name for test, name in kinds.items() if test(mode)), "no file")

"""Full disks: their errors, in one line, whichever library reports them."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from doge_export.errors import RunFailed

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors that go away with more room."""
_QUOTED = re.compile(r"(?:\[Errno |os error )(\d+)")
"""How shutil and safetensors quote the number of an error of the system."""


def number_of(error: BaseException) -> int | None:
    """Return the errno of an exception, also where a library only quotes it in its text; None if there is none."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    quoted = _QUOTED.search(str(error))
    return int(quoted[1]) if quoted else None


def reason(error: BaseException) -> str:
    """Return why the system refused, in the words of the system."""
    number = number_of(error)
    return os.strerror(number).lower() if number else str(error)


def is_full(error: BaseException) -> bool:
    """Return whether an exception says that a disk is full, or a file or a quota at its limit."""
    short_write = isinstance(error, OSError) and error.errno is None and "requested and" in str(error)  # numpy.tofile
    return number_of(error) in FULL or short_write


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a folder for temporary files, which is deleted when the body ends.

    Raises:
        RunFailed: it cannot be made, or its disk is full.
    """
    try:
        temporary = tempfile.TemporaryDirectory(prefix="doge-export-")
    except OSError as error:
        raise _no_scratch(error) from error
    try:
        with temporary as folder:
            yield Path(folder)
    except OSError as error:
        if not is_full(error):
            raise
        raise _no_scratch(error) from error


def _no_scratch(error: OSError) -> RunFailed:
    where = tempfile.tempdir or "the folder for temporary files"
    return RunFailed(f"cannot write to {where}: {reason(error)}; make room there, or set TMPDIR")

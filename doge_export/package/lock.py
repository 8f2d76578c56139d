"""Locks on folders: the system releases those of a killed process, whereas another process may get its id."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[bool | None]:
    """Hold an exclusive lock on a folder in the body.

    Yields:
        True if the lock is held; False if another open file has it, in this process or another; None if folders cannot
        be locked here.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY)
    locked: bool | None = True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            locked = False
        except OSError:
            locked = None
        yield locked
    finally:
        os.close(descriptor)


def process_alive(pid: int) -> bool:
    """Return whether a process of that id exists; always True on Windows, where the question would end the process."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True

"""Locks on folders and files: the system releases those of a killed process, whereas another process may get its id."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def lock_path(path: Path) -> Iterator[bool | None]:
    """Hold an exclusive lock on a folder or a file in the body.

    Yields:
        True if the lock is held; False if another open file has it, in this process or another, or if the path is gone
        or leads to another one meanwhile; None if folders cannot be locked here.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield None
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    locked: bool | None = True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = _is_at(descriptor, path)
        except BlockingIOError:
            locked = False
        except OSError:
            locked = None
        yield locked
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether the path still leads to the open folder or file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def process_alive(pid: int) -> bool:
    """Return whether a process of that id exists; always True on Windows, where the question would end the process."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it is another user's
    return True

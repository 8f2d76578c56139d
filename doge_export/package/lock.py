"""Locks on folders, which a killed process loses, unlike a process id, which may come back as somebody else's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[bool | None]:
    """Holds an exclusive lock on `folder` in the body.

    Yields True when it was taken, False when another open file holds it (in this process or another), None where
    folders cannot be locked.
    """
    try:
        import fcntl
    except ImportError:
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            yield None
            return
        yield True
    finally:
        os.close(descriptor)


def process_alive(pid: int) -> bool:
    """Whether a process of that id exists. On Windows, where asking by signal would end it, always True."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

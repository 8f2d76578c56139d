"""Mount points, bind mounts of the same file system included: such a folder has content of its own and no new name."""

from __future__ import annotations

import os
import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_MOUNT_POINT = 4
"""Field of a line of mountinfo, whose blanks and backslashes are written as three octal digits."""


def mount_points() -> set[Path]:
    """Return the folders and files that something is mounted on; none where the system does not list them."""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return set()
    places = (fields[_MOUNT_POINT] for fields in map(bytes.split, lines) if len(fields) > _MOUNT_POINT)
    return {Path(os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), p))) for p in places}


def is_mount(folder: Path) -> bool:
    """Return whether something is mounted on an absolute path without links."""
    return os.path.ismount(folder) or folder in mount_points()  # the method of Path raises on Windows


def mounts_in(folder: Path) -> list[Path]:
    """Return the mount points below a folder, given as an absolute path without links."""
    return sorted(place for place in mount_points() if place != folder and place.is_relative_to(folder))


def is_renamable(folder: Path) -> bool:
    """Return whether an existing folder, given as an absolute path without links, can be renamed.

    It cannot if it is a mount point, if its parent is not writable, or if it is another user's in a folder like /tmp,
    whose sticky bit lets everybody rename only what is theirs.
    """
    if is_mount(folder) or not os.access(folder.parent, os.W_OK | os.X_OK):
        return False
    parent, user = folder.parent.stat(), os.geteuid() if hasattr(os, "geteuid") else 0
    return not parent.st_mode & 0o1000 or user in (0, parent.st_uid, folder.stat().st_uid)

"""Number of processors that this process may use: fewer than the machine has in a container or under taskset."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
"""Mount point of Linux control groups, which limit processor time in containers."""


def allowed_processors() -> int:
    """Return how many processors this process may keep busy, at least 1.

    The least of: processors it may run on (affinity), the quotas of its control groups (rounded up), OMP_NUM_THREADS.
    """
    limits = [_affinity(), *_quotas(), _requested()]
    return max(1, min(math.ceil(limit) for limit in limits if limit is not None))


def is_restricted() -> bool:
    """Return whether this process may use fewer processors than the machine has."""
    return allowed_processors() < (os.cpu_count() or 1)


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _requested() -> int | None:
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(text) if text.isdecimal() and int(text) > 0 else None


def _quotas() -> list[float]:
    """Return the quotas of this process's control groups and all above them, in processors.

    Version 2 has a file cpu.max ("200000 100000", microseconds of each period, or "max ..."); version 1 two files.
    """
    quotas = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS
        folder = root / group.lstrip("/")
        for each in (folder, *folder.parents):
            if controllers:
                words = [_read(each / "cpu.cfs_quota_us").strip(), _read(each / "cpu.cfs_period_us").strip()]
            else:
                words = _read(each / "cpu.max").split()
            if len(words) == 2 and all(word.isdecimal() and int(word) > 0 for word in words):
                quotas.append(int(words[0]) / int(words[1]))
            if each == root:
                break
    return quotas


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

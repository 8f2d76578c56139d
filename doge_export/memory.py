"""How much memory a process has needed."""

from __future__ import annotations

import sys


def peak_resident_bytes() -> int:
    """The most resident memory that this process has had so far."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

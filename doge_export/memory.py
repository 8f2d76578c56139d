"""Memory use of this process."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    status = Path("/proc/self/status")
    # ru_maxrss survives fork and exec on Linux: a small program that a large one starts would seem as large.
    if status.exists() and (found := re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

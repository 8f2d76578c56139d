"""How much memory a process has needed."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def peak_resident_bytes() -> int:
    """The most resident memory that this process has had so far."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    status = Path("/proc/self/status")
    # Linux hands ru_maxrss down through fork and exec: a small program started by a large one would seem as large.
    if status.exists() and (found := re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

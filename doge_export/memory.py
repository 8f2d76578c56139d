"""Memory use of this process."""

from __future__ import annotations

import errno
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


def resident_bytes() -> int | None:
    """Return the resident memory of this process now, in bytes; None where only its peak can be had."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"^VmRSS:\s*(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024
    return None


_SIGNS = re.compile(
    r"bad_alloc|bad allocation|out of memory|not enough memory|cannot allocate memory|can't allocate memory"
    r"|failed to allocate|unable to allocate|allocation (of \d+ bytes )?failed|failed to map segment"
    r"|can't start new thread|pthread_create failed|resource temporarily unavailable",
    re.IGNORECASE,
)
"""What libraries write when memory or threads run out: onnxruntime, torch, NumPy, the dynamic loader, Python."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one that led to it, says that the process got no more memory or threads."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM):
            return True
        # Errors of onnxruntime and safetensors derive from Exception alone.
        is_native = isinstance(cause, (RuntimeError, ImportError)) or re.search(
            "onnxruntime|safetensors", type(cause).__module__
        )
        if is_native and _SIGNS.search(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def out_of_memory(error: BaseException) -> str:
    """Return the line for a user whose run got no more memory."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:120].rstrip(": ")
    return (
        f"there is not enough memory for this ({reason}): close other programs, raise the limit (ulimit -v, the "
        "container's), or take a smaller model, precision, batch, --max-length or --threads"
    )

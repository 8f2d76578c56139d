"""Number of threads for a graph.

Decoding reads every weight once a token. If there is little to read, waking a second thread costs more than it
saves: on two cores of a shared EPYC one thread was 4 to 6 % faster for doge-nano (2 MB in int8; 7 MB in float32: 2 to
4 %), two were up to 20 % faster for 20M in int8 (14 MB) and up to 15 % in int4 (7 MB). Spinning threads, onnxruntime's
default, were up to 40 % faster than sleeping ones at every size, so the default is kept. More than two threads were
never measured.
"""

from __future__ import annotations

import os
from pathlib import Path

from doge_export.errors import DogeExportError
from doge_export.processors import allowed_processors, is_restricted
from doge_export.runtime.generation_config import is_integer

FEW = 64
"""Threads that may be asked for on any machine, so that a command line written for another one runs."""

BYTES_PER_THREAD = 4 * 2**20
"""Bytes of weights for which one more thread is worth waking."""


def thread_count(file: Path) -> int:
    """Return the threads for a graph file and its external data; 0 lets onnxruntime take one for each physical core."""
    data = file.with_name(f"{file.name}_data")
    size = sum(part.stat().st_size for part in (file, data) if part.is_file())
    wanted = -(-size // BYTES_PER_THREAD)
    if is_restricted():
        return min(wanted, allowed_processors())
    # Two logical processors may be one core; beyond half of them onnxruntime knows better.
    return wanted if wanted <= (os.cpu_count() or 1) // 2 else 0


def native_threads(file: Path) -> int:
    """Return the threads of the native decoder for a graph file: as `thread_count`, at most one a processor."""
    data = file.with_name(f"{file.name}_data")
    size = sum(part.stat().st_size for part in (file, data) if part.is_file())
    return max(1, min(-(-size // BYTES_PER_THREAD), allowed_processors(), FEW))


def check_threads(threads: int | None) -> None:
    """Check a number of threads that a user gives.

    Raises:
        DogeExportError: it is out of range: beyond the processors, threads only wait for each other, and thousands
            leave no memory.
    """
    most = max(os.cpu_count() or 1, FEW)
    if threads is not None and (not is_integer(threads) or not 1 <= threads <= most):
        raise DogeExportError(
            f"threads is {threads!r}, expected 1 or more, up to {most} (this machine has {os.cpu_count()} processors)"
        )


def most_threads() -> int:
    """Return the threads for long runs; 0 lets onnxruntime take one for each physical core.

    Left alone, onnxruntime counts the machine's cores, also those that this process may not use: on one allowed
    processor of two, its threads then wait for each other and halve the speed.
    """
    return allowed_processors() if is_restricted() else 0

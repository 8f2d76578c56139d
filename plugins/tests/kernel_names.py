"""Names of kernels: those that a library holds, and those that a profiler saw."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

_STUB = re.compile(r"__device_stub__(ZN\w+)")
"""The host's side of a kernel, as nvcc names it: `_` and this is the kernel's mangled name."""
_NAME = re.compile(r"doge::(?:cdmoe::)?(\w+(?:<[^>]*>)?)\(")


def kernels_of(library: Path) -> set[str]:
    """Return the short names of the kernels in an unstripped library."""
    symbols = subprocess.run(["nm", "-C", library], capture_output=True, text=True, check=True).stdout
    mangled = sorted({f"_{name}" for name in _STUB.findall(symbols)})
    demangled = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True).stdout
    return {short_name(line) for line in demangled.splitlines()}


def short_name(demangled: str) -> str:
    """Return `decode_kernel<__half, 64>` for `void doge::decode_kernel<__half, (int)64>(doge_attention_params)`."""
    found = _NAME.search(demangled)
    return (found[1] if found else demangled).replace("(int)", "")

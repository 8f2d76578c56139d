"""Description of the machine that a benchmark ran on."""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime

from doge_export.processors import allowed_processors


def machine() -> dict[str, Any]:
    """Return the CPU model, physical cores (None if unknown), CPUs open to this process, versions, and the date."""
    return {
        "cpu": _cpu(),
        "cores": _cores(),
        "cpus": allowed_processors(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "doge_export": version("doge-export"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    if found := re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE):
        return found[1].strip()
    if sys.platform == "darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if asked.stdout.strip():
            return asked.stdout.strip()
    return platform.processor() or platform.machine()


def _cores() -> int | None:
    pairs = re.findall(r"^physical id\s*:\s*(\d+)\n(?:.+\n)*?core id\s*:\s*(\d+)$", _cpuinfo(), re.MULTILINE)
    return len(set(pairs)) or None


def _cpuinfo() -> str:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

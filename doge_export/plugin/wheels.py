"""Wheels for every system from one machine: `python -m doge_export.plugin.wheels DIST`, in a checkout.

One wheel for each system of `cpu_targets`, with the native decoder compiled by zig, and one for all others, without it.
Needs hatchling and ziglang: `pip install hatchling ziglang`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from doge_export.errors import DogeExportError, RunFailed
from doge_export.plugin.cpu_targets import CPU_TARGETS

ROOT = Path(__file__).resolve().parents[2]


def build_wheels(folder: Path, targets: tuple[str | None, ...] = (*CPU_TARGETS, None)) -> list[Path]:
    """Build a wheel for each target, None for one without the native decoder; return the files.

    Raises:
        DogeExportError: this is no checkout.
        RunFailed: a wheel cannot be built.
    """
    if not (ROOT / "pyproject.toml").is_file():
        raise DogeExportError(f"{ROOT} is no checkout of doge-export: wheels are built from its repository")
    before = set(folder.glob("*.whl"))
    for target in targets:
        environment = {**os.environ, "DOGE_EXPORT_CPU_TARGET": target or "", "DOGE_EXPORT_CPU": "1" if target else "0"}
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder.resolve())]
        if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
            raise RunFailed(f"the wheel for {target or 'any system'} cannot be built; the reason stands above")
    return sorted(set(folder.glob("*.whl")) - before)


if __name__ == "__main__":
    build_wheels(Path(sys.argv[1] if len(sys.argv) > 1 else "dist"))

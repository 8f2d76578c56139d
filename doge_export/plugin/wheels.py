"""Wheels for every system from one machine: `python -m doge_export.plugin.wheels DIST`, in a checkout.

One wheel for each system of `cpu_targets`, with the native decoder compiled by zig, and one for all others, without it.
Needs hatchling and ziglang: `pip install hatchling ziglang`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
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
    folder.mkdir(parents=True, exist_ok=True)
    wheels = []
    for target in targets:
        environment = {**os.environ, "DOGE_EXPORT_CPU_TARGET": target or "", "DOGE_EXPORT_CPU": "1" if target else "0"}
        with tempfile.TemporaryDirectory(prefix=".wheel-", dir=folder) as staging:
            command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(Path(staging).resolve())]
            if subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False).returncode:
                raise RunFailed(f"the wheel for {target or 'any system'} cannot be built; the reason stands above")
            (built,) = Path(staging).glob("*.whl")
            wheels.append(built.replace(folder / built.name))
    return wheels


def main(arguments: list[str]) -> int:
    """Build every wheel and print its path; return the exit code."""
    try:
        for wheel in build_wheels(Path(arguments[0] if arguments else "dist")):
            sys.stdout.write(f"{wheel}\n")
    except (DogeExportError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return getattr(error, "exit_code", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The GPUs that kernels are compiled for: how a user names them, and which of them a built library holds.

CMake's names are used throughout: "89" is machine code for compute capability 8.9 and PTX that later GPUs translate
when they load it, "89-real" the first alone, "89-virtual" the second alone.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Iterable, Sequence

from doge_export.errors import DogeExportError
from doge_export.plugin import gpus
from doge_export.plugin.tensorrt_versions import MajorMinor, dotted

TUNED = "89"
"""Of the RTX 4090, for which the kernels are tuned: always compiled for, unless other GPUs are named."""

OLDEST: MajorMinor = (8, 0)
"""The kernels use instructions that GPUs before Ampere lack."""

_NAME = re.compile(r"(\d{2,3})([a-f]?)(-real|-virtual)?")


def here() -> tuple[str, ...]:
    """Return the compute capabilities of this machine's GPUs by nvidia-smi, such as ("89",); empty without a GPU."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    lines = {line.strip().replace(".", "") for line in done.stdout.splitlines()}
    return tuple(sorted(filter(str.isdecimal, lines), key=int))  # an old nvidia-smi may tell "[N/A]"


def default() -> tuple[str, ...]:
    """Return what is compiled for unless GPUs are named: `TUNED`, and the GPUs of this machine that can run kernels."""
    able = {int(name) for name in here() if gpus.capability(name) >= OLDEST}
    return tuple(map(str, sorted({int(TUNED)} | able)))


def named(names: Iterable[str] = (), capabilities: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the architectures of GPUs and compute capabilities as a user writes them.

    Args:
        names: of cards, such as "rtx4090" or "RTX 4090".
        capabilities: such as "89", "8.9" or "sm_89".

    Raises:
        DogeExportError: a GPU is not known by that name, or a capability is none that the kernels run on.
    """
    asked = {*map(gpus.capability_of, names), *map(gpus.capability, capabilities)}
    older = sorted(each for each in asked if each < OLDEST)
    if older:
        raise DogeExportError(
            f"compute capability {dotted(older[0])} is asked for, and the kernels run on {dotted(OLDEST)} or later"
        )
    return tuple(f"{major}{minor}" for major, minor in sorted(asked))


def check(architectures: Sequence[str]) -> None:
    """Check names of CMake's.

    Raises:
        DogeExportError: one is no such name, or there is none.
    """
    if not architectures or not all(map(_NAME.fullmatch, architectures)):
        raise DogeExportError(
            f"architectures are {' '.join(architectures) or 'none'}; write them as CMake does, "
            "with commas between, such as 89 or 80-real,90"
        )


def covers(architecture: str, capability: MajorMinor) -> bool:
    """Return whether code for an architecture, as CMake names it, runs on GPUs of a compute capability.

    Machine code (-real) runs on later GPUs of its major version; PTX (-virtual) is compiled for every later one. A name
    without either holds both. A letter behind the number ties code to that GPU (a), or to its family (f).
    """
    match = _NAME.fullmatch(architecture)
    if match is None:
        return False
    compiled, letter, form = gpus.capability(match[1]), match[2], match[3]
    if letter == "a":
        return compiled == capability
    runs = form != "-virtual" and compiled[0] == capability[0] and compiled[1] <= capability[1]
    return runs or (form != "-real" and not letter and compiled <= capability)


def held_by(library: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the architectures that a built library holds kernels for; empty: it has no kernels.

    Raises:
        DogeExportError: it is no library of ours.
    """
    try:
        loaded = ctypes.CDLL(os.fspath(library))
        loaded.doge_architectures.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        raise DogeExportError(
            f"{library} does not tell which GPUs it is for ({error}); build it anew with: doge-export plugin build"
        ) from error
    return tuple(loaded.doge_architectures().decode().split())

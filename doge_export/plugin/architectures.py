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

TUNED = "89"
"""Of the RTX 4090, for which the kernels are tuned: always compiled for, unless other GPUs are named."""

_CARDS = {"30": "86", "40": "89", "50": "120"}
"""Compute capability of GeForce RTX cards by the first two digits of their number."""

OLDEST_CAPABILITY = 80
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
    lines = {line.strip().replace(".", "") for line in done.stdout.splitlines() if line.strip()}
    return tuple(sorted(lines, key=int))


def default() -> tuple[str, ...]:
    """Return what is compiled for unless GPUs are named: `TUNED`, and the GPUs of this machine that can run kernels."""
    able = {int(name) for name in here() if int(name) >= OLDEST_CAPABILITY}
    return tuple(map(str, sorted({int(TUNED)} | able)))


def named(gpus: Iterable[str] = (), capabilities: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the architectures of GPUs and compute capabilities as a user writes them.

    Args:
        gpus: names, such as "rtx4090" or "RTX 4090".
        capabilities: such as "89", "8.9" or "sm_89".

    Raises:
        DogeExportError: a GPU is not known by that name, or a capability is none that the kernels run on.
    """
    found = set()
    for gpu in gpus:
        card = re.fullmatch(r"(?:geforce\W*)?(?:rtx\W*)?(\d\d)\d0\W*(?:ti)?\W*(?:super)?\W*(?:d|laptop)?", gpu.lower())
        if card is None or card[1] not in _CARDS:
            known = ", ".join(f"rtx{generation}xx" for generation in _CARDS)
            raise DogeExportError(
                f"--gpu is {gpu!r}, expected a card such as rtx4090 ({known}); name any other by --compute-capability"
            )
        found.add(int(_CARDS[card[1]]))
    for capability in capabilities:
        number = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", capability.lower())
        if number is None or int(number[1] + number[2]) < OLDEST_CAPABILITY:
            raise DogeExportError(
                f"--compute-capability is {capability!r}, expected {OLDEST_CAPABILITY} or more, such as 89 or 120"
            )
        found.add(int(number[1] + number[2]))
    return tuple(map(str, sorted(found)))


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

"""Names of GPUs: the one on the box, or the compute capability."""

from __future__ import annotations

import re

from doge_export.errors import DogeExportError
from doge_export.plugin.tensorrt_versions import MajorMinor

DEFAULT_GPU = "rtx4090"

_CARD = re.compile(
    r"(?:nvidia\W*)?(?:geforce\W*)?(?:rtx\W*)?(\d\d)(\d0)\W*(?:ti)?\W*(?:super)?\W*(?:d|laptop(?:\W*gpu)?)?"
)
_GENERATIONS: dict[str, MajorMinor] = {"20": (7, 5), "30": (8, 6), "40": (8, 9), "50": (12, 0)}
"""Compute capability of GeForce RTX cards by the first two digits of their number."""
_OF_ANOTHER_GENERATION: dict[str, MajorMinor] = {"2050": (8, 6)}


def capability_of(gpu: str) -> MajorMinor:
    """Return the compute capability of a GeForce card: (8, 9) for "rtx4090", "RTX 4070 Ti" or "4060".

    Raises:
        DogeExportError: its number is not known.
    """
    match = _CARD.fullmatch(gpu.lower())
    if match is None or match[1] not in _GENERATIONS:
        known = ", ".join(f"rtx{generation}xx" for generation in _GENERATIONS)
        raise DogeExportError(
            f"--gpu is {gpu!r}, expected a card such as {DEFAULT_GPU} ({known}); name any other by --compute-capability"
        )
    return _OF_ANOTHER_GENERATION.get(match[1] + match[2], _GENERATIONS[match[1]])


def capability(text: str) -> MajorMinor:
    """Return the compute capability that a text names: "89" and "8.9" give (8, 9), "120" gives (12, 0).

    Raises:
        DogeExportError: it names none.
    """
    match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.lower())
    if match is None:
        raise DogeExportError(f"--compute-capability is {text!r}, expected two or three digits, such as 89 or 120")
    return int(match[1]), int(match[2])

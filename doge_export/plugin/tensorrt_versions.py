"""TensorRT's versions: which of them engines are made for, and how one is read and written."""

from __future__ import annotations

from collections.abc import Iterable

from packaging.version import Version

MajorMinor = tuple[int, int]

OLDEST: MajorMinor = (10, 9)
"""The first TensorRT whose parser and plugin interfaces the engines are made for."""
NATIVE_SINCE: MajorMinor = (10, 15)
"""The first TensorRT with every layer that native attention is made of."""
NEWEST: MajorMinor = (11, 4)
"""The TensorRT that a dry run plans for unless told otherwise."""


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version: "11.4.0.106" gives (11, 4, 0, 106)."""
    return Version(version).release


def dotted(version: Iterable[int]) -> str:
    """Return the version as text: (11, 4) gives "11.4"."""
    return ".".join(map(str, version))

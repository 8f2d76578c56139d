"""Versions as numbers that compare, and as they are written."""

from __future__ import annotations

import re
from collections.abc import Iterable

OLDEST = (10, 9)
"""The first TensorRT whose parser and plugin interfaces the engines are made for."""


def numbers(version: str) -> tuple[int, ...]:
    """ "11.4.0.106" -> (11, 4, 0, 106)."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def dotted(version: Iterable[int]) -> str:
    """(11, 4) -> "11.4"."""
    return ".".join(map(str, version))

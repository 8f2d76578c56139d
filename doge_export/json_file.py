"""Reading JSON of files that nobody vouches for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from doge_export.errors import DogeExportError
from doge_export.regular_file import LARGEST, read_regular

_LONGEST_NUMBER = 300
"""Digits of the longest integer; a longer one does not fit into a float, and some libraries write int(1e30)."""


def parse_json(content: bytes) -> Any:
    """Return the value of a JSON text, in which every number is finite.

    Raises:
        ValueError: it is not JSON (which has no NaN or Infinity), is nested too deep, or has a number of no use.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not a JSON number")

    def integer(digits: str) -> int:
        if len(digits) > _LONGEST_NUMBER:
            raise ValueError(f"a number of {len(digits)} digits")
        return int(digits)

    def real(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            raise ValueError(f"the number {digits[:20]} is too large")
        return number

    try:
        return json.loads(content, parse_constant=refuse, parse_int=integer, parse_float=real)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_object(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        DogeExportError: the file cannot be read, is no regular file, has more than `largest` bytes, is not JSON, or
            holds no object.
    """
    try:
        value = parse_json(read_regular(path, largest))
    except OSError as error:
        raise DogeExportError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DogeExportError(f"{path} is not valid JSON ({error}): fetch or write the file again") from error
    if not isinstance(value, dict):
        raise DogeExportError(f"{path} holds a JSON {type(value).__name__}, expected an object {{...}}")
    return value

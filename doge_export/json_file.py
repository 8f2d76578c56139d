"""Reading a JSON object from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from doge_export.errors import DogeExportError


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        DogeExportError: the file cannot be read, is not JSON (which has no NaN or Infinity), or holds no object.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        value = json.loads(path.read_bytes(), parse_constant=refuse)
    except OSError as error:
        raise DogeExportError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DogeExportError(f"{path} is not valid JSON ({error}): fetch or write the file again") from error
    if not isinstance(value, dict):
        raise DogeExportError(f"{path} holds a JSON {type(value).__name__}, expected an object {{...}}")
    return value

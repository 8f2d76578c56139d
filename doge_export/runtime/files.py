"""Reading the small JSON files of an exported folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doge_export.errors import DogeExportError
from doge_export.json_file import read_object


def read_json(file: Path) -> dict[str, Any]:
    """The object in `file`, empty where there is no such file. Raises DogeExportError when it is not a JSON object."""
    return read_object(file) if file.is_file() else {}


@contextlib.contextmanager
def damage_of(file: Path) -> Iterator[None]:
    """Around the interpretation of what `file` holds: values of another shape raise DogeExportError with its name."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DogeExportError(f"{file} does not hold what it should ({reason}); export the model again") from error
